"""Tests of the store: reading, bounded memory, damaged files, interrupted and repeated imports."""

import json
import tracemalloc
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from ddvi_fast.data.packed import code_counts, frequencies
from ddvi_fast.genomes import convert
from ddvi_fast.genomes.convert import import_genotypes, store_from_codes
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.formats.sources import Block, Source
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.store import GenotypeStore, count_codes
from ddvi_fast.genomes.tables import SampleTable, VariantTable
from tests.genomes.files import simulated, write_eigenstrat


@pytest.fixture
def store(tmp_path):
    return store_from_codes(simulated(23, 41).codes, tmp_path / "store")


def test_any_part_can_be_read(store):
    codes = simulated(23, 41).codes
    rows = np.array([4, 0, 22])
    for first, count in ((0, None), (4, 8), (3, 9), (40, 1), (0, 41)):
        stop = None if count is None else first + count
        assert np.array_equal(store.genotypes(rows, first, count), codes[rows][:, first:stop])
    assert store.packed.shape == (23, 11) and store.shape == (23, 41) and len(store) == 23
    assert "23 samples, 41 variants" in repr(store)


ROWS = [np.array([23]), [-24], np.array([0.0]), np.array([True]), 3, "all", [[0]], [[0], [1, 2]], slice("a", None), torch.tensor([23]), None]


@pytest.mark.parametrize("rows", ROWS, ids=repr)
def test_rows_that_are_none_of_the_samples_are_refused(rows, store, one_line):
    expected = "expected a slice, a mask of length 23 or indices from -23 to 22, got"
    one_line(lambda: store.genotypes(rows), f"^rows: {expected}")
    one_line(lambda: store.tile(rows, 0, 4), f"^rows: {expected}")
    one_line(lambda: store.samples.take(rows), f"^chosen: {expected}")
    one_line(lambda: store.variants.take(np.arange(23)).take(rows), f"^chosen: {expected}")
    if rows is not None:  # all of them
        one_line(lambda: GenotypePCA(2).fit(store, rows), f"^rows: {expected}")


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (0, 42), (40, 2), (42, None), (1.5, 2), (0, -1), (0, "all")])
def test_variants_that_are_none_of_the_store_are_refused(first, count, store, one_line):
    one_line(lambda: store.genotypes(slice(None), first, count), "^(first|count): expected an integer in")


@pytest.mark.parametrize(("first", "count"), [(1, 4), (-4, 4), (0, 45), (44, 4)])
def test_tiles_outside_of_the_store_are_refused(first, count, store, one_line):
    one_line(lambda: store.tile(slice(None), first, count), "^first, count: expected a multiple of 4")


def test_rows_are_chosen_by_indices_masks_and_slices_alike(store):
    mask = np.zeros(23, bool)
    mask[[2, 22]] = True
    expected = store.genotypes(np.array([2, 22]))
    for rows in (mask, [2, -1], np.array([2, 22], np.uint8), torch.tensor([2, 22]), slice(2, 23, 20), (2, 22)):
        assert np.array_equal(store.genotypes(rows), expected)
    assert store.genotypes([]).shape == (0, 41)


def test_counts_and_frequencies(store):
    codes = simulated(23, 41).codes
    expected = (codes[..., None] == np.arange(4)).sum(0)
    assert np.array_equal(store.counts, expected) and np.array_equal(code_counts(codes.T), expected)
    rows = np.arange(5, 17)
    assert np.array_equal(count_codes(store, rows, step=8), code_counts(codes[rows].T))
    values = np.where(codes == 3, np.nan, codes.astype(float))
    np.testing.assert_allclose(frequencies(store.counts), np.nanmean(values, axis=0) / 2)


def test_writing_to_the_map_does_not_reach_the_file(store):
    store.packed[0, 0] ^= 255
    assert GenotypeStore(store.path).packed[0, 0] != store.packed[0, 0]


def test_nothing_is_overwritten_unasked_and_only_stores_are(tmp_path, store, one_line):
    before = (store.path / "genotypes.bin").read_bytes()
    other = simulated(5, 6, seed=1)
    path = write_eigenstrat(other, tmp_path / "other")
    assert "overwrite" in one_line(lambda: import_genotypes(path, store.path))
    path.with_suffix(".snp").write_text("broken\n")
    assert "six fields" in one_line(lambda: import_genotypes(path, store.path, overwrite=True))
    assert (store.path / "genotypes.bin").read_bytes() == before
    write_eigenstrat(other, tmp_path / "other")
    assert import_genotypes(path, store.path, overwrite=True).shape == (5, 6)
    thesis = tmp_path / "precious" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("x")
    assert "something else" in one_line(lambda: import_genotypes(path, thesis.parent, overwrite=True))
    assert thesis.exists()
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    path = write_eigenstrat(simulated(5, 6), tmp_path / "a")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(convert, "write_tables", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        import_genotypes(path, tmp_path / "store")
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_no_store_or_a_damaged_one_is_one_line(tmp_path, store, one_line):
    assert "missing" in one_line(lambda: GenotypeStore(tmp_path / "nothing"))
    assert "which is none" in one_line(lambda: GenotypeStore(tmp_path))
    header, samples, genotypes = (store.path / name for name in ("store.json", "samples.tsv", "genotypes.bin"))
    text = header.read_text()
    header.write_text(text.replace('"version": 1', '"version": 99'))
    assert "version 1, got 99" in one_line(lambda: GenotypeStore(store.path))
    header.write_text(text)
    samples.write_text(samples.read_text()[:-20])
    assert "samples.tsv" in one_line(lambda: GenotypeStore(store.path).samples)
    genotypes.write_bytes(genotypes.read_bytes()[:-1])
    assert "253 bytes, got 252" in one_line(lambda: GenotypeStore(store.path))


def test_matrices_in_memory_are_checked(tmp_path, one_line):
    for codes in (np.zeros(3), np.zeros((0, 3)), np.full((2, 2), 4), np.full((2, 2), 0.5), np.full((2, 2), -1)):
        assert "codes" in one_line(lambda codes=codes: store_from_codes(codes, tmp_path / "bad"))
    assert "2 labels" in one_line(lambda: store_from_codes(np.zeros((2, 2)), tmp_path / "bad", labels={"a": ["x"]}))
    assert "no_such" in one_line(lambda: store_from_codes(np.zeros((2, 2)), tmp_path / "good", labels={"a": ["x", "y"]}).labels("no_such"))
    assert not (tmp_path / "bad").exists()


def _many(samples, variants, step=1000):
    for start in range(0, variants, step):
        codes = np.random.default_rng(start).integers(0, 3, (step, samples)).astype(np.uint8)
        yield Block(VariantTable.from_rows([("1", start + i + 1, ".", "A", "C") for i in range(step)]), codes)


def peak(call):
    """The most bytes of NumPy's that a call holds at a time."""
    tracemalloc.start()
    call()
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return highest


def test_memory_is_bounded_by_blocks_not_by_genotypes(tmp_path, monkeypatch):
    """A dense matrix would take 60 MB as bytes and 240 MB as floats; the tables of the variants are not counted."""
    samples, variants = 2000, 30_000
    monkeypatch.setattr("ddvi_fast.genomes.formats.sources.BLOCK_CODES", 1 << 20)
    monkeypatch.setattr("ddvi_fast.genomes.standardise.TILE_VALUES", 1 << 20)
    # tracemalloc sees numpy's arrays, and this torch's.
    sizes, empty = [], torch.empty

    def recorded(*arguments, **options):
        made = empty(*arguments, **options)
        sizes.append(made.nbytes)
        return made

    monkeypatch.setattr(torch, "empty", recorded)
    (tmp_path / "store").mkdir()
    source = Source(tmp_path, SampleTable.from_names([f"s{i}" for i in range(samples)], tmp_path), _many(samples, variants))
    filters, tables = Filters(max_missing=0.1, max_sample_missing=0.1, min_frequency=0.01), variants * 5 * 100
    assert peak(lambda: convert.write_store(source, tmp_path / "store", filters=filters)) < 30e6 + tables
    store = GenotypeStore(tmp_path / "store")
    assert store.shape == (samples, variants) and store.packed.nbytes == 15_000_000
    assert peak(lambda: GenotypePCA(2, max_passes=2, tolerance=0.9).fit(store)) < 30e6 + tables
    assert sizes and max(sizes) <= 5e6


def test_where_it_came_from_is_told(tmp_path):
    path = write_eigenstrat(simulated(5, 6), tmp_path / "a")
    imported = json.loads((import_genotypes(path, tmp_path / "store").path / "import.json").read_text())
    assert imported["file"] == str(path) and imported["read"] == {"samples": 5, "variants": 6}
