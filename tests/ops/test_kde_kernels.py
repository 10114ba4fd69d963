"""Edge cases of the kernel density on every fused backend: narrow bandwidths, values that are not finite, golden values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddvi_fast import parity, testing
from ddvi_fast.parity import normals
from tests.operands import device_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def _points(rows, count, width):
    return normals(1, rows, width), normals(2, count, width)


def test_released_bandwidths_far_from_every_point(fused):
    """At width 0.005 most exponentials are zero and the log-density is clamped: the gradient must vanish there, not become NaN."""
    points = _points(20, 100 if fused == "triton" else 300, 2)
    case = parity.kde_case(*points, (0.005, 0.008, 0.01, 0.03, 0.05), 1000.0)
    parity.check(replace(case, floor=1e-6), fused, device_of(fused))


def test_golden_density(golden, implementation):
    z, points, bandwidths = (torch.tensor(golden[f"kde/{name}"]).float() for name in ("z", "points", "bandwidths"))
    value, each = implementation.forward(z, points, bandwidths, 1000.0)
    gradient, none = implementation.backward(z, points, bandwidths, each, torch.ones_like(value), 1000.0, [True, False])
    assert none is None
    for got, name in ((value, "kde/log_density_clamped"), (gradient, "kde/grad_z")):
        expected = torch.tensor(golden[name])
        testing.assert_close(got, expected, rtol=0, atol=1e-4 * float(expected.abs().max()), name=name)


def test_not_a_number_stays_one(implementation):
    z = torch.tensor([[torch.nan, 0.0], [0.0, 0.0]])
    for clamp in (torch.inf, 5.0):
        got = implementation.forward(z, torch.zeros(3, 2), torch.ones(1), clamp)[0]
        assert torch.isnan(got[0]) and torch.isfinite(got[1])


def test_only_the_gradients_that_are_needed(implementation):
    (z, points), widths = _points(4, 5, 2), torch.ones(2)
    value, each = implementation.forward(z, points, widths, torch.inf)
    assert implementation.backward(z, points, widths, each, torch.ones_like(value), torch.inf, [True, False])[1] is None
