"""Kernel density in C++ against the reference in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import rng, testing
from ddvi_fast.native import kde
from ddvi_fast.reference import kde as reference
from ddvi_fast.rng import Draws


def _case(rows, count, width):
    return rng.normal(Draws(1), (rows, width), 0), rng.normal(Draws(2), (count, width), 0)


def _run(function, inputs, bandwidths, clamp, dtype):
    leaves = [value.to(dtype).clone().requires_grad_() for value in inputs]
    out = function(*leaves, torch.tensor(bandwidths, dtype=torch.float32).to(dtype), clamp)
    return out, *torch.autograd.grad(out, leaves, testing.upstream_gradient(out.float()).to(dtype))


# The last count spans several blocks of points, so that the nearest one changes on the way.
@pytest.mark.parametrize("rows, count, width", [(0, 3, 2), (1, 1, 1), (2, 63, 3), (65, 64, 5), (5, 1100, 2), (3, 513, 64)])
@pytest.mark.parametrize("clamp", [None, 6.0])
def test_values_and_gradients(isa, rows, count, width, clamp):
    inputs, bandwidths = _case(rows, count, width), (0.1, 0.3, 1.0, 3.0)
    every = [(kde.kde_log_density, torch.float32), (reference.kde_log_density, torch.float32), (reference.kde_log_density, torch.float64)]
    for got, plain, exact in zip(*(_run(function, inputs, bandwidths, clamp, dtype) for function, dtype in every), strict=True):
        testing.assert_within_budget(got, plain, exact)


def test_released_bandwidths_far_from_every_point(isa):
    """At width 0.005 most exponentials are zero and the log-density is clamped: the gradient must vanish there, not become NaN."""
    inputs, bandwidths = _case(20, 300, 2), (0.005, 0.008, 0.01, 0.03, 0.05)
    every = [(kde.kde_log_density, torch.float32), (reference.kde_log_density, torch.float32), (reference.kde_log_density, torch.float64)]
    for got, plain, exact in zip(*(_run(function, inputs, bandwidths, 1000.0, dtype) for function, dtype in every), strict=True):
        testing.assert_within_budget(got, plain, exact)


def test_golden_density(golden, isa):
    z = torch.tensor(golden["kde/z"]).requires_grad_()
    value = kde.kde_log_density(z, torch.tensor(golden["kde/points"]), torch.tensor(golden["kde/bandwidths"], dtype=torch.float32), 1000.0)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    for got, name in ((value, "kde/log_density_clamped"), (gradient, "kde/grad_z")):
        expected = torch.tensor(golden[name])
        testing.assert_close(got, expected, rtol=0, atol=1e-4 * float(expected.abs().max()), name=name)


def test_not_a_number_stays_one(isa):
    got = kde.kde_log_density(torch.tensor([[torch.nan], [0.0]]), torch.zeros(3, 1), torch.ones(1), None)
    assert torch.isnan(got[0]) and torch.isfinite(got[1])


def test_same_bits_for_any_number_of_threads(isa, threads):
    inputs, results = _case(50, 700, 2), []
    for count in (1, 2, 2):
        threads(count)
        results.append(_run(kde.kde_log_density, inputs, (0.1, 1.0), None, torch.float32))
    assert all(torch.equal(first, other) for later in results[1:] for first, other in zip(results[0], later, strict=True))


def test_strided_inputs(isa):
    (z, points), bandwidths = _case(9, 40, 3), torch.tensor([0.2, 0.7])
    got = kde.kde_log_density(testing.strided(z), testing.strided(points), bandwidths, None)
    assert torch.equal(got, kde.kde_log_density(z, points, bandwidths, None))
