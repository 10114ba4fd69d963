"""Order of points along a space-filling curve."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import ops, priors
from ddvi_fast.priors.base import KDE_BANDWIDTHS
from ddvi_fast.priors.curve import along_curve
from ddvi_fast.rng import Draws


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_neighbours_in_order_are_neighbours_in_space(dim):
    points = torch.rand(2000, dim, generator=torch.Generator().manual_seed(dim))
    order = along_curve(points)
    assert torch.equal(order.sort().values, torch.arange(2000))
    before, after = ((some[1:] - some[:-1]).norm(dim=1).mean() for some in (points, points[order]))
    assert after < {1: 0.01, 2: 0.1, 3: 0.25, 5: 0.8}[dim] * before


def test_points_in_one_place_keep_their_order():
    assert torch.equal(along_curve(torch.zeros(5, 2)), torch.arange(5))


def test_the_density_of_a_prior_is_that_of_its_samples_in_any_order():
    prior, z = priors.make("pinwheel"), torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    expected = ops.kde_log_density(z.double(), prior.sample(500, Draws(3), dtype=torch.float64), KDE_BANDWIDTHS, 1000.0)
    torch.testing.assert_close(prior.log_prob_kde(z, 500, seed=3).double(), expected, rtol=1e-4, atol=1e-4)
