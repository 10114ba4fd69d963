"""Tests of each filter against its definition on the dense matrix, and of the order of filters."""

import numpy as np
import pytest

from ddvi_fast.genomes.convert import import_genotypes, store_from_codes
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.simulate import Simulation
from tests.genomes.files import Genotypes, simulated, write_eigenstrat


def removed(store):
    return {step["reason"]: step["variants"] or step["samples"] for step in store.imported["removed"]}


def imported(data, tmp_path, **options):
    return import_genotypes(write_eigenstrat(data, tmp_path / "file"), tmp_path / "store", filters=Filters(**options))


def test_without_filters_everything_stays(tmp_path):
    data = simulated(20, 30, missing=0.5)
    store = imported(data, tmp_path)
    assert np.array_equal(store.genotypes(), data.codes) and store.imported["removed"] == []


def test_variants_off_the_autosomes(tmp_path):
    data = simulated(10, 40)
    store = imported(data, tmp_path, autosomes=True)
    assert np.array_equal(store.genotypes(), data.codes[:, :30]) and removed(store) == {"not on an autosome": 10}


def test_duplicates_are_the_same_position_and_alleles_whichever_is_counted(tmp_path):
    data = simulated(10, 6, missing=0)
    data.variants = [
        ("1", 5, "a", "A", "C"), ("1", 5, "b", "C", "A"), ("1", 5, "c", "A", "G"),
        ("2", 5, "d", "A", "C"), ("1", 6, "e", "A", "C"), ("1", 5, "a", "A", "C"),
    ]  # fmt: skip
    store = imported(data, tmp_path, unique=True)
    assert list(store.variants.name) == ["a", "c", "d", "e"] and removed(store) == {"duplicates": 2}


def test_variants_without_a_position_are_no_duplicates(tmp_path):
    data = simulated(10, 4, missing=0)
    data.variants = [("0", 0, "a", "A", "C"), ("0", 0, "b", "A", "C"), ("1", 0, "c", "A", "C"), ("1", 0, "d", "A", "C")]
    assert imported(data, tmp_path, unique=True).num_variants == 4


def test_missing_calls_of_variants_and_then_of_samples(tmp_path):
    data = simulated(20, 50, missing=0.0)
    data.codes[:, 3] = 3
    data.codes[:11, 4] = 3
    data.codes[:10, 5] = 3
    data.codes[7, 10:40] = 3
    store = imported(data, tmp_path, max_missing=0.5, max_sample_missing=0.5)
    # Without the order, sample 7 would be judged by variants that nobody has, and variant 5 by a sample that leaves.
    assert removed(store) == {"variants missing in more than 0.5 of samples": 2, "samples missing more than 0.5 of variants": 1}
    assert np.array_equal(store.genotypes(), np.delete(np.delete(data.codes, [3, 4], axis=1), 7, axis=0))
    assert "P007" not in store.samples.name


def test_rare_and_constant_variants_among_the_samples_that_stay(tmp_path):
    codes = np.ones((20, 5), np.uint8)
    codes[:, 1], codes[:, 2], codes[:, 3] = 0, 3, 2
    codes[0, 3], codes[1, 1] = 1, 2
    codes[1, [2, 4]] = 3
    codes[:, 4] = np.where(codes[:, 4] == 3, 3, 2)
    store = imported(Genotypes(codes), tmp_path, min_frequency=0.03)
    # Frequencies 0.5, 0.05, none, 0.025, 0.
    assert list(store.variants.name) == ["rs0", "rs1"]
    assert removed(store) == {"constant": 2, "minor allele rarer than 0.03": 1}


def test_the_bound_itself_is_kept(tmp_path):
    codes = np.zeros((10, 2), np.uint8)
    codes[0, 0], codes[:2, 1] = 1, 1
    assert list(imported(Genotypes(codes), tmp_path, min_frequency=0.05).variants.name) == ["rs0", "rs1"]


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_pruning_leaves_no_correlated_pair_in_a_window_and_no_gap_without_cause(tmp_path, missing):
    generator = np.random.default_rng(0)
    haplotypes = generator.integers(0, 2, (2, 200, 15))
    copies = np.repeat(haplotypes, 8, axis=2) ^ (generator.random((2, 200, 120)) < 0.1)
    codes = copies.sum(0).astype(np.uint8)
    codes[generator.random(codes.shape) < missing] = 3
    variants = [(("1", "2")[j >= 64], j + 1, f"v{j}", "A", "C") for j in range(120)]
    store = imported(Genotypes(codes, variants=variants), tmp_path, max_correlation=0.3, window=20, step=5)
    kept = np.array([int(name[1:]) for name in store.variants.name])
    values = np.where(codes == 3, np.nan, codes.astype(float))
    filled = np.nan_to_num(values - np.nanmean(values, axis=0))
    squared = np.corrcoef(filled.T) ** 2
    np.fill_diagonal(squared, 0)
    squared[:64, 64:] = squared[64:, :64] = 0  # the two chromosomes
    number = np.arange(120)
    near = np.abs(number[:, None] - number) < 15  # shared windows, whatever was removed between
    assert (squared * near)[np.ix_(kept, kept)].max() <= 0.3 and 15 <= len(kept) < 60
    frequency = np.nanmean(values, axis=0) / 2
    minor = np.minimum(frequency, 1 - frequency)
    partners = (squared > 0.3) & (minor[:, None] >= minor - 1e-12)
    assert partners.any(0)[np.setdiff1d(number, kept)].all(), "each variant that was removed had a partner at least as common"


def test_independent_variants_are_not_pruned(tmp_path):
    codes = np.random.default_rng(0).integers(0, 3, (300, 50)).astype(np.uint8)
    store = store_from_codes(codes, tmp_path / "store", filters=Filters(max_correlation=0.2))
    assert store.num_variants == 50


def test_nothing_left_is_one_line_with_the_counts(tmp_path, one_line):
    data = simulated(10, 40)
    data.codes[:, :30] = 0
    text = one_line(lambda: imported(data, tmp_path, autosomes=True, min_frequency=0.1))
    assert "at least one variant left" in text and "not on an autosome: 10" in text and "constant: 30" in text
    data.codes[:] = 3
    assert "at least one sample left" in one_line(lambda: imported(data, tmp_path, max_sample_missing=0.5))
    assert not (tmp_path / "store").exists() and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name, value", [("max_missing", -0.1), ("min_frequency", 0.6), ("max_correlation", 2), ("step", 0), ("step", 201)])
def test_values_out_of_range(name, value, one_line):
    assert name in one_line(lambda: Filters(**{name: value}))


def test_numbers_of_numpy_are_numbers(one_line) -> None:
    made = Filters(max_missing=np.float32(0.5), window=np.int64(20), step=np.int32(5), autosomes=np.bool_(True))
    assert made == Filters(max_missing=0.5, window=20, step=5, autosomes=True) and type(made.window) is int
    simulation = Simulation(samples=np.int64(5), seed=np.uint8(3), min_frequency=np.float64(0.25))
    assert simulation == Simulation(samples=5, seed=3, min_frequency=0.25) and type(simulation.samples) is int
    assert GenotypePCA(np.int64(2), tolerance=np.float32(0.5)).n_components == 2
    for call in (lambda: Filters(window=2.5), lambda: Filters(max_missing="all"), lambda: Filters(unique=1), lambda: Simulation(seed=True)):
        one_line(call)
    for call in (lambda: GenotypePCA(True), lambda: GenotypePCA(tolerance="small"), lambda: GenotypePCA(seed=0.5), lambda: GenotypePCA(device="gpu")):
        one_line(call)
