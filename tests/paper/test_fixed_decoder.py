"""The table of posteriors of a fixed decoder: its figures, its budget, its command."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.distributions import MultivariateNormal

from bench import records
from ddvi_fast import InputError, likelihoods, models, networks, priors
from ddvi_fast.cli.reproduce import main
from ddvi_fast.objectives import Progress
from ddvi_fast.paper import fixed_decoder, fixed_decoder_table
from ddvi_fast.paper.fixed_decoder_posteriors import IMAGES, ROWS, SAMPLES, STEPS, UPDATES, Bound, Budget, Table, make, optimize
from ddvi_fast.posteriors import FullGaussian, Gaussian
from ddvi_fast.rng import Draws

TINY = ("dataset=digits", "images=10", "latents=3", "hidden=8", "epochs=1", "seconds=0.05", "batch_size=64", "optimized_steps=3", "samples=20",
        "evidence_samples=60", "chains=2", "temperatures=4")  # fmt: skip


def test_figures_are_those_of_their_definitions() -> None:
    log_weights = torch.randn(40, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, weights = fixed_decoder_table.figures_of(log_weights), log_weights.exp()
    assert found["elbo"] == pytest.approx(float(log_weights.mean()))
    assert found["iwae"] == pytest.approx(float(weights.mean(0).log().mean()))
    few = torch.stack([weights[first : first + 10].mean(0).log() for first in range(0, 40, 10)])
    assert found["iwae_few"] == pytest.approx(float(few.mean()))
    shares = weights.sum(0) ** 2 / weights.square().sum(0) / 40
    assert found["effective"] == pytest.approx(float(shares.median()))


def linear_model(gain: float = 2.0) -> tuple[models.LatentVariableModel, torch.Tensor, torch.Tensor]:
    """A linear decoder with noise, data, and the exact evidence of each row."""
    decoder = networks.MLP(3, [], 6, draws=Draws(2))
    with torch.no_grad():
        decoder.output_layer.weight.mul_(gain)
    model = models.LatentVariableModel(priors.make("gaussian", dim=3), decoder, likelihoods.make("gaussian", scale=0.5)).requires_grad_(False)
    x, weight = model.simulate(8, Draws(4)).x, decoder.output_layer.weight
    evidence = MultivariateNormal(decoder.output_layer.bias, weight @ weight.T + 0.25 * torch.eye(6)).log_prob(x)
    return model, x, evidence


def test_a_full_gaussian_for_each_row_reaches_the_evidence_and_a_diagonal_one_does_not() -> None:
    model, x, evidence = linear_model()
    gaps = {}
    for name, zeros in (("diagonal", 0), ("full", 3)):
        table = Table(torch.zeros(8, 6), zeros)
        posterior = Gaussian(table, 3, coordinates="encoder") if name == "diagonal" else FullGaussian(table, None, 3)
        spent = optimize(model, posterior, x, 400, seed=0)
        gaps[name] = float((evidence - posterior.log_weights(model, x, 500, Draws(5)).mean(0)).mean().detach())
        assert spent.passes == 400 * 8 * 10
    assert abs(gaps["full"]) < 0.02 and gaps["diagonal"] > 0.1


def test_the_bound_is_that_of_one_sample() -> None:
    model, x, _ = linear_model()
    posterior = Gaussian(Table(torch.zeros(8, 6), 0), 3)
    (update,) = Bound(model, posterior).updates(x, Progress(0, 1), Draws(6))
    torch.testing.assert_close(update.terms().values["bound"], -posterior.log_weights(model, x, 1, Draws(6))[0])


def test_the_share_of_a_budget_is_that_of_the_scarcer_good() -> None:
    assert Budget(10.0, 100).share_in(Budget(5.0, 80)) == 0.5 and Budget(10.0, 100).share_in(Budget(20.0, 80)) == 0.8


@torch.no_grad()
def test_untrained_chains_are_the_gaussians_of_their_frames() -> None:
    """In an updated frame the exact posterior of a linear decoder, outside it the Gaussian of the encoder."""
    model, x, evidence = linear_model(gain=0.7)  # for which two updates are enough
    encoder = networks.MLP(6, [8], 6, draws=Draws(7))
    weights = {row: make(row, model, encoder, x, 0).log_weights(model, x, 400, Draws(3)) for row in ("encoder", "blind", "updated", "informed")}
    for row in ("updated", "informed"):
        assert float((weights[row] - evidence).abs().max()) < 1e-2
    bounds = {row: float(one.mean()) for row, one in weights.items()}
    assert bounds["encoder"] < float(evidence.mean()) - 1 and bounds["blind"] == pytest.approx(bounds["encoder"], abs=0.5)


@pytest.mark.skipif(find_spec("zuko") is None, reason="zuko is not installed")
def test_the_command_makes_every_row_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["fixed-decoder", *TINY, "--seeds", "1", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    main(call)
    first = capsys.readouterr().out
    assert first.count("seed 0:") == len(ROWS)
    main(call)
    second = capsys.readouterr().out
    assert "seed 0:" not in second  # nothing is done twice
    record = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))
    assert records.markdown_of(record) == (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    informed = record["runs"]["informed"][0]
    for row in ("tuned", "full", "iaf", "spline", "blind", "in-encoder"):
        (other,) = record["runs"][row]
        assert other["seconds"] >= informed["seconds"] and other["passes"] >= informed["passes"]
    step = IMAGES * (SAMPLES * (1 + STEPS) + UPDATES * 2 * 3)  # a frame update looks at 2 D points for each image
    assert informed["passes"] > 0 and informed["passes"] % step == 0
    assert all(record["runs"][row][0]["passes"] == 0 for row in ("encoder", "updated"))
    for seeds in record["runs"].values():
        assert all(math.isfinite(value) for one in seeds for value in one.values())
    assert all(one["elbo"] <= one["iwae_few"] <= one["iwae"] for row, (one,) in record["runs"].items() if row != "annealed")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["imges=10"], "did you mean images"),
        (["images=ten"], "images: expected a value of type int, got 'ten'"),
        (["images=0"], "images: expected an integer of at least 1"),
        (["seconds=0"], "seconds: expected a number above 0"),
        (["images=10", "images=20"], "images: expected one value, got 10 and 20"),
        (["data_dir=a", "data_dir=b"], "data_dir: expected one value, got a and b"),
        (["images"], "override: expected name=value, got 'images'"),
    ],
)
def test_settings_that_cannot_be_are_named(overrides: list[str], words: str) -> None:
    with pytest.raises(InputError) as error:
        fixed_decoder.reproduce(overrides)
    assert words in str(error.value)


def test_options_of_other_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--epochs: expected no such option for fixed-decoder"):
        main(["fixed-decoder", "--epochs", "3", "--runs", str(tmp_path)])
