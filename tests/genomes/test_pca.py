"""Tests of principal components against scikit-learn on the dense standardized matrix, and of projections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from ddvi_fast import use_backend
from ddvi_fast.genomes import standardise
from ddvi_fast.genomes.convert import import_genotypes, store_from_codes
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.krylov import leading_eigenpairs
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.store import GenotypeStore
from tests.genomes.files import Genotypes, write_plink


def dense(codes, training=None):
    """Patterson's scaling in float64, with frequencies of the training rows."""
    values = np.where(codes == 3, np.nan, codes.astype(float))
    frequency = np.nanmean(values if training is None else values[training], axis=0) / 2
    return np.nan_to_num((values - 2 * frequency) / np.sqrt(2 * frequency * (1 - frequency)))


def ancestry(samples=90, variants=700, missing=0.03, seed=3):
    """Three populations, and a fourth between two of them, so that some components stand out and others do not."""
    generator = np.random.default_rng(seed)
    base = generator.uniform(0.2, 0.8, variants)
    groups = np.clip(base + generator.normal(0, 0.15, (3, variants)), 0.02, 0.98)
    groups = np.concatenate((groups, (groups[:1] + groups[1:2]) / 2))
    codes = generator.binomial(2, groups[np.arange(samples) % 4]).astype(np.uint8)
    codes[generator.random(codes.shape) < missing] = 3
    return codes


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> GenotypeStore:
    return store_from_codes(ancestry(), tmp_path_factory.mktemp("pca") / "store")


def test_components_are_those_of_scikit_learn(store):
    pca = GenotypePCA(n_components=6, tolerance=1e-5)
    scores = pca.fit_transform(store)
    values = dense(store.genotypes())
    exact = PCA(6, svd_solver="full")
    expected = exact.fit_transform(values)
    # Only missing calls, which are replaced by the mean, keep the columns centred exactly: so is this matrix.
    assert np.abs(values.mean(0)).max() < 1e-12
    signs = np.sign((scores * expected).sum(0))
    assert np.abs(scores * signs - expected).max() < 2e-3 * np.abs(expected).max()
    assert np.abs(pca.components_ * signs[:, None] - exact.components_).max() < 2e-3 * np.abs(exact.components_).max()
    for name in ("explained_variance_", "explained_variance_ratio_", "singular_values_"):
        np.testing.assert_allclose(getattr(pca, name), getattr(exact, name), rtol=1e-5)


@pytest.mark.parametrize("tile, chunk", [(1 << 23, 1024), (3000, 64), (64, 4)])
def test_tiles_change_nothing(store, monkeypatch, tile, chunk):
    whole = GenotypePCA(3, tolerance=1e-5).fit(store)
    monkeypatch.setattr(standardise, "TILE_VALUES", tile)
    monkeypatch.setattr(standardise, "_TILE_VARIANTS", chunk)
    with use_backend("reference"):
        pieces = GenotypePCA(3, tolerance=1e-5).fit(store)
        assert np.abs(pieces.transform(store) - whole.transform(store)).max() < 1e-3 * whole.singular_values_[0]
    np.testing.assert_allclose(pieces.singular_values_, whole.singular_values_, rtol=1e-6)


def test_scores_of_fitted_samples_are_their_projection(store):
    pca = GenotypePCA(4, tolerance=1e-5)
    scores = pca.fit_transform(store)
    assert np.abs(pca.transform(store, missing="mean") - scores).max() < 1e-3 * np.abs(scores).max()
    assert np.array_equal(pca.transform(store, rows=[7, 2], missing="mean"), pca.transform(store, missing="mean")[[7, 2]])
    np.testing.assert_allclose(pca.transform(store, rows=[7, 2]), pca.transform(store)[[7, 2]], rtol=1e-4, atol=1e-4)


def test_new_samples_are_projected_with_the_training_frequencies(store):
    training, held_out = np.arange(0, 70), np.arange(70, 90)
    pca = GenotypePCA(3).fit(store, rows=training)
    values = dense(store.genotypes(), training)
    np.testing.assert_allclose(pca.transform(store, rows=held_out, missing="mean"), values[held_out] @ pca.components_.T, atol=1e-3)
    # The frequencies of everybody would give other scores.
    assert np.abs(pca.transform(store, rows=held_out, missing="mean") - dense(store.genotypes())[held_out] @ pca.components_.T).max() > 0.05


def added_to_the_fitted(training, sample, count):
    """Scores of a sample by principal components of everybody, turned and stretched so that the fitted samples lie where they lay."""
    fitted = scores_of(training, count)
    both = scores_of(np.vstack((training, sample)), count)
    rotation, stretch = orthogonal_procrustes(both[:-1], fitted)
    return both[-1] @ rotation * stretch / (both[:-1] ** 2).sum()


def scores_of(values, count):
    left, singular, _ = np.linalg.svd(values, full_matrices=False)
    return left[:, :count] * singular[:count]


def test_unshrunk_scores_are_those_of_a_sample_that_was_fitted_too(tmp_path):
    codes = ancestry(160, 3000)
    store = store_from_codes(codes, tmp_path / "store")
    training, held_out = np.arange(120), np.arange(120, 160)
    pca = GenotypePCA(4, tolerance=1e-5)
    fitted = pca.fit_transform(store, rows=training)
    values = dense(codes, training)
    wanted = np.array([added_to_the_fitted(values[training], values[row], 4) for row in held_out])
    wanted *= np.sign((scores_of(values[training], 4) * fitted).sum(0))
    plain, unshrunk = (pca.transform(store, rows=held_out, missing="mean", unshrunk=choice) for choice in (False, True))
    errors = [np.abs(scores - wanted).mean(0) for scores in (plain, unshrunk)]
    assert (errors[1][:2] < 0.3 * errors[0][:2]).all(), errors
    # Populations come to lie where the fitted samples of the same population do; without it they are drawn to the origin.
    centres = [np.array([scores[group::4].mean(0)[:2] for group in range(4)]) for scores in (fitted, plain, unshrunk)]
    slopes = [(part * centres[0]).sum() / (centres[0] ** 2).sum() for part in centres[1:]]
    assert slopes[0] < 0.9 and 0.95 < slopes[1] < 1.05, slopes


def test_a_sample_like_the_fitted_ones_in_every_component_is_not_moved(tmp_path):
    # With all components and no residual the new decomposition has no further direction: only the sample's own weight is added.
    codes = ancestry(60, 12, missing=0)
    store = store_from_codes(np.vstack([codes] * 20), tmp_path / "store")
    pca = GenotypePCA(12, tolerance=1e-6).fit(store, rows=np.arange(1140))
    plain, unshrunk = (pca.transform(store, rows=np.arange(1140, 1200), unshrunk=choice) for choice in (False, True))
    np.testing.assert_allclose(unshrunk, plain, atol=0.02 * np.abs(plain).max())


def test_the_result_is_a_function_of_the_seed_alone(store):
    one, same, other = (GenotypePCA(3, seed=seed).fit(store) for seed in (0, 0, 1))
    assert np.array_equal(one.components_, same.components_)
    assert not np.array_equal(one.components_, other.components_)
    np.testing.assert_allclose(one.singular_values_, other.singular_values_, rtol=1e-4)


def test_swapped_flipped_shuffled_and_absent_variants_of_another_file(tmp_path):
    # A transversion, so that a strand can be told.
    codes = ancestry(40, 120)
    variants = [("1", 10 * j + 10, f"rs{j}", "C", "A") for j in range(120)]
    order = np.random.default_rng(0).permutation(120)[:100]
    changed, rows = codes[:, order].copy(), []
    for place, j in enumerate(order):
        swapped, flipped = j % 2 == 1, j % 3 == 1
        pair = ("G", "T") if flipped else ("C", "A")
        if swapped:
            changed[:, place] = np.array([2, 1, 0, 3], np.uint8)[changed[:, place]]
        rows.append(("chr1", 10 * j + 10, f"other{j}", *(pair[::-1] if swapped else pair)))
    first = import_genotypes(write_plink(Genotypes(codes, variants=variants), tmp_path / "a"), tmp_path / "store a")
    second = import_genotypes(write_plink(Genotypes(changed, variants=rows), tmp_path / "b"), tmp_path / "store b")
    pca = GenotypePCA(3).fit(first)
    masked = np.where(np.isin(np.arange(120), order), codes, 3).astype(np.uint8)
    expected = import_genotypes(write_plink(Genotypes(masked, variants=variants), tmp_path / "c"), tmp_path / "store c")
    np.testing.assert_array_equal(pca.transform(second), pca.transform(expected))
    np.testing.assert_array_equal(pca.transform(second, missing="least_squares"), pca.transform(expected, missing="least_squares"))
    counts = pca.alignment(second).counts
    assert counts["absent"] == 20 and sum(counts.values()) == 120 and len(counts) == 5


def test_least_squares_undoes_what_missing_calls_take_away(store):
    codes, pca = store.genotypes(), GenotypePCA(2).fit(store)
    sparse = np.where(np.random.default_rng(1).random(codes.shape) < 0.7, 3, codes)
    thin = store_from_codes(sparse, store.path.parent / "thin")
    values, called = dense(codes), sparse != 3
    expected = [np.linalg.lstsq(pca.components_.T[here], row[here], rcond=None)[0] for row, here in zip(values, called, strict=True)]
    got = pca.transform(thin, missing="least_squares")
    np.testing.assert_allclose(got, np.array(expected), rtol=1e-3, atol=2e-3)
    # The mean shrinks scores to a third, least squares not at all.
    whole = pca.transform(store)
    slope = [(scores * whole).sum() / (whole**2).sum() for scores in (pca.transform(thin, missing="mean"), got)]
    assert slope[0] < 0.45 and 0.8 < slope[1] < 1.2


def test_a_sample_without_any_call_has_scores_0(tmp_path, store):
    codes = store.genotypes()
    codes[5] = 3
    empty = store_from_codes(codes, tmp_path / "empty")
    pca = GenotypePCA(2).fit(store)
    assert not pca.transform(empty, rows=[5], missing="least_squares").any() and not pca.transform(empty, rows=[5]).any()


def test_saved_components_project_alike(tmp_path, store, one_line):
    pca = GenotypePCA(3).fit(store)
    pca.save(tmp_path / "pca.npz")
    loaded = GenotypePCA.load(tmp_path / "pca.npz")
    assert np.array_equal(loaded.transform(store), pca.transform(store)) and loaded.passes_ == pca.passes_
    assert "overwrite=True" in one_line(lambda: pca.save(tmp_path / "pca.npz"))
    (tmp_path / "broken.npz").write_bytes((tmp_path / "pca.npz").read_bytes()[:200])
    assert "broken.npz" in one_line(lambda: GenotypePCA.load(tmp_path / "broken.npz"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.npz", "pca.npz"]


def test_bad_requests_are_one_line(tmp_path, store, one_line):
    assert "at most 4, for 5 samples" in one_line(lambda: GenotypePCA(5).fit(store, rows=range(5)))
    assert "at most 89" in one_line(lambda: GenotypePCA(90).fit(store))
    few = store_from_codes(ancestry(30, 4, missing=0), tmp_path / "few")
    assert "4 variants" in one_line(lambda: GenotypePCA(5).fit(few))
    assert "fit first" in one_line(lambda: GenotypePCA(2).transform(store))
    assert "rows" in one_line(lambda: GenotypePCA(2).fit(store, rows=[1, 90]))
    assert "n_components" in one_line(lambda: GenotypePCA(0))
    assert "least_squares" in one_line(lambda: GenotypePCA(2).fit(store).transform(store, missing="least_square"))
    pca = GenotypePCA(2).fit(store)
    elsewhere = Genotypes(ancestry(10, 6), variants=[("2", j, f"v{j}", "A", "C") for j in range(6)])
    pytest.importorskip("bed_reader")
    assert "in common" in one_line(lambda: pca.transform(import_genotypes(write_plink(elsewhere, tmp_path / "e"), tmp_path / "e")))


def test_constant_variants_are_refused_or_left_out(tmp_path, one_line):
    codes = ancestry(30, 50, missing=0)
    codes[:, 7], codes[:, 9] = 0, 3
    fixed = store_from_codes(codes, tmp_path / "fixed")
    text = one_line(lambda: GenotypePCA(2).fit(fixed))
    assert "2 constant ones of 50" in text and "1:8:A:C" in text and "drop_constant" in text
    pca = GenotypePCA(2, drop_constant=True).fit(fixed)
    without = GenotypePCA(2).fit(store_from_codes(np.delete(codes, [7, 9], axis=1), tmp_path / "without"))
    np.testing.assert_allclose(pca.singular_values_, without.singular_values_, rtol=1e-5)
    assert not pca.components_[:, [7, 9]].any()
    codes[:] = 1
    assert "50 constant ones of 50" in one_line(lambda: GenotypePCA(2, drop_constant=True).fit(store_from_codes(codes * 0, tmp_path / "none")))


def test_passes_that_do_not_suffice_are_told(store):
    with pytest.warns(UserWarning, match="max_passes"):
        GenotypePCA(10, max_passes=1).fit(store)


def test_all_components_of_few_samples(tmp_path):
    codes = ancestry(9, 40, missing=0)
    pca = GenotypePCA(8, drop_constant=True, tolerance=1e-6).fit(store_from_codes(codes, tmp_path / "few"))
    used = codes[:, codes.std(0) > 0]
    np.testing.assert_allclose(pca.singular_values_, np.linalg.svd(dense(used), compute_uv=False)[:8], rtol=1e-4)


def test_eigenpairs_of_a_known_matrix_with_restarts():
    generator = torch.Generator().manual_seed(0)
    frame = torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64))[0]
    values = torch.cat((torch.tensor([50.0, 20.0, 10.0, 9.5]), torch.linspace(8, 0, 196))).double()
    matrix = (frame * values) @ frame.mT
    start = torch.randn(200, 6, generator=generator, dtype=torch.float64)
    found = leading_eigenpairs(lambda block: matrix @ block, start, 4, 1e-9, 200, max_blocks=3)
    assert found.converged and found.products > 4
    torch.testing.assert_close(found.values, values[:4])
    torch.testing.assert_close((found.vectors.mT @ frame[:, :4]).abs(), torch.eye(4, dtype=torch.float64), atol=1e-7, rtol=0)


def test_real_genomes_separate_superpopulations(shared_data, tmp_path):
    pytest.importorskip("bed_reader")
    path, labels = shared_data("1kg/1kg_phase3.bed"), shared_data("1kg/1kg_phase3_samples.tsv")
    store = import_genotypes(path, tmp_path / "store", labels=labels, filters=Filters(min_frequency=0.01))
    assert store.shape == (2504, 18224)
    pca = GenotypePCA(4)
    scores = pca.fit_transform(store)
    # As the data's own description has them: 5.91, 3.43, 1.15 and 0.86 per cent.
    np.testing.assert_allclose(100 * pca.explained_variance_ratio_, [5.91, 3.43, 1.15, 0.86], atol=0.006)
    numbers = store.labels("superpopulation")[0].numpy()
    assert KNeighborsClassifier(15).fit(scores[::2], numbers[::2]).score(scores[1::2], numbers[1::2]) > 0.98
