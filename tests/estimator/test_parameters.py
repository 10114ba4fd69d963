"""Tests of parameters of the estimator: NumPy's numbers, settings that do nothing, changes after the fit, and what is saved."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils import validation

from ddvi_fast import DDVI
from ddvi_fast.genomes.convert import store_from_codes
from tests.stress.settings import AUTOCAST, STATES

SMALL = {"epochs": 1, "hidden": (4,), "num_steps": 2, "n_samples": 2}
X = np.random.default_rng(0).normal(size=(40, 3))


class Frame(np.ndarray):
    """A matrix with names of columns."""


@pytest.fixture
def frame(monkeypatch):
    """``frame(matrix, names)``: a data frame, as scikit-learn sees it where pandas is installed."""
    monkeypatch.setattr(validation, "_get_feature_names", lambda X: getattr(X, "names", None))

    def make(values: np.ndarray, names: list[str]) -> Frame:
        made = values.view(Frame)
        made.names = np.array(names, dtype=object)
        return made

    return make


@pytest.fixture(scope="module")
def fitted() -> DDVI:
    return DDVI(**SMALL).fit(X)


@pytest.fixture(scope="module")
def latent() -> DDVI:
    return DDVI(**SMALL, coordinates="latent").fit(X)


NUMPY = {
    "n_components": np.int64(2), "n_clusters": np.int32(3), "n_samples": np.uint8(2), "num_steps": np.int16(2), "epochs": np.int64(1),
    "batch_size": np.int64(16), "learning_rate": np.float32(0.001), "hidden": np.array([4, 4]), "random_state": np.int64(3),
    "verbose": np.bool_(False),
    "prior": np.str_("gaussian"), "n_principal": np.array([5])[0], "device": torch.device("cpu"), "settings": {"recipe.kl.weight": np.float64(0.5)},
}  # fmt: skip


def test_numpys_numbers_are_parameters_and_are_saved_as_pythons(tmp_path):
    model = DDVI(**NUMPY).fit(X)
    state = json.loads((model.save(tmp_path / "model") / "state.json").read_text())["state"]
    plain = {**NUMPY, "hidden": [4, 4], "verbose": False, "prior": "gaussian", "device": "cpu", "settings": {"recipe.kl.weight": 0.5}}
    for name, value in plain.items():
        assert state["parameters"][name] == pytest.approx(value) if isinstance(value, np.floating) else state["parameters"][name] == value, name
    again = DDVI.load(tmp_path / "model")
    assert np.array_equal(again.transform(X), model.transform(X)) and np.array_equal(again.sample(np.int64(2), np.uint8(1)), model.sample(2, 1))
    python = DDVI(**{name: state["parameters"][name] for name in NUMPY}).fit(X)
    assert np.array_equal(python.transform(X), model.transform(X))


def test_a_grid_of_numpys_numbers_is_searched():
    grid = {"n_samples": np.arange(1, 3), "n_clusters": np.arange(2, 4), "hidden": [np.array([4]), [4, 4]]}
    found = GridSearchCV(DDVI(**SMALL), grid, cv=2, error_score="raise").fit(X)
    assert np.isfinite(found.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("state", STATES | AUTOCAST)
def test_states_of_torch_change_nothing(state, fitted, tmp_path):
    z = fitted.transform(X)
    with (STATES | AUTOCAST)[state]():
        model = DDVI(**SMALL).fit(X)
        again = DDVI.load(model.save(tmp_path / "model"))
        for other in (model, again, fitted):
            assert np.array_equal(other.transform(X), z) and np.array_equal(other.score_samples(X), fitted.score_samples(X))
            assert np.array_equal(other.sample(3), fitted.sample(3)) and np.array_equal(other.inverse_transform(z), fitted.inverse_transform(z))
    again.model_.decoder(torch.zeros(1, 2)).sum().backward()


def test_rows_of_any_kind(fitted, one_line):
    z = fitted.transform(X)
    for rows in (X[::-1], X.astype(">f8"), torch.from_numpy(X), torch.from_numpy(X).requires_grad_(), np.asfortranarray(X), X.tolist()):
        model = DDVI(**SMALL).fit(rows)
        assert model.transform(X).dtype == np.float64 and model.n_features_in_ == 3
    assert fitted.transform(torch.from_numpy(X).float()).dtype == np.float32
    masked = np.ma.masked_array(X, mask=X > 1)
    for call in (lambda: DDVI(**SMALL).fit(masked), lambda: fitted.transform(masked), lambda: fitted.inverse_transform(masked[:, :2])):
        one_line(call, "X: expected values without a mask")
    one_line(lambda: fitted.transform(1e300 * X), "X: expected values that single precision holds after scaling")
    one_line(lambda: fitted.transform(torch.zeros(2, 3, device="meta")), "X: expected a tensor with values")
    one_line(lambda: fitted.inverse_transform(np.full((2, 2), np.nan)), "X: expected finite values")
    for latents in (z + 1j, [["a", "b"]]):
        with pytest.raises(ValueError):
            fitted.inverse_transform(latents)


@pytest.mark.parametrize("path", [None, 3, "", b"x"])
def test_what_is_no_path_is_refused(path, fitted, one_line):
    one_line(lambda: fitted.save(path, overwrite=True), "path: expected a path")
    one_line(lambda: DDVI.load(path), "path: expected a path")


def test_threads_fit_at_once():
    import joblib

    with joblib.parallel_backend("threading", n_jobs=3):
        threads = cross_val_score(DDVI(**SMALL), X, cv=3, error_score="raise")
    assert np.array_equal(threads, cross_val_score(DDVI(**SMALL), X, cv=3, error_score="raise"))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"n_samples": np.int64(0)}, "n_samples: expected an integer of at least 1, got 0"),
        ({"n_samples": np.float64(2.5)}, "n_samples: expected an integer of at least 1, got 2.5"),
        ({"n_samples": True}, "n_samples: expected an integer"),
        ({"n_components": 2.0}, "n_components: expected an integer"),
        ({"n_clusters": 0}, "n_clusters"),
        ({"hidden": 8}, "hidden: expected a sequence of integers"),
        ({"hidden": (0,)}, r"hidden\[0\]"),
        ({"hidden": np.array([4.0])}, r"hidden\[0\]: expected an integer"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": "3"}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": -1e-3}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"device": "gpu"}, "device"),
        ({"random_state": -1}, "random_state"),
        ({"random_state": 2**64}, "random_state"),
        ({"random_state": np.random.default_rng(0)}, "random_state: expected an integer, None or"),
        ({"prior": 3}, "prior: expected one of"),
        ({"prior": ["pinwheel"]}, "prior: expected one of"),
        ({"settings": "recipe.lr=1"}, "settings: expected a mapping, or strings"),
        ({"settings": 3}, "settings: expected a mapping, or strings"),
        ({"settings": (3,)}, "settings: expected a mapping, or strings"),
        ({"settings": {3: 4}}, "settings: expected names"),
    ],
)
def test_impossible_parameters_are_refused_in_one_line(parameters, words, one_line):
    one_line(lambda: DDVI(**{**SMALL, **parameters}).fit(X), words)


@pytest.mark.parametrize(
    "setting",
    ["method=vae", "prior=square", "recipe=released", "dataset=mnist", "run_dir=x", "data_dir=x", "threads=2", "epochs=3", "latent_dim=3", "seed=1",
     "device=cpu", "tensorboard=false", "figures=false", "evaluation.limit=3", "checkpoint_steps=3", "engine=local", "max_minutes=1", "limit=3",
     "dataset.name=mnist", "dataset.flip=true", "dataset.labels=3", "dataset.likelihood=bernoulli", "dataset.genotypes.label=x", "split_seed=1",
     "capture=true", "overwrite=true", "accumulation=2", "prior.resolution=10", "prior.name=square", "recipe.average_decay=0.9", "recipe.epochs=3",
     "recipe.defects.dropout_at_evaluation=true", "method.posterior=gaussian", "method.task=semi", "method.name=vae", "method.chain.num_steps=4",
     "method.clustering.num_clusters=4", "method.flow.num_levels=3", "method.map.perplexity=3", "method.semi.noise=1", "method.clustering.eta=1",
     "recipe.kl.fraction=0.3", "recipe.prior_blur_fraction=0.2", "recipe.context_dropout=0.3", "recipe.sigmoid_variances=true", "method.weight=3",
     "recipe.defects.log_var_twice=true", "dataset.binarize=true", "max_passes=1"],
)  # fmt: skip
def test_settings_that_would_do_nothing_are_refused(setting, one_line):
    one_line(lambda: DDVI(**SMALL, settings=(setting,)).fit(X))


@pytest.mark.parametrize(
    "setting",
    ["recipe.kl.weight=0.5", "method.chain.hidden_dim=8", "method.objective=elbo", "method.num_samples=2",
     "dataset.encoder.hidden=[8]", "dataset.decoder.activation=tanh", "dataset.encoder.dropout=0.5", "dataset.likelihood_options.scale=0.1",
     "recipe.max_norm=0.001", "prior.kernel_width=0.5", "method.beta=3", "method.sleep.weight=0", "recipe.match_prior=false", "recipe.prior_blur=1"],
)  # fmt: skip
def test_settings_that_are_taken_change_the_model(setting, latent):
    assert not np.array_equal(DDVI(**SMALL, settings=(setting,), coordinates="latent").fit(X).transform(X), latent.transform(X))


def test_a_precision_that_the_processor_emulates_is_told():
    with pytest.warns(UserWarning, match="^fp16 is emulated on this cpu, so it is no faster than precision=float32$"):
        DDVI(**SMALL, settings=("precision=fp16",)).fit(X)


def test_fp16_takes_all_steps_of_float32():
    """A step that is left out, because its gradients overflow at the first loss scale, moves latents by far more than rounding does."""
    few = {**SMALL, "epochs": 30}
    with pytest.warns(UserWarning, match="^fp16 is emulated"):
        narrow = DDVI(**few, settings=("precision=fp16",)).fit(X).transform(X)
    assert np.abs(narrow - DDVI(**few).fit(X).transform(X)).mean() < 1e-3


def test_a_fitted_model_stays_what_it_was(tmp_path, one_line):
    model = DDVI(**SMALL).fit(X)
    z, before = model.transform(X), model.score_samples(X)
    changes = {
        "n_components": 5,
        "prior": "gaussian",
        "likelihood": "binomial",
        "hidden": (9,),
        "n_clusters": 4,
        "coordinates": "latent",
        "device": "gpu",
    }
    decoded, drawn = model.inverse_transform(z), model.sample(3)
    model.set_params(**changes, standardise="none", random_state=7, settings=("nonsense",), num_steps=9)
    assert np.array_equal(model.transform(X), z) and np.array_equal(model.score_samples(X), before)
    assert np.array_equal(model.inverse_transform(z), decoded) and np.array_equal(model.sample(3), drawn)
    one_line(lambda: model.inverse_transform(np.zeros((3, 5))), r"shape \[N, 2\]")
    loaded = DDVI.load(model.save(tmp_path / "model"))
    assert np.array_equal(loaded.transform(X), z) and loaded.n_components == 2 and loaded.likelihood == "gaussian" and loaded.random_state == 0
    # Parameters of later calls may change, and are checked then.
    model.set_params(output="median")
    one_line(lambda: model.transform(X), "output")
    model.set_params(output="mean", n_samples=0)
    one_line(lambda: model.transform(X), "n_samples")


def test_a_fit_that_fails_leaves_the_earlier_model(frame, one_line):
    x = frame(X, list("abc"))
    model = DDVI(**SMALL).fit(x)
    z = model.transform(x)
    one_line(lambda: model.set_params(settings=("run_dir=x",)).fit(frame(X[:, :2].copy(), list("xy"))))
    assert np.array_equal(model.transform(x), z) and list(model.feature_names_in_) == list("abc")


def test_names_of_columns_are_kept(tmp_path, frame):
    x = frame(X, ["a", "b", "ç"])
    model = DDVI(**SMALL).fit(x)
    loaded = DDVI.load(model.save(tmp_path / "model"))
    assert list(loaded.feature_names_in_) == ["a", "b", "ç"] and np.array_equal(loaded.transform(x), model.transform(x))
    for estimator in (model, loaded):
        with pytest.raises(ValueError, match="feature names"):
            estimator.transform(frame(X[:, [2, 0, 1]], ["ç", "a", "b"]))
    again = DDVI.load(loaded.save(tmp_path / "again"))
    assert list(again.feature_names_in_) == ["a", "b", "ç"]
    plain = DDVI.load(DDVI(**SMALL).fit(X).save(tmp_path / "plain"))
    assert not hasattr(plain, "feature_names_in_")


def codes(rows: int = 24, variants: int = 12) -> np.ndarray:
    return np.random.default_rng(1).binomial(2, 0.5, (rows, variants))


def test_a_model_of_a_store_is_overwritten_as_its_own(tmp_path, one_line):
    store = store_from_codes(codes(), tmp_path / "store")
    model = DDVI(**SMALL, n_principal=2).fit(store)
    path = model.save(tmp_path / "model")
    names = {file.name for file in path.iterdir()}
    z = DDVI.load(model.save(path, overwrite=True)).transform(store)
    assert np.array_equal(z, model.transform(store)) and {file.name for file in path.iterdir()} == names and len(list(tmp_path.iterdir())) == 2
    # A model without such a file takes the place, and leaves none.
    DDVI(**SMALL).fit(X).save(path, overwrite=True)
    assert {file.name for file in path.iterdir()} == {"weights.safetensors", "state.json"}
    # A folder of an earlier version, whose state does not list its files.
    (path / "components.npz").write_bytes(b"earlier")
    model.save(path, overwrite=True)
    (path / "thesis.tex").write_text("mine")
    one_line(lambda: model.save(path, overwrite=True), "another kind")
    assert (path / "thesis.tex").read_text() == "mine"
    one_line(lambda: model.transform(codes().astype(float)), "X: expected a store")
    one_line(lambda: DDVI(**SMALL).fit(codes().astype(float)).transform(store), "X: expected a matrix")


def test_a_damaged_file_of_components_is_named(tmp_path, one_line):
    path = DDVI(**SMALL, n_principal=2).fit(store_from_codes(codes(), tmp_path / "store")).save(tmp_path / "model")
    data = bytearray((path / "components.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "components.npz").write_bytes(data)
    one_line(lambda: DDVI.load(path), "components.npz")
    (path / "components.npz").unlink()
    one_line(lambda: DDVI.load(path), "components.npz")


@pytest.mark.parametrize("value", [0.5, 1.999, 3.0, -1.0])
def test_transform_checks_what_fit_checks(value, one_line):
    model = DDVI(**SMALL, likelihood="binomial").fit(codes().astype(float))
    wrong = codes().astype(float)
    wrong[3, 4] = value
    for call in (model.transform, model.score_samples, model.posterior_samples, DDVI(**SMALL, likelihood="binomial").fit):
        one_line(lambda call=call: call(wrong), "X: expected")


def test_a_working_folder_is_no_place_for_a_model(tmp_path, monkeypatch, fitted, one_line):
    monkeypatch.chdir(tmp_path)
    one_line(lambda: fitted.save("."), "path: expected a new folder")
    (tmp_path / "file").write_text("mine")
    one_line(lambda: fitted.save(".", overwrite=True), "another kind")
    one_line(lambda: fitted.save("file", overwrite=True), "another kind")
    one_line(lambda: DDVI.load("."), "state.json")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("verbose", ["no", None, 0.5, []])
def test_verbose_is_true_or_false(verbose, one_line):
    one_line(lambda: DDVI(**SMALL, verbose=verbose).fit(X), "^verbose: expected true or false, got ")
