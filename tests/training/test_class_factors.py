"""Tests of the factors of a q(c | x) that sees the model, fitted when all else is trained."""

import pytest
import torch

from ddvi_fast.config.compose import compose
from ddvi_fast.training.run import Run, train_run

SETTINGS = (
    "dataset=digits", "method=ddvi", "prior=pinwheel", "limit=100", "epochs=2", "recipe.min_steps=1", "dataset.encoder.hidden=[8]",
    "dataset.decoder.hidden=[8]", "method.chain.informed_steps=1", "progress=off", "figures=false", "evaluation.evidence=false",
    "evaluation.limit=20", "evaluation.prior_samples=50",
)  # fmt: skip


@pytest.fixture(scope="module")
def posteriors(tmp_path_factory):
    """The posteriors of a run whose q(c | x) sees the model, of the same run again, and of one without."""
    folder = tmp_path_factory.mktemp("runs")
    for name, informed in (("first", "fitted"), ("second", "fitted"), ("plain", "null")):
        train_run(compose([*SETTINGS, f"method.chain.informed_classes={informed}", f"run_dir={folder / name}"]))
    return {name: Run.load(folder / name).experiment.posterior for name in ("first", "second", "plain")}


def test_the_factors_are_fitted_and_kept(posteriors):
    first, second = (posteriors[name].class_factors for name in ("first", "second"))
    assert not torch.equal(first, torch.tensor((1.0, 0.0)))
    assert torch.equal(first, second)


def test_all_else_is_trained_as_without(posteriors):
    informed, plain = posteriors["first"].state_dict(), posteriors["plain"].state_dict()
    assert informed.keys() - plain.keys() == {"class_factors"}
    assert all(torch.equal(informed[name], value) for name, value in plain.items())
