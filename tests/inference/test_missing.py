"""Missing entries: posteriors given any part of the data against the exact ones, embeddings with a mask, and what is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from ddvi_fast import InputError
from ddvi_fast.inference import Architecture, FittedPosterior, Model, SetEmbedding, Training, fit_posterior, load
from ddvi_fast.inference.missing import filled, hidden, with_mask
from ddvi_fast.rng import Draws

NOISE = torch.tensor([0.5, 1.0, 2.0])
GAUSSIAN = Architecture(family="gaussian", hidden=(32,))
QUICK = Training(steps=3, batch_size=32)


class Sensors:
    """z ~ N(0, 1), and three sensors x_i = z + noise_i."""

    def simulate(self, n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 1)
        return z, z + NOISE * torch.randn(n, 3)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        return Normal(0, 1).log_prob(z[..., 0]) + Normal(z, NOISE).log_prob(x).sum(-1)


def exact(x: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of z given the entries of `x` [3] that are there."""
    there = ~x.isnan()
    precision = 1 + (there / NOISE.square()).sum()
    return float((x.nan_to_num() / NOISE.square()).sum() / precision), float(precision.rsqrt())


@pytest.fixture(scope="module")
def sensors() -> FittedPosterior:
    return fit_posterior(
        Model(simulate=Sensors().simulate), missing="random", architecture=Architecture(num_steps=6, hidden=(64, 64)),
        training=Training(steps=1000, batch_size=256),
    )  # fmt: skip


def subsets(x: Tensor) -> Tensor:
    """All rows in which some of the entries of `x` [3] are missing."""
    there = torch.tensor(list(itertools.product((True, False), repeat=3)))
    return torch.where(there, x, torch.nan)


def test_any_part_of_the_data_has_its_own_posterior(sensors: FittedPosterior) -> None:
    rows = torch.cat([subsets(torch.tensor(x)) for x in ([1.0, -0.5, 2.0], [-1.2, -1.0, 0.5])])
    draws = sensors.sample(4000, rows)[..., 0]
    for row, own in zip(rows, draws.unbind(1), strict=True):
        mean, deviation = exact(row)
        assert abs(float(own.mean()) - mean) < 0.15 * deviation + 4 * deviation / math.sqrt(4000), row
        assert abs(float(own.std()) / deviation - 1) < 0.08 + 4 / math.sqrt(8000), row
    assert sensors.diagnostics(200, 99).calibrated(errors=6)


def test_rows_stay_apart_and_a_loaded_posterior_takes_missing_entries(sensors: FittedPosterior, tmp_path) -> None:
    rows = subsets(torch.tensor([1.0, -0.5, 2.0]))
    draws = sensors.sample(5, rows)
    torch.testing.assert_close(sensors.sample(5, rows[:3]), draws[:, :3])
    again = load(sensors.save(tmp_path / "kept"))
    assert again.missing == "random" and torch.equal(again.sample(5, rows), draws)
    density, error = sensors.log_prob(torch.zeros(1, 1), rows[5], return_error=True)
    mean, deviation = exact(rows[5])
    assert abs(float(density - Normal(mean, deviation).log_prob(torch.tensor(0.0)))) < 0.1 + 4 * float(error)


def test_a_simulator_may_say_what_is_missing() -> None:
    """Values above 1 are not recorded: that one is missing says that z is probably large."""

    def simulate(n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 1)
        x = z + 0.5 * torch.randn(n, 1)
        return z, torch.cat((x.masked_fill(x > 1, torch.nan), torch.full((n, 1), torch.nan)), 1)

    posterior = fit_posterior(
        Model(simulate=simulate), missing="simulated", architecture=Architecture(num_steps=8, hidden=(32,)),
        training=Training(steps=350, batch_size=512),
    )  # fmt: skip
    assert any("x[1] without spread, left out" in notice for notice in posterior.notices)
    grid = torch.linspace(-4, 6, 2001, dtype=torch.float64)
    weights = Normal(0.0, 1.0).log_prob(grid).exp() * (1 - Normal(grid, 0.5).cdf(torch.tensor(1.0, dtype=torch.float64)))
    mean = float((weights * grid).sum() / weights.sum())
    deviation = math.sqrt(float((weights * (grid - mean) ** 2).sum() / weights.sum()))
    draws = posterior.sample(4000, torch.full((2,), torch.nan))
    assert mean > 1 and abs(float(draws.mean()) - mean) < 0.15 * deviation and abs(float(draws.std()) / deviation - 1) < 0.12
    seen = posterior.sample(4000, torch.tensor([0.5, torch.nan]))
    assert abs(float(seen.mean()) - 0.4) < 0.1 and abs(float(seen.std()) / math.sqrt(0.2) - 1) < 0.12
    assert posterior.diagnose(torch.tensor([0.5, torch.nan]), num_samples=200, num_simulations=60).left_out == ["x[1]"]


def test_an_embedding_gets_values_and_a_mask(tmp_path) -> None:
    seen = []

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return self.linear(x)

    with torch.random.fork_rng():
        network, other = Network(), Network()
    posterior = fit_posterior(Model(simulate=Sensors().simulate), embedding=network, missing="random", architecture=GAUSSIAN, training=QUICK)
    values, mask = torch.cat(seen).chunk(2, 1)
    assert bool(values.isfinite().all()) and set(mask.unique().tolist()) == {0.0, 1.0} and bool((values[mask == 1] == 0).all())
    x = torch.tensor([1.0, torch.nan, 2.0])
    assert torch.equal(load(posterior.save(tmp_path / "kept"), embedding=other).sample(5, x), posterior.sample(5, x))


def test_entries_are_hidden_at_random_and_some_rows_stay_complete() -> None:
    x = torch.ones(20_000, 2, 2)
    gone = hidden(x, Draws(3)).isnan()
    assert torch.equal(gone, hidden(x, Draws(3)).isnan()) and not torch.equal(gone, hidden(x, Draws(4)).isnan())
    # The number of hidden entries is uniform on 0 to 4 in three quarters of the rows.
    shares = torch.bincount(gone.flatten(1).sum(1), minlength=5) / len(x)
    expected = torch.tensor([0.4, 0.15, 0.15, 0.15, 0.15])
    assert bool(((shares - expected).abs() < 4 * (expected * (1 - expected) / len(x)).sqrt()).all())


def test_missing_values_are_replaced_by_others_of_their_column() -> None:
    nan = torch.nan
    x = torch.tensor([[1.0, nan, nan], [nan, nan, 4.0], [3.0, nan, nan], [nan, nan, 6.0]])
    assert filled(x).tolist() == [[1, 0, 4], [3, 0, 4], [3, 0, 4], [3, 0, 6]]
    assert with_mask(x[:1]).tolist() == [[1, 0, 0, 0, 1, 1]]


def test_missing_data_need_their_argument_and_weights_need_all_data() -> None:
    nan, model = torch.tensor([1.0, torch.nan, 0.0]), Sensors()
    with pytest.raises(InputError, match=r"x: expected finite values, got nan at index \(1,\).*missing='random'"):
        fit_posterior(Model(simulate=model.simulate), nan, architecture=GAUSSIAN, training=QUICK)
    with pytest.raises(InputError, match="missing: expected"):
        fit_posterior(model, missing="rand")
    with pytest.raises(InputError, match="objective: expected simulations, for data with missing entries"):
        fit_posterior(model, nan, missing="random", objective="both")
    with pytest.raises(InputError, match="missing: expected None, for sets"):
        fit_posterior(Model(simulate=model.simulate), missing="random", embedding=SetEmbedding(1))
    with pytest.raises(InputError, match=r"simulate, x: expected finite values.*missing='simulated'"):
        fit_posterior(Model(simulate=lambda n: (torch.randn(n, 1), torch.full((n, 1), torch.nan))), missing="random")
    with pytest.raises(InputError, match="simulate, x: expected finite values"):
        fit_posterior(Model(simulate=lambda n: (torch.randn(n, 1), torch.full((n, 1), torch.inf))), missing="simulated")
    posterior = fit_posterior(model, nan, missing="random", architecture=GAUSSIAN, training=QUICK)
    for call in (posterior.importance_sample, posterior.elbo):
        with pytest.raises(InputError, match="x: expected data without missing entries"):
            call()
    assert posterior.map(num_samples=20).shape == (1,) and posterior.diagnose(num_samples=100, num_simulations=30).pareto_k is None
    assert len(posterior.importance_sample(100, torch.zeros(3)).log_ratios) == 100
    with pytest.raises(InputError, match="x: expected finite values"):
        posterior.sample(3, torch.tensor([1.0, torch.inf, 0.0]))
