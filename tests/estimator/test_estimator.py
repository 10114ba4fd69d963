"""Tests of the scikit-learn estimator: contract, recovery of groups, bound in the units of the data, files."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.metrics import normalized_mutual_info_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

import ddvi_fast
from ddvi_fast import DDVI, evidence, metrics
from ddvi_fast.config.compose import compose
from ddvi_fast.config.names import choices
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.estimator import features
from ddvi_fast.estimator.training import CLUSTERING, configure
from ddvi_fast.genomes.convert import store_from_codes
from ddvi_fast.posteriors.base import COORDINATES
from ddvi_fast.posteriors.class_conditional import ClassConditional
from ddvi_fast.recipes.mapping import updated
from ddvi_fast.rng import Draws

SMALL = {"epochs": 2, "hidden": (8,), "num_steps": 2, "n_samples": 2}


@parametrize_with_checks([DDVI(**SMALL), DDVI(**SMALL, n_clusters=3, output="sample")])
def test_scikit_learn_takes_it_for_one_of_its_own(estimator, check):
    before = np.random.get_state()
    check(estimator)
    np.random.set_state(before)  # some of its checks shuffle by the global generator


def blobs(rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Three groups in five columns of unlike units."""
    generator = np.random.default_rng(0)
    labels = np.arange(rows) % 3
    centres = np.array([[0, 0, 0, 0, 0], [4, 0, 4, 0, 4], [0, 4, 4, 4, 0]])
    return (centres[labels] + 0.3 * generator.normal(size=(rows, 5))) * [1, 10, 0.1, 1, 1] + [0, 5, 0, -3, 0], labels


@pytest.fixture(scope="module")
def fitted() -> DDVI:
    return DDVI(n_clusters=3, epochs=80, batch_size=64, hidden=(32,), num_steps=4, learning_rate=5e-3).fit(blobs()[0])


def test_groups_are_found_again_and_probabilities_are_probabilities(fitted):
    x, labels = blobs()
    new, new_labels = blobs(60)
    assert normalized_mutual_info_score(labels, fitted.predict(x)) > 0.95
    probabilities = fitted.cluster_probabilities(new)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    assert np.array_equal(probabilities.argmax(1), fitted.predict(new)) and len(set(zip(new_labels, fitted.predict(new), strict=True))) == 3
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]


def test_the_score_is_a_bound_on_the_evidence_in_the_units_of_the_data(fitted):
    x, _ = blobs(40)
    standardised, volume = fitted.features_.of(x), np.log(blobs()[0].std(0)).sum()
    assert volume > 3, "or a score in other units could pass"
    many = pickle.loads(pickle.dumps(fitted)).set_params(n_samples=1600)
    scores = many.score_samples(x)
    assert scores.shape == (40,) and many.score(x) == pytest.approx(scores.mean())
    # Rows share their noise, so that the mean over rows is as uncertain as one of them: by 0.1 nats for 1,600 draws.
    independent = metrics.elbo(fitted.model_, fitted.posterior_, standardised, 1600).numpy() - volume
    assert abs(scores.mean() - independent.mean()) < 0.5
    exact = evidence.log_evidence_quadrature(fitted.model_, standardised, resolution=200).numpy() - volume
    assert (scores <= exact + 0.5).all() and scores.mean() <= exact.mean()


def test_the_score_is_that_of_the_density_in_any_units():
    x, _ = blobs(40)
    # A power of two and no shift: the standardised rows, and so the two trainings, are the same to the last bit.
    here, there = DDVI(**SMALL).fit(x), DDVI(**SMALL).fit(1024 * x)
    np.testing.assert_allclose(there.score_samples(1024 * x), here.score_samples(x) - 5 * np.log(1024), rtol=1e-6)
    np.testing.assert_allclose(there.transform(1024 * x), here.transform(x), rtol=1e-6)


def test_latents_are_means_of_draws_or_one_of_them(fitted):
    x, _ = blobs(50)
    draws = fitted.posterior_samples(x)
    assert draws.shape == (16, 50, 2)
    np.testing.assert_allclose(fitted.transform(x), draws.mean(0), rtol=1e-5, atol=1e-6)
    one = pickle.loads(pickle.dumps(fitted)).set_params(output="sample")
    np.testing.assert_allclose(one.transform(x), fitted.posterior_samples(x, 1)[0], rtol=1e-5, atol=1e-6)
    own = fitted.posterior_.sample(fitted.features_.of(x), 400).z.mean(0).detach().numpy()  # by draws of their own for each row
    assert np.abs(fitted.posterior_samples(x, 400).mean(0) - own).max() < 0.1


@pytest.mark.parametrize("prior", ["pinwheel", "gaussian"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_every_coordinate_system_has_the_samples_and_weights_of_its_posterior(coordinates, prior, tmp_path):
    x, _ = blobs(20)
    model = DDVI(**{**SMALL, "n_samples": 40}, coordinates=coordinates, prior=prior, random_state=3).fit(x)
    posterior, first = model.posterior_, model.features_.of(x)[:1]
    assert posterior.coordinates == coordinates
    assert isinstance(posterior, ClassConditional) == (prior == "pinwheel" and posterior.pushes)
    # The noise that all rows share is that of the first row of a run.
    own = posterior.sample(first, 40, Draws(3)).z[:, 0].detach().numpy()
    np.testing.assert_allclose(model.posterior_samples(x)[:, 0], own, rtol=1e-4, atol=1e-4)
    weights = posterior.log_weights(model.model_, first, 40, Draws(3)).detach().numpy() - model.features_.log_volume
    np.testing.assert_allclose(model.score_samples(x)[0], weights.mean(), rtol=1e-4, atol=1e-3)
    decoded = model.inverse_transform(model.transform(x))
    assert decoded.shape == (20, 5) and model.sample(3).shape == (3, 5) and np.isfinite(decoded).all()
    loaded = DDVI.load(model.save(tmp_path / "model"))
    assert loaded.coordinates == coordinates
    assert np.array_equal(loaded.score_samples(x), model.score_samples(x)) and np.array_equal(loaded.transform(x), model.transform(x))


def test_a_row_keeps_its_samples_and_classes_in_any_company():
    x, _ = blobs(40)
    model = DDVI(**SMALL, prior="pinwheel", coordinates="prior+encoder").fit(x)
    np.testing.assert_allclose(model.posterior_samples(x[7:9]), model.posterior_samples(x)[:, 7:9], rtol=1e-5, atol=1e-5)


def test_columns_that_do_not_vary_say_nothing():
    x, _ = blobs(40)
    constant = np.column_stack((x, np.full(40, 7.0), np.zeros(40)))
    model = DDVI(**SMALL).fit(constant)
    assert np.isfinite(model.score_samples(constant)).all() and (model.features_.scale[5:] == 1).all()
    assert np.isfinite(DDVI(**SMALL, standardise="matrix").fit_transform(constant)).all()


def test_a_row_gets_the_same_in_any_company(fitted):
    x, _ = blobs(1500)
    whole = fitted.transform(x)
    for rows in (slice(None, None, -1), slice(7, 8), slice(1000, 1100)):
        np.testing.assert_allclose(fitted.transform(x[rows]), whole[rows], rtol=1e-5, atol=1e-5)


def test_samples_and_decoded_latents_look_like_the_data(fitted):
    x, _ = blobs()
    drawn = fitted.sample(2000, seed=1)
    assert drawn.shape == (2000, 5) and not np.array_equal(drawn, fitted.sample(2000, seed=2))
    np.testing.assert_allclose(drawn.mean(0), x.mean(0), atol=0.25 * x.std(0).max(), rtol=0.3)
    error = ((fitted.inverse_transform(fitted.transform(x)) - x) / x.std(0)) ** 2
    assert error.mean() < 0.1


def test_a_saved_model_is_the_model(fitted, tmp_path, one_line):
    x, _ = blobs(30)
    path = fitted.save(tmp_path / "model")
    loaded = DDVI.load(path)
    for method in ("transform", "predict", "score_samples"):
        assert np.array_equal(getattr(loaded, method)(x), getattr(fitted, method)(x)), method
    assert loaded.get_params() == fitted.get_params() and np.array_equal(loaded.sample(3), fitted.sample(3))
    one_line(lambda: fitted.save(path), r"path: expected a new folder")
    assert fitted.save(path, overwrite=True) == path
    one_line(lambda: DDVI.load(tmp_path))


def test_it_works_in_a_pipeline_and_shows_a_bar(capsys):
    x, _ = blobs(60)
    pipeline = make_pipeline(PCA(3), DDVI(**SMALL, standardise="matrix", verbose=True))
    assert pipeline.fit_transform(x).shape == (60, 2) and pipeline.transform(x).dtype == np.float64
    assert re.search(r"m(\d+)/\1\x1b", capsys.readouterr().err), "the last picture is of the last step"
    assert list(pipeline.get_feature_names_out()) == ["ddvi0", "ddvi1"]


def genotypes(rows: int = 80, variants: int = 60, missing: float = 0.05) -> np.ndarray:
    generator = np.random.default_rng(1)
    codes = generator.binomial(2, np.where(np.arange(rows)[:, None] % 2, 0.2, 0.8), (rows, variants))
    codes[generator.random(codes.shape) < missing] = 3
    return codes


@pytest.mark.parametrize("likelihood", ["gaussian", "binomial"])
def test_a_packed_store_is_as_good_as_a_matrix(likelihood, tmp_path, monkeypatch):
    store = store_from_codes(genotypes(), tmp_path / "store")
    options = {"hidden": (16,), "num_steps": 3, "epochs": 100, "learning_rate": 5e-3, "batch_size": 40, "n_principal": 3}
    model = DDVI(n_clusters=2, likelihood=likelihood, **options).fit(store)
    assert normalized_mutual_info_score(np.arange(80) % 2, model.predict(store)) > 0.95
    assert model.transform(store).shape == (80, 2) and np.isfinite(model.score_samples(store)).all() and model.n_features_in_ == 60
    loaded = DDVI.load(model.save(tmp_path / "model"))
    assert np.array_equal(loaded.transform(store), model.transform(store))
    monkeypatch.setattr(features, "class_name", lambda _: None)  # folders of earlier versions do not name the class of their features
    assert np.array_equal(DDVI.load(model.save(tmp_path / "earlier")).transform(store), model.transform(store))
    with pytest.raises(ValueError, match=r"store: expected"):
        model.transform(_elsewhere(tmp_path))


@pytest.mark.parametrize("likelihood", ["gaussian", "binomial"])
def test_some_samples_of_a_store_are_fitted_as_a_store_of_theirs(likelihood, tmp_path, one_line):
    codes = genotypes()
    whole, part = store_from_codes(codes, tmp_path / "whole"), store_from_codes(codes[:60], tmp_path / "part")
    model = DDVI(**SMALL, likelihood=likelihood, n_principal=3)
    expected = clone(model).fit(part).posterior_samples(whole)
    for rows in (np.arange(60), np.arange(80) < 60, slice(60), list(range(-80, -20))):
        assert np.array_equal(clone(model).fit(whole, rows=rows).posterior_samples(whole), expected)
    assert clone(model).fit_transform(whole, rows=slice(60)).shape == (80, 2)
    one_line(lambda: model.fit(whole, rows=[80]), "rows: expected")
    one_line(lambda: model.fit(whole, rows=[3]), "rows: expected at least two samples")
    one_line(lambda: model.fit(codes.astype(float), rows=[3, 4]), "rows: expected None for a matrix")


@pytest.mark.parametrize("name", ["os.system", "ddvi_fast.nowhere.Features", "ddvi_fast.data.Nothing", "ddvi_fast.data.load"])
def test_features_of_another_class_are_refused(name, fitted, tmp_path, monkeypatch, one_line):
    monkeypatch.setattr(features, "class_name", lambda _: name)
    path = fitted.save(tmp_path / "model")
    one_line(lambda: DDVI.load(path), "expected features of a class of ddvi_fast, got")


def _elsewhere(folder):
    """A store without any variant that was fitted."""
    store = store_from_codes(genotypes(), folder / "elsewhere")
    table = store.path / "variants.tsv"
    table.write_text(re.sub("^1\t", "7\t", table.read_text(), flags=re.M))
    return type(store)(store.path)


def test_genotypes_of_a_matrix_and_of_a_store_are_one(tmp_path, one_line):
    codes = genotypes()
    matrix, store = np.where(codes == 3, np.nan, codes.astype(float)), store_from_codes(codes, tmp_path / "store")
    one, other = DDVI(**SMALL, likelihood="binomial").fit(matrix), DDVI(**SMALL, likelihood="binomial").fit(store)
    scores = one.score_samples(matrix)
    assert np.array_equal(scores, other.score_samples(store)) and np.array_equal(scores, one.score_samples(store))
    one_line(lambda: DDVI(**SMALL, likelihood="binomial").fit(matrix / 2), "whole numbers")


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({"likelihood": "poisson"}, "likelihood: expected one of"),
        ({"prior": "pinweel"}, "did you mean pinwheel"),
        ({"standardise": "rows"}, "standardise"),
        ({"output": "median"}, "output"),
        ({"n_samples": 0}, "n_samples"),
        ({"coordinates": "priors"}, "coordinates: expected one of"),
        ({"settings": ("recipe.epoch=1",)}, "recipe.epochs"),
        ({"likelihood": "binomial"}, "values from 0 to 2"),
    ],
)
def test_bad_parameters_are_one_line(parameters, words, one_line):
    one_line(lambda: DDVI(**{**SMALL, **parameters}).fit(blobs(20)[0]), words)


def test_a_prior_without_classes_has_no_clusters(one_line):
    model = DDVI(**SMALL, prior="gaussian").fit(blobs(20)[0])
    one_line(lambda: model.predict(blobs(20)[0]), "prior: expected one with classes")


def test_it_is_found_at_the_top():
    assert "DDVI" in dir(ddvi_fast) and ddvi_fast.DDVI is DDVI


def test_the_settings_of_clusters_are_those_of_the_command_line():
    assert updated(Config(), {**CLUSTERING, "prior.name": "gaussian"}) == compose(["method=ddvi_clustering"])


@pytest.mark.parametrize("prior", choices("prior"))
def test_priors_are_those_of_the_command_line(prior):
    rows = torch.zeros(4, 3)
    config = configure({**DDVI(prior=prior).get_params(), "n_components": 2}, 0, Dataset("rows", rows, None, rows, None))
    assert config.prior == compose([f"prior={prior}"]).prior


def test_settings_are_a_mapping_or_strings():
    x = blobs(40)[0]
    maps = [DDVI(**SMALL, settings=settings).fit(x).transform(x) for settings in (("recipe.kl.weight=0.5",), {"recipe.kl.weight": 0.5})]
    np.testing.assert_array_equal(*maps)
