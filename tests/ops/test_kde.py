"""Kernel density against a direct mixture of torch.distributions, its integral, its clamp and its gradient."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from ddvi_fast import InputError, ops
from ddvi_fast.reference import kde as reference
from ddvi_fast.testing import assert_close, strided
from tests.operands import draw_normals

normals = partial(draw_normals, dtype=torch.float64)

WIDTHS = (0.3, 0.7, 1.5)


def mixtures(z, points):
    """Log-density [bandwidths, N] of each bandwidth's mixture."""
    kernels = [torch.distributions.Normal(points, width) for width in WIDTHS]
    return torch.stack([torch.logsumexp(kernel.log_prob(z.unsqueeze(1)).sum(-1), 1) - math.log(len(points)) for kernel in kernels])


@pytest.mark.parametrize("rows, points, dim", [(0, 3, 2), (1, 1, 1), (41, 129, 3)])
def test_against_a_mixture(rows, points, dim):
    z, centres = normals(rows, dim), normals(points, dim, seed=1)
    assert_close(ops.kde_log_density(z, centres, WIDTHS), mixtures(z, centres).exp().mean(0).log(), rtol=1e-10)


def test_far_points_and_clamp():
    z = torch.tensor([[0.0], [1e3], [1e6]], dtype=torch.float64)
    centres, log_density = normals(7, 1), mixtures(z, normals(7, 1))
    assert torch.isfinite(ops.kde_log_density(z, centres, WIDTHS)).all()
    clipped = torch.logsumexp(log_density.clamp(-50, 50), 0) - math.log(3)
    assert_close(ops.kde_log_density(z, centres, WIDTHS, clamp=50), clipped, rtol=1e-10)
    assert ops.kde_log_density(z, centres, WIDTHS, clamp=50)[2] == pytest.approx(-50)


def test_clamp_cuts_both_ends():
    point, narrow = torch.zeros(1, 1, dtype=torch.float64), [1e-3]
    assert ops.kde_log_density(point, point, narrow).item() > 5
    assert ops.kde_log_density(point, point, narrow, clamp=2.0).item() == 2
    assert ops.kde_log_density(point + 1, point, narrow, clamp=2.0).item() == -2


def test_integrates_to_one():
    grid, centres = torch.linspace(-12, 12, 4001, dtype=torch.float64).unsqueeze(1), normals(5, 1)
    total = torch.trapezoid(ops.kde_log_density(grid, centres, WIDTHS).exp(), grid.squeeze(1))
    assert total.item() == pytest.approx(1, abs=1e-9)


def test_blocks_and_strides_do_not_matter(monkeypatch):
    z, points = normals(13, 2), normals(9, 2, seed=1)
    whole = ops.kde_log_density(z, points, WIDTHS)
    monkeypatch.setattr(reference, "_PAIRS", 20)
    assert_close(ops.kde_log_density(strided(z), strided(points), WIDTHS), whole, rtol=1e-14)


@pytest.mark.parametrize("clamp", [None, 4.0])
def test_gradcheck(clamp):
    z, points = normals(4, 2).requires_grad_(), normals(5, 2, seed=1).requires_grad_()
    if clamp is not None:
        below = mixtures(z, points) < -clamp
        assert below.any() and not below.all(), "the clamp must bite on some values"
    widths = torch.tensor(WIDTHS, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, p, h: reference.kde_log_density(z, p, h, clamp), (z, points, widths))


@pytest.mark.parametrize(
    "z, points, widths, message",
    [
        (torch.zeros(2, 2), torch.zeros(0, 2), [1.0], "points: expected at least one point"),
        (torch.zeros(2, 2), torch.zeros(3, 1), [1.0], r"points: expected shape \[any, 2\]"),
        (torch.zeros(2), torch.zeros(3, 1), [1.0], r"z: expected shape \[any, any\]"),
        (torch.zeros(2, 2), torch.zeros(3, 2), [], "bandwidths: expected a sequence of positive"),
        (torch.zeros(2, 2), torch.zeros(3, 2), [0.1, 0.0], "bandwidths: expected a sequence of positive"),
    ],
)
def test_bad_input(z, points, widths, message):
    with pytest.raises(InputError, match=message):
        ops.kde_log_density(z, points, widths)
