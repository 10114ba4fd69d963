"""Sets of observations: invariance, any number of them, and a conjugate model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ddvi_fast import InputError, rng
from ddvi_fast.inference import Architecture, Model, SetEmbedding, Training, fit_posterior, load
from ddvi_fast.inference.observation import Observation
from ddvi_fast.rng import Draws

SMALL = Architecture(num_steps=4, width=32, hidden=(32,), context_dim=4)
MOST = 15


def simulate(n: int) -> tuple[Tensor, Tensor]:
    """`mu ~ N(0, 1)`, and 1 to 15 observations `N(mu, 1)`: a posterior of variance 1 / (1 + m)."""
    mu = torch.randn(n, 1)
    count = int(torch.exp(torch.rand(()) * math.log(MOST + 1)))
    return mu, mu.unsqueeze(2) + torch.randn(n, max(1, count), 1)


def test_the_order_of_observations_has_no_influence() -> None:
    embedding, x = SetEmbedding(3, seed=1), rng.normal(Draws(0), (28, 3), rng.START).reshape(4, 7, 3)
    embedding.standardize(x)
    assert torch.allclose(embedding(x), embedding(x[:, torch.arange(7).flip(0)]), atol=1e-6)
    assert not torch.allclose(embedding(x), embedding(torch.cat((x, x), 1)), atol=1e-3)  # their number has


def test_features_are_standardized_over_several_numbers_of_observations() -> None:
    embedding, x = SetEmbedding(1, features=8), rng.normal(Draws(0), (200, 101), rng.START)
    few, many = x[:, :1].unsqueeze(2), x[:, 1:].unsqueeze(2)
    observation = Observation.of(few, embedding, others=[many])
    features = torch.cat((observation(few), observation(many))).detach().double()
    torch.testing.assert_close(features.mean(0), torch.zeros(8).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(8).double(), rtol=1e-3, atol=0)


def test_one_fit_serves_any_number_of_observations(tmp_path) -> None:
    training = Training(steps=700, batch_size=256)
    posterior = fit_posterior(Model(simulate=simulate), embedding=SetEmbedding(1), training=training, architecture=SMALL)
    for count in (1, 4, 15):
        x = torch.full((count, 1), 0.5) + torch.linspace(-1, 1, count).unsqueeze(1) * (count > 1)
        draws = posterior.sample(4000, x=x)
        assert abs(float(draws.std()) * math.sqrt(1 + count) - 1) < 0.2
        assert abs(float(draws.mean()) - count * float(x.mean()) / (1 + count)) < 0.15
    assert posterior.sample(3, x=torch.zeros(5, 9, 1)).shape == (3, 5, 1)
    posterior.save(tmp_path / "saved")
    loaded = load(tmp_path / "saved", embedding=SetEmbedding(1))
    assert torch.equal(loaded.sample(7, x=x), posterior.sample(7, x=x))
    with pytest.raises(InputError, match=r"x: expected data of shape \[any, 1\] or rows of them"):
        posterior.sample(3, x=torch.zeros(5, 2))
    with pytest.raises(InputError, match="x: expected observations"):
        posterior.sample(3, x=torch.zeros(0, 1))


def test_a_fixed_number_of_simulations_is_refused() -> None:
    with pytest.raises(InputError, match="num_simulations: expected None, for sets of observations"):
        fit_posterior(Model(simulate=simulate), embedding=SetEmbedding(1), num_simulations=100)


@pytest.mark.parametrize("name", ["inputs", "features", "width"])
def test_sizes_are_positive(name: str) -> None:
    with pytest.raises(InputError, match=name):
        SetEmbedding(**{"inputs": 1, name: 0})
