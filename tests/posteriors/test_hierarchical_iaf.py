"""The hierarchical flow: levels, and the weight of a path written out."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from ddvi_fast import InputError
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors import HierarchicalIAF
from ddvi_fast.rng import Draws
from tests.linear_gaussian import observations


def make(**options) -> HierarchicalIAF:
    return HierarchicalIAF(MLP(3, [], 4), MLP(3, [], 4, draws=Draws(1)), 2, 4, hidden_dim=8, draws=Draws(2), **options)


def normal(parameters: torch.Tensor) -> Normal:
    mean, log_var = parameters.chunk(2, -1)
    return Normal(mean, (0.5 * log_var).exp())


@pytest.mark.parametrize("num_levels", [2, 3])
def test_the_weight_of_a_path_by_hand(num_levels):
    posterior, x, draws = make(num_levels=num_levels).double(), observations(4).double(), Draws(3)
    encoded = posterior.encode(x)
    path = posterior.latent_path(encoded, 3, draws)
    assert path.shape == (num_levels, 3, 4, 2)
    context = encoded.context.expand(3, 4, 4)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for number, level in enumerate(posterior.levels):
        condition = context if number == 0 else torch.cat((path[number - 1], context), -1)
        base = level.head(condition)
        if number == num_levels - 1:
            base = base + posterior.encoder(x)
        y = path[number]
        for step in reversed(level.steps):
            y, log_det = step.inverse(y, condition)
            expected = expected + log_det
        expected = expected - normal(base).log_prob(y).sum(-1)
        if number > 0:
            guess = posterior.reverse[number - 1](torch.cat((path[number], context), -1))
            expected = expected + normal(guess).log_prob(path[number - 1]).sum(-1)
    torch.testing.assert_close(posterior.log_ratio(encoded, path), expected)
    torch.testing.assert_close(posterior.sample(x, 3, draws).log_ratio, expected)


def test_one_level_is_not_a_hierarchy():
    with pytest.raises(InputError, match=r"^num_levels: expected at least 2 \(with 1 it is IAF\)"):
        make(num_levels=1)
