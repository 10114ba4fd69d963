"""Kernel density in C++ on every instruction set: parity, the released bandwidths, golden values, equal bits."""

from __future__ import annotations

import math

import pytest
import torch

import ddvi_fast
from ddvi_fast import ops, parity, rng, testing
from ddvi_fast.native import kde
from ddvi_fast.rng import Draws


def _case(rows, count, width):
    return rng.normal(Draws(1), (rows, width), 0), rng.normal(Draws(2), (count, width), 0)


@pytest.mark.parametrize("case", parity.cases("kde"), ids=str)
def test_values_and_gradients(isa, case):
    parity.check(case, "cpp")


def test_released_bandwidths_far_from_every_point(isa):
    """At width 0.005 most exponentials are zero and the log-density is clamped: the gradient must vanish there, not become NaN."""
    inputs, bandwidths = _case(20, 300, 2), (0.005, 0.008, 0.01, 0.03, 0.05)

    def run(backend, dtype):
        with ddvi_fast.use_backend(backend):
            return testing.gradients(lambda z, points: ops.kde_log_density(z, points, bandwidths, 1000.0), *(value.to(dtype) for value in inputs))

    every = (run("cpp", torch.float32), run("reference", torch.float32), run("reference", torch.float64))
    for got, plain, exact in zip(*every, strict=True):
        testing.assert_within_budget(got, plain, exact)


def test_golden_density(golden, isa):
    z, points, bandwidths = (torch.tensor(golden[f"kde/{name}"]).float() for name in ("z", "points", "bandwidths"))
    value, each = kde.forward(z, points, bandwidths, 1000.0)
    gradient, _ = kde.backward(z, points, bandwidths, each, torch.ones_like(value), 1000.0, [True, False])
    for got, name in ((value, "kde/log_density_clamped"), (gradient, "kde/grad_z")):
        expected = torch.tensor(golden[name])
        testing.assert_close(got, expected, rtol=0, atol=1e-4 * float(expected.abs().max()), name=name)


def test_not_a_number_stays_one(isa):
    got, _ = kde.forward(torch.tensor([[torch.nan], [0.0]]), torch.zeros(3, 1), torch.ones(1), math.inf)
    assert torch.isnan(got[0]) and torch.isfinite(got[1])


def test_same_bits_for_any_number_of_threads(isa, threads):
    (z, points), bandwidths, results = _case(50, 700, 2), torch.tensor([0.1, 1.0]), []
    for count in (1, 2, 2):
        threads(count)
        value, each = kde.forward(z, points, bandwidths, 7.0)
        results.append([value, each, *kde.backward(z, points, bandwidths, each, torch.cos(value), 7.0, [True, True])])
    assert all(torch.equal(first, other) for later in results[1:] for first, other in zip(results[0], later, strict=True))


def test_gradients_that_nobody_needs_are_not_computed():
    (z, points), widths = _case(4, 5, 2), torch.ones(2)
    value, each = kde.forward(z, points, widths, math.inf)
    assert kde.backward(z, points, widths, each, torch.ones_like(value), math.inf, [True, False])[1] is None
