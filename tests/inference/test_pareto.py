"""Shape of the tail against known distributions, another estimator, and values of another implementation."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import genpareto

from ddvi_fast.inference.pareto import fit_tail, smooth


def quantiles(k: float, scale: float, count: int = 2000) -> torch.Tensor:
    return torch.from_numpy(genpareto.ppf((torch.arange(count).double() + 0.5).numpy() / count, k, scale=scale))


@pytest.mark.parametrize("k", [-0.4, 0.1, 0.5, 0.9])
def test_the_shape_of_an_exact_tail_is_found(k: float) -> None:
    found, scale = fit_tail(quantiles(k, 2.5))
    assert abs(found - k) < 0.03 and abs(scale / 2.5 - 1) < 0.05


def test_it_agrees_with_maximum_likelihood() -> None:
    excess = torch.from_numpy(genpareto.rvs(0.3, scale=1.7, size=3000, random_state=4))
    shape, _, scale = genpareto.fit(excess.numpy(), floc=0)
    found = fit_tail(excess)
    assert abs(found[0] - shape) < 0.02 and abs(found[1] / scale - 1) < 0.02


def test_it_agrees_with_another_implementation() -> None:
    # arviz-stats 0.8.0 on the same values, its weak prior on the shape taken out.
    excess = (torch.arange(1, 201).double() / 201) ** -0.6 - 1
    assert fit_tail(excess) == pytest.approx((0.5607652609104151, 0.6110459395938002), rel=1e-10)


def test_smoothed_weights_keep_the_order_and_the_bulk_and_cap_the_largest() -> None:
    log_ratios = 2 * torch.randn(4000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    smoothed, k = smooth(log_ratios)
    assert 0.3 < k < 1.2 and math.isclose(float(smoothed.exp().sum()), 1, rel_tol=1e-12)
    order = log_ratios.argsort()
    assert bool((smoothed[order].diff() >= -1e-12).all())
    bulk = order[:3500]
    shift = smoothed[bulk] - log_ratios[bulk]
    torch.testing.assert_close(shift, shift[:1].expand_as(shift))  # the same normalisation for all that is not tail
    assert float((smoothed - shift[0]).max()) <= float(log_ratios.max()) + 1e-9


@pytest.mark.parametrize("deviation", [0.5, 0.8])
def test_the_shape_of_gaussian_proposals_is_that_of_theory(deviation: float) -> None:
    # For a standard normal target and a proposal of deviation s < 1 the weights have a tail of shape 1 - s^2.
    x = deviation * torch.randn(200_000, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    _, k = smooth(0.5 * x**2 * (1 / deviation**2 - 1))
    assert abs(k - (1 - deviation**2)) < 0.15  # a tail of a few thousand values is not yet the limit


def test_what_has_no_tail_says_so() -> None:
    assert smooth(torch.zeros(1000)).k == -math.inf
    few = torch.full((1000,), -math.inf)
    few[:4] = 0
    weights, k = smooth(few)
    assert k == math.inf and torch.equal(weights.exp()[:5], torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0]))
    some = torch.randn(1000, generator=torch.Generator().manual_seed(7))
    some[::2] = -math.inf
    weights, k = smooth(some)
    assert math.isfinite(k) and bool((weights[::2] == -math.inf).all()) and bool(torch.isfinite(weights[1::2]).all())
