"""Tests of PLINK 2's files of tests/genomes/plink2, which plink2 v2.00a3.5 made from `simulated()` and from the VCF beside them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ddvi_fast.genomes.convert import import_genotypes
from ddvi_fast.genomes.formats import htslib, sources
from ddvi_fast.genomes.formats.sources import open_source
from tests.genomes.files import simulated, write_vcf
from tests.genomes.test_readers import read

pytest.importorskip("pgenlib")
FILES = Path(__file__).parent / "plink2"


@pytest.mark.parametrize("codes", [sources.BLOCK_CODES, 300])
def test_the_store_is_that_of_the_vcf(tmp_path, monkeypatch, codes):
    monkeypatch.setattr(sources, "BLOCK_CODES", codes)
    store = import_genotypes(FILES / "simulated.pgen", tmp_path / "store")
    other = import_genotypes(write_vcf(simulated(), tmp_path / "a.vcf"), tmp_path / "other")
    for file in ("genotypes.bin", "counts.npy", "samples.tsv", "variants.tsv"):
        assert (store.path / file).read_bytes() == (other.path / file).read_bytes(), file


@pytest.mark.parametrize("ending", ["pgen", "pvar", "psam"])
@pytest.mark.parametrize("options", [{}, {"multiallelic": "split"}, {"passing_only": True}])
def test_sites_are_those_of_the_vcf(ending, options):
    codes, rows, source = read(FILES / f"multi.{ending}", **options)
    other, expected, judge = read(FILES / "multi.vcf", **options)
    assert np.array_equal(codes, other) and rows == expected and source.notes == judge.notes
    assert list(source.samples.name) == list("abcde")


def test_compressed_tables(one_line):
    codes, rows, _ = read(FILES / "zst.pgen")
    other, expected, _ = read(FILES / "multi.vcf")
    assert np.array_equal(codes, other) and rows == expected
    assert "zstd -d" in one_line(lambda: read(FILES / "zst.pgen", passing_only=True))


def test_names_with_families_and_without_a_heading(tmp_path):
    for name in ("multi.pgen", "multi.pvar"):
        shutil.copy(FILES / name, tmp_path / name)
    people = [("f1", "1"), ("f1", "2"), ("f2", "1"), ("f2", "3"), ("f2", "4")]
    for heading in ("#FID\tIID\tSEX\n", ""):
        (tmp_path / "multi.psam").write_text(heading + "".join(f"{family}\t{name}\tNA\n" for family, name in people))
        assert list(open_source(tmp_path / "multi.pgen").samples.name) == ["f1:1", "f1:2", "f2:1", "f2:3", "f2:4"]


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("multi.pgen", lambda content: b"no" + content[2:], "PLINK 2 file"),
        ("multi.pgen", lambda content: content[:-9], "multi.pgen"),
        ("multi.psam", lambda content: content + b"f\tNA\n", "6 samples"),
        ("multi.psam", lambda content: content.replace(b"#IID", b"#FID"), "a column IID"),
        ("multi.pvar", lambda content: content + b"1\t60\t.\tA\tC\tPASS\n", "multi.pgen"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, one_line, name, damage, words):
    for each in ("multi.pgen", "multi.pvar", "multi.psam"):
        shutil.copy(FILES / each, tmp_path / each)
    (tmp_path / name).write_bytes(damage((FILES / name).read_bytes()))
    assert words in one_line(lambda: import_genotypes(tmp_path / "multi.pgen", tmp_path / "store"))


def test_notes_have_the_words_of_the_vcf_reader():
    assert read(FILES / "multi.pgen")[2].notes == {htslib.DROPPED: 1}
