"""Tests of the tables beside PLINK's and EIGENSOFT's genotypes: what people write into them, and what they must not mean."""

import gzip

import numpy as np
import pytest

from ddvi_fast.genomes.convert import import_genotypes
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.formats.sources import open_source
from tests.genomes.files import Genotypes, simulated, write_eigenstrat, write_plink, write_transposed

pytest.importorskip("bed_reader")
# The five people and seven variants of EIGENSOFT's example, as its own EIGENSTRAT file has them.
EXAMPLE = ["11100", "01212", "21101", "00122", "21100", "00111", "22110"]


def codes_of(path):
    return np.concatenate([block.codes for block in open_source(path).blocks])


@pytest.mark.parametrize("ending", ["eigenstratgeno", "ancestrymapgeno", "packedancestrymapgeno", "bed", "pedsnp", "snp"])
def test_eigensofts_formats_of_one_data_set(shared_data, ending):
    path = shared_data(f"eigenstrat/example.{ending}")
    assert ["".join(map(str, row)) for row in codes_of(path)] == EXAMPLE
    assert list(open_source(path).samples.name) == [f"SAMPLE{number}" for number in range(5)]


@pytest.mark.parametrize("ending", [".ind", ".snp"])
@pytest.mark.parametrize("transposed", [False, True])
def test_names_in_another_order_than_the_packed_genotypes_are_refused(shared_data, tmp_path, one_line, ending, transposed):
    if transposed:
        path = write_transposed(simulated(6, 9), tmp_path / "a")
    else:
        path = tmp_path / "a.geno"
        path.write_bytes(shared_data("eigenstrat/example.packedancestrymapgeno").read_bytes())
        for each in (".snp", ".ind"):
            path.with_suffix(each).write_bytes(shared_data(f"eigenstrat/example{each}").read_bytes())
    assert codes_of(path).shape == ((9, 6) if transposed else (7, 5))
    table = path.with_suffix(ending)
    table.write_bytes(b"".join(reversed(table.read_bytes().splitlines(keepends=True))))
    assert f"the hash of the names in {ending}" in one_line(lambda: import_genotypes(path, tmp_path / "store"))


def test_calls_in_any_order_and_those_that_are_not_there(shared_data, tmp_path, one_line):
    base = tmp_path / "a.ancestrymapgeno"
    lines = shared_data("eigenstrat/example.ancestrymapgeno").read_text().splitlines(keepends=True)
    for each in (".snp", ".ind"):
        base.with_suffix(each).write_bytes(shared_data(f"eigenstrat/example{each}").read_bytes())
    base.write_text("".join(reversed(lines[1:])))
    assert ["".join(map(str, row)) for row in codes_of(base)] == ["3" + EXAMPLE[0][1:], *EXAMPLE[1:]]
    base.write_text(lines[0].replace("SAMPLE0", "nobody"))
    assert "line 1" in one_line(lambda: codes_of(base)) and "nobody" in one_line(lambda: codes_of(base))


def test_samples_of_the_population_ignore_are_left_out_and_told(tmp_path):
    path = write_eigenstrat(simulated(6, 9), tmp_path / "a")
    table = path.with_suffix(".ind")
    table.write_text("# a comment\n" + table.read_text().replace("P002 U Somewhere", "P002 U Ignore"))
    store = import_genotypes(path, tmp_path / "store")
    assert list(store.samples.name) == ["P000", "P001", "P003", "P004", "P005"]
    assert (store.genotypes() == np.delete(simulated(6, 9).codes, 2, axis=0)).all()
    assert store.imported["reader"] == {"samples of the population Ignore": 1}


def test_names_are_split_at_spaces_and_tabs_alone(tmp_path):
    data = simulated(3, 4)
    data.samples = ["A\u00a0B", "C\u3000D", "E\u2003F"]
    for write in (write_plink, write_eigenstrat):
        assert list(open_source(write(data, tmp_path / "a")).samples.name) == data.samples
    data.variants[0] = ("1", 5, "rs\u00a01", "A", "C")
    for write in (write_plink, write_eigenstrat):
        store = import_genotypes(write(data, tmp_path / "a"), tmp_path / f"store {write.__name__}")
        assert (store.variants.name[0], store.variants.position[0], store.variants.counted[0]) == ("rs\u00a01", 5, "A")


def test_names_that_families_share_are_written_with_them(tmp_path, one_line):
    path = write_plink(simulated(3, 4), tmp_path / "a")
    fam = path.with_suffix(".fam")
    fam.write_text("f1 1 0 0 0 -9\nf1 2 0 0 0 -9\nf2 1 0 0 0 -9\n")
    assert list(open_source(path).samples.name) == ["f1:1", "f1:2", "f2:1"]
    fam.write_text("f1 1 0 0 0 -9\nf1 1 0 0 0 -9\nf2 1 0 0 0 -9\n")
    assert "f1:1 2 times" in one_line(lambda: open_source(path))


def test_endings_in_capitals_and_of_eigensoft_and_five_columns(tmp_path):
    data = simulated(5, 6)
    path = write_plink(data, tmp_path / "a")
    path.with_suffix(".bim").write_text(
        "".join(f"{c}\t{n}\t{p}\t{a}\t{o}\n" for c, n, p, a, o in ((c, n, p, a, o) for c, p, n, a, o in data.variants))
    )
    assert (codes_of(path) == data.codes.T).all()
    assert [block.variants.position.tolist() for block in open_source(path).blocks] == [[row[1] for row in data.variants]]
    for old, new in ((".bed", ".BED"), (".bim", ".pedsnp"), (".fam", ".pedind")):
        path.with_suffix(old).rename(path.with_suffix(new))
    for ending in (".BED", ".pedsnp"):
        assert (codes_of(path.with_suffix(ending)) == data.codes.T).all()


def test_variants_at_negative_positions_are_left_out_and_told(tmp_path):
    data = simulated(5, 6)
    data.variants = [(c, -p if number in (1, 4) else p, n, a, o) for number, (c, p, n, a, o) in enumerate(data.variants)]
    for write in (write_plink, write_eigenstrat):
        store = import_genotypes(write(data, tmp_path / "a"), tmp_path / f"store {write.__name__}")
        assert (store.genotypes() == np.delete(data.codes, [1, 4], axis=1)).all()
        assert store.imported["reader"] == {"variants at a negative position": 2}
        assert store.imported["read"] == {"samples": 5, "variants": 4}


def test_compressed_calls(tmp_path):
    data = Genotypes(simulated(4, 5).codes)
    path = write_eigenstrat(data, tmp_path / "a")
    calls = [(row[2], name, "0129"[data.codes[i, j]]) for j, row in enumerate(data.variants) for i, name in enumerate(data.samples)]
    path.unlink()
    (tmp_path / "a.ancestrymapgeno.gz").write_bytes(gzip.compress("".join(" ".join(call) + "\n" for call in calls).encode()))
    assert (codes_of(tmp_path / "a.snp") == data.codes.T).all()


def test_files_of_one_cohort_follow_each_other(tmp_path, one_line):
    data = simulated(6, 20)
    parts = [Genotypes(data.codes[:, start : start + 7], data.samples, data.variants[start : start + 7]) for start in (0, 7, 14)]
    order = [3, 1, 0, 2, 5, 4]
    parts[1] = Genotypes(parts[1].codes[order], [data.samples[place] for place in order], parts[1].variants)
    for number, part in enumerate(parts):
        write_eigenstrat(part, tmp_path / f"chr{number + 1}")
    whole = import_genotypes(write_eigenstrat(data, tmp_path / "whole"), tmp_path / "store")
    for number, files in enumerate((tmp_path / "chr{1..3}.geno", [tmp_path / f"chr{each}.geno" for each in (1, 2, 3)])):
        store = import_genotypes(files, tmp_path / f"store {number}")
        for file in ("genotypes.bin", "counts.npy", "samples.tsv", "variants.tsv"):
            assert (store.path / file).read_bytes() == (whole.path / file).read_bytes(), file
        assert store.imported["file"].endswith("chr1.geno and 2 others")
    write_eigenstrat(Genotypes(parts[2].codes[:5], data.samples[:5], parts[2].variants), tmp_path / "chr3")
    text = one_line(lambda: import_genotypes(tmp_path / "chr{1..3}.geno", tmp_path / "x"))
    assert "chr3.geno" in text and "1 missing" in text and not (tmp_path / "x").exists()
    assert "missing" in one_line(lambda: import_genotypes(tmp_path / "chr{1..4}.geno", tmp_path / "x"))


def test_notes_of_several_files_are_summed(tmp_path):
    for name in ("chr1", "chr2"):
        path = write_eigenstrat(simulated(6, 5), tmp_path / name)
        path.with_suffix(".ind").write_text(path.with_suffix(".ind").read_text().replace("P002 U Somewhere", "P002 U Ignore"))
    store = import_genotypes([tmp_path / "chr{1,2}.geno"], tmp_path / "store")
    assert store.shape == (5, 10)


def test_chromosomes_of_other_species(tmp_path, one_line):
    data = simulated(6, 8)
    names = ("1", "23", "chr29", "30", "31", "32", "33", "X")
    data.variants = [(name, *row[1:]) for name, row in zip(names, data.variants, strict=True)]
    path = write_plink(data, tmp_path / "cattle")
    store = import_genotypes(path, tmp_path / "store", num_autosomes=29)
    assert list(store.variants.chromosome) == ["1", "23", "29", "X", "Y", "XY", "MT", "X"]
    autosomes = import_genotypes(path, tmp_path / "autosomes", num_autosomes=29, filters=Filters(autosomes=True))
    assert list(autosomes.variants.chromosome) == ["1", "23", "29"]
    assert list(import_genotypes(path, tmp_path / "human").variants.chromosome[:2]) == ["1", "X"]
    assert "num_autosomes" in one_line(lambda: import_genotypes(path, tmp_path / "x", num_autosomes=0))
