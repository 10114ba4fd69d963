"""Kernel density in C++ on every instruction set: parity, the released bandwidths, golden values, equal bits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ddvi_fast import parity, testing
from ddvi_fast.native import kde
from ddvi_fast.parity import normals


def _points(rows, count, width):
    return normals(1, rows, width), normals(2, count, width)


@pytest.mark.parametrize("case", parity.cases("kde"), ids=str)
def test_values_and_gradients(isa, case):
    parity.check(case, "cpp")


def test_released_bandwidths_far_from_every_point(isa):
    """At width 0.005 most exponentials are zero and the log-density is clamped: the gradient must vanish there, not become NaN."""
    parity.check(replace(parity.kde_case(*_points(20, 300, 2), (0.005, 0.008, 0.01, 0.03, 0.05), 1000.0), floor=1e-6), "cpp")


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


def test_same_bits_for_any_number_of_threads(isa, same_for_any_threads):
    case = parity.kde_case(*_points(50, 700, 2), (0.1, 1.0), 7.0)
    same_for_any_threads(lambda: parity.run(case, "cpp"))


def test_gradients_that_nobody_needs_are_not_computed():
    (z, points), widths = _points(4, 5, 2), torch.ones(2)
    value, each = kde.forward(z, points, widths, math.inf)
    assert kde.backward(z, points, widths, each, torch.ones_like(value), math.inf, [True, False])[1] is None
