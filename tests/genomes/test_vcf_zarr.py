"""Tests of VCF Zarr stores of tests/genomes/vcz, which bio2zarr 0.2.1 made of plink2/simulated and of multi.vcf."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from ddvi_fast.genomes.convert import import_genotypes
from ddvi_fast.genomes.dataset import Genotypes as Options
from ddvi_fast.genomes.dataset import store_of
from ddvi_fast.genomes.formats import sources
from tests.genomes.files import simulated, write_vcf
from tests.genomes.test_readers import read

zarr = pytest.importorskip("zarr")
FILES = Path(__file__).parent / "vcz"


def unpacked(name, folder):
    path = folder / f"{name}.vcz"
    with zipfile.ZipFile(FILES / f"{name}.vcz.zip") as archive:
        archive.extractall(path)
    return path


@pytest.mark.parametrize("codes", [sources.BLOCK_CODES, 1000])
def test_the_store_is_that_of_the_vcf(tmp_path, monkeypatch, codes):
    monkeypatch.setattr(sources, "BLOCK_CODES", codes)
    store = import_genotypes(unpacked("simulated", tmp_path), tmp_path / "store")
    other = import_genotypes(write_vcf(simulated(), tmp_path / "a.vcf"), tmp_path / "other")
    assert list(store.samples.name) == list(other.samples.name) and list(store.variants.name) == list(other.variants.name)
    same = store.variants.counted == other.variants.counted  # the allele that PLINK counts is the second one of the store
    assert ((store.variants.other == other.variants.counted) | same).all()
    turned = np.where(same, other.genotypes(), np.array([2, 1, 0, 3])[other.genotypes()])
    assert np.array_equal(store.genotypes(), turned)


@pytest.mark.parametrize("options", [{}, {"multiallelic": "split"}, {"passing_only": True}])
def test_sites_are_those_of_the_vcf(tmp_path, options):
    codes, rows, source = read(unpacked("multi", tmp_path), **options)
    other, expected, judge = read(FILES / "multi.vcf", **options)
    assert np.array_equal(codes, other) and rows == expected and source.notes == judge.notes and list(source.samples.name) == list("abcde")


def test_a_run_takes_a_store_by_its_path_and_follows_its_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("DDVI_FAST_CACHE", str(tmp_path / "cache"))
    path = unpacked("simulated", tmp_path)
    before = store_of("genomes", Options(path=str(path), min_frequency=0.0)).genotypes()
    calls = zarr.open_group(str(path), mode="r+")["call_genotype"]
    calls[0] = 0
    calls[0, 0, 1] = 1
    after = store_of("genomes", Options(path=str(path), min_frequency=0.0)).genotypes()
    assert after[:, 0].sum() == 1 and not np.array_equal(before[:, 0], after[:, 0])


def test_damaged_stores_are_one_line(tmp_path, one_line):
    assert "existing VCF Zarr folder" in one_line(lambda: read(tmp_path / "none.vcz"))
    (tmp_path / "empty.vcz").mkdir()
    assert "VCF Zarr store" in one_line(lambda: read(tmp_path / "empty.vcz"))
    path = unpacked("multi", tmp_path)
    held = zarr.open_group(str(path), mode="r+")
    held["call_genotype"][3, 0, 0] = 4
    assert "1:40" in one_line(lambda: read(path))
    for chunk in (path / "call_genotype").rglob("0*"):
        if chunk.is_file():
            chunk.write_bytes(b"no chunk")
    assert "chunks that can be read" in one_line(lambda: read(path))
    del held["variant_allele"]
    assert "without variant_allele" in one_line(lambda: read(path))
