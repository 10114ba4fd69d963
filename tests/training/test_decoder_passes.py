"""Tests of the rows that the decoder decodes in training, and of epochs that fit into a budget of them."""

import pytest

from ddvi_fast import use_backend
from ddvi_fast.config.compose import compose
from ddvi_fast.engine.loop import train
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.builder import augmentation
from ddvi_fast.training.decoder_passes import decoder_rows, within_passes
from ddvi_fast.training.engines import make_engines
from ddvi_fast.training.run import load_dataset, run
from ddvi_fast.training.session import prepared_folder

NARROW = ("limit=256", "recipe.batch_size=64", "dataset.encoder.hidden=[8]", "dataset.decoder.hidden=[8]")
GAUSSIAN = ("prior=gaussian", "latent_dim=5", "evaluation.evidence=false")
BLIND = ("method=ddvi", "method.sleep.weight=0", "method.sleep.top_weight=0", "method.chain.num_steps=4", "method.chain.hidden_dim=64")
EVALUATION = ("evaluation.iwae_samples=3", "evaluation.elbo_samples=3", "evaluation.limit=20", "evaluation.prior_samples=200",
              "progress=off", "tensorboard=false", "figures=false")  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "passes"),
    [
        (["method=vae"], 1), (["method=vae", "method.num_samples=3"], 3), (["method=iwae", "method.num_samples=7"], 7), (["method=iaf"], 1),
        ([*BLIND], 1), ([*BLIND, "dataset.binarize=true"], 1), ([*BLIND, "method.chain.informed_steps=3"], 4),
        (["method=ddvi", "method.chain.informed_steps=2", *BLIND[3:]], 1 + 2 + 1 + 1),  # fantasies, and an informed step of the regression on them
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)  # fmt: skip
def test_rows_are_those_of_bound_fantasies_and_informed_steps(overrides, passes):
    config = compose([*NARROW, *GAUSSIAN, "epochs=3", *overrides])
    assert decoder_rows(config, load_dataset(config)) == passes * 256 * 3


@pytest.mark.parametrize(
    "overrides",
    [["method=vae"], ["method=ddvi_semi", *BLIND[3:]], ["method=aae"], ["recipe=released", "recipe.prior_epochs=1", "recipe.prior_steps=3"]],
)
def test_rows_are_those_that_training_decodes(overrides):
    config = compose([*NARROW, "epochs=2", *overrides])
    dataset = load_dataset(config)
    expected, seen = decoder_rows(config, dataset), []
    experiment = build(config, dataset)
    experiment.model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:-1].numel()))
    with use_backend("reference"):
        train(experiment.phases, dataset, config.recipe.batch_size, config.seed, make_engines(config), augment=augmentation(config))
    assert sum(seen) == expected > 0


def test_as_many_epochs_as_fit():
    def epochs(*overrides):
        config = compose([*NARROW, *GAUSSIAN, *overrides])
        return within_passes(config, load_dataset(config)).recipe.epochs

    assert [epochs("method=vae", *limit) for limit in ((), ("max_passes=10",), ("max_passes=0.1",), ("max_passes=1000",))] == [400, 10, 1, 400]
    assert epochs("method=iwae", "method.num_samples=4", "max_passes=10") == 2
    assert epochs(*BLIND, "method.chain.informed_steps=4", "max_passes=50") == 10


def test_a_budget_must_be_positive(one_line):
    config = compose([*NARROW, "max_passes=0"])
    one_line(lambda: within_passes(config, load_dataset(config)), "max_passes: expected a positive number")


def test_a_run_has_the_epochs_of_its_budget_and_tells_its_rows(tmp_path):
    config = compose([*NARROW, *GAUSSIAN, *EVALUATION, "method=iwae", "method.num_samples=4", "max_passes=9", f"run_dir={tmp_path / 'run'}"])
    result = run(config)
    assert result.folder.config["recipe"]["epochs"] == 2
    assert result.metrics["decoder_rows"] == 4 * 256 * 2 and result.metrics["nll"] == -result.metrics["iwae"]
    assert "decoder_rows" not in run(compose([*NARROW, *GAUSSIAN, *EVALUATION, "epochs=1", f"run_dir={tmp_path / 'other'}"])).metrics


def test_a_resumed_run_keeps_the_epochs_of_its_budget(tmp_path):
    settings = [*NARROW, *GAUSSIAN, "method=vae", f"run_dir={tmp_path / 'run'}"]
    config = compose([*settings, "max_passes=9"])
    with prepared_folder(config, tmp_path / "run", lambda fresh: within_passes(fresh, load_dataset(fresh))) as (_, begun):
        assert begun.recipe.epochs == 9
    with prepared_folder(config, tmp_path / "run", lambda fresh: pytest.fail("a run that is resumed has its epochs")) as (folder, resumed):
        assert resumed.recipe.epochs == 9 and folder.config["recipe"]["epochs"] == 9
