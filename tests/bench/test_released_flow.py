"""Tests of the released code's flow: our loss and gradients are those of plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from bench import records
from bench.baselines import released_flow
from ddvi_fast import rng
from ddvi_fast.config.compose import compose
from ddvi_fast.objectives import Progress
from ddvi_fast.paper.tables import COLUMNS
from ddvi_fast.priors.base import KDE_POINTS
from ddvi_fast.recipes.build import build
from ddvi_fast.rng import Draws
from ddvi_fast.training.run import load_dataset

EPOCHS, ROWS = 5, 100


def pairs(ours, plain):
    """Pairs of our layers and the corresponding ones of the baseline; the heads of one layer there are rows of one matrix here."""
    encoder, decoder = ours.posterior.encoder.encoder, ours.model.decoder
    for network, other in ((encoder, plain.encoder), (decoder, plain.decoder)):
        yield from ((layer, [same]) for layer, same in zip(network.layers, other.layers, strict=False))
        yield network.output_layer, list(other.heads)
    for step, same in zip(ours.posterior.steps, plain.steps, strict=True):
        yield from zip((*step.layers, step.context_layer), ([same.first], [same.second], [same.third], [same.last], [same.of_context]), strict=True)


@pytest.fixture
def both():
    config = compose(["dataset=digits", "method=iaf", "recipe=released", f"epochs={EPOCHS}", "dataset.encoder.activation=leaky_relu",
                      "dataset.decoder.activation=leaky_relu", "dataset.encoder.hidden=[40,40]", "dataset.decoder.hidden=[40,40]"])  # fmt: skip
    dataset = load_dataset(config)
    ours = build(config, dataset)
    with torch.random.fork_rng():
        plain = released_flow.ReleasedFlow(ours.model.prior.sample(KDE_POINTS, Draws(0)), dataset.num_dimensions, 40, rate=0.0)
    with torch.no_grad():
        for layer, others in pairs(ours, plain):
            layer.weight.copy_(torch.cat([other.weight for other in others]))
            layer.bias.copy_(torch.cat([other.bias for other in others]))
    return ours, plain, dataset.inputs(slice(0, ROWS)).flatten(1)


@pytest.mark.parametrize("epoch", [0, 1.7, 4.2])
def test_loss_and_gradients(both, epoch):
    ours, plain, x = both
    draws = Draws(3, 500)
    (update,) = ours.phases[0].objective.updates(x, Progress(epoch, EPOCHS), draws)
    loss = update.terms().total()
    with torch.random.fork_rng():  # dropout of rate 0 draws nevertheless
        rebuilt, divergence = plain.terms(x, rng.normal(draws, (1, ROWS, 2), rng.START)[0])
    expected = (rebuilt + released_flow.kl_weight(int(epoch), EPOCHS) * divergence).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for layer, others in pairs(ours, plain):
        for name in ("weight", "bias"):
            gradient = torch.cat([getattr(other, name).grad for other in others])
            assert (getattr(layer, name).grad - gradient).norm() <= 1e-4 * gradient.norm() + 1e-9, (layer, name)


def test_the_table_of_seeds_shows_our_runs_and_the_released_one():
    stored = records.read(records.RESULTS / "mnist-released-iaf" / "table.json")
    rows = {row[0]: row[1:] for row in records.read(records.RESULTS / "released_flow.json")["rows"]}
    names = ("evidence_blurred", "elbo_released", "knn_accuracy", "latent_nll", "latent_nll_narrow", "mmd")
    for run in stored["runs"]:
        assert rows[f"ours, seed {run['seed']}"] == [f"{run['figures'][name]:.2f}" for name in names]
    assert rows["released code"] == [f"{stored['paper']['iaf']['pinwheel'][COLUMNS[name].paper][0]:g}" for name in names]
