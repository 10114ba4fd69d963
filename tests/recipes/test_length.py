"""Tests of the length of training on small data sets."""

import json
import warnings

import numpy as np
import pytest

from ddvi_fast import DDVI
from ddvi_fast.config.compose import compose
from ddvi_fast.data.batches import num_batches
from ddvi_fast.recipes.length import fitted_to_size


@pytest.mark.parametrize("size", [3, 50, 200, 999, 2504])
def test_clustering_takes_enough_steps_in_batches_of_a_quarter(size):
    recipe = fitted_to_size(compose(["method=ddvi_clustering"]), size).recipe
    steps = recipe.epochs * num_batches(size, recipe.batch_size)
    assert steps >= 2000 and recipe.batch_size <= max(1, size / 4)
    assert recipe.epochs == 300 or steps - num_batches(size, recipe.batch_size) < 2000  # no epoch more than that takes


def test_stated_epochs_and_other_methods_stay():
    stated = compose(["method=ddvi_clustering", "epochs=7"])
    assert fitted_to_size(stated, 40).epochs == 7 and fitted_to_size(stated, 40).recipe.epochs == stated.recipe.epochs
    other = compose(["method=ddvi"])
    assert fitted_to_size(other, 40) is other


def test_an_estimator_tells_when_the_stated_batches_are_too_large():
    x = np.random.default_rng(0).normal(size=(40, 3))
    settings = {"recipe.min_steps": 2, "recipe.epochs": 1}
    with pytest.warns(UserWarning, match="batch_size: batches of 10 of the 40 training examples, not of 16"):
        DDVI(n_clusters=2, batch_size=16, hidden=(4,), settings=settings).fit(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DDVI(n_clusters=2, batch_size=10, hidden=(4,), settings=settings).fit(x)


def test_a_run_of_a_small_data_set_has_that_length_and_repeats(tmp_path):
    from ddvi_fast.training.run import train_run

    small = [
        "dataset=digits", "method=vae_clustering", "method.clustering.num_clusters=3", "dataset.encoder.hidden=[8]", "dataset.decoder.hidden=[8]",
        "figures=false", "progress=off", "tensorboard=false", "evaluation.evidence=false", "evaluation.iwae_samples=2",
        "evaluation.elbo_samples=2", "evaluation.limit=20", "evaluation.prior_samples=50",
        "recipe.min_steps=30", "recipe.epochs=2", "limit=40",
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="batch_size: batches of 10 of the 40 training examples, not of 256"):
        first, second = (train_run(compose([*small, f"run_dir={tmp_path / name}"])) for name in "ab")
    saved = json.loads((first.folder.path / "config.json").read_text())
    assert (saved["recipe"]["epochs"], saved["recipe"]["batch_size"]) == (8, 10)
    steps = [json.loads(line)["step"] for line in first.folder.metrics.read_text().splitlines()]
    assert max(steps) == 32
    assert {key: value for key, value in first.metrics.items() if "seconds" not in key} == {
        key: value for key, value in second.metrics.items() if "seconds" not in key
    }
