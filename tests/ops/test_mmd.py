"""Maximum mean discrepancy against sums over all pairs, its closed form for Gaussians, and its gradient."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ddvi_fast import InputError, ops
from ddvi_fast.reference import mmd as reference
from ddvi_fast.testing import assert_close, strided
from tests.operands import draw_normals

normals = partial(draw_normals, dtype=torch.float64)

SIGMAS = (0.5, 2.0)


def pairs(x, y):
    squared = (x.unsqueeze(1) - y).square().sum(-1)
    return sum(torch.exp(-squared / (2 * sigma)) for sigma in SIGMAS).mean()


@pytest.mark.parametrize("rows, others, width", [(1, 1, 1), (3, 41, 5)])
def test_against_all_pairs(rows, others, width):
    x, y = normals(rows, width), normals(others, width, seed=1)
    expected = (pairs(x, x) + pairs(y, y) - 2 * pairs(x, y)).sqrt()
    assert_close(ops.mmd(x, y, SIGMAS), expected, rtol=1e-10)
    assert_close(ops.mmd(y, x, SIGMAS), expected, rtol=1e-10)


def test_population_value():
    """E exp(-(x - y)^2 / 2s) = sqrt(s / (s + v)) exp(-d^2 / 2(s + v)), v the variance and d the mean of x - y."""
    rows, shift, sigma = 3000, 1.5, 2.0
    x, y = normals(rows, 1), normals(rows, 1, seed=1) + shift

    def kernel(distance):
        return (sigma / (sigma + 2)) ** 0.5 * torch.exp(torch.tensor(-(distance**2) / (2 * (sigma + 2)), dtype=torch.float64))

    expected = 2 * kernel(0.0) - 2 * kernel(shift)
    # To first order it varies as 2 (mean h(x) - mean h(y)), h the difference of the mean embeddings, here within (-1/2, 1/2).
    assert (ops.mmd(x, y, [sigma]).square() - expected).abs() < 4 * 2 * (2 / rows) ** 0.5 * 0.5


def test_nothing_apart_is_zero_with_finite_gradient():
    x = normals(5, 3).requires_grad_()
    value = ops.mmd(x, x.detach().clone(), SIGMAS)
    assert value.item() == pytest.approx(0, abs=1e-7)
    value.backward()
    assert torch.isfinite(x.grad).all()


def test_blocks_and_strides_do_not_matter(monkeypatch):
    x, y = normals(13, 3), normals(7, 3, seed=1)
    whole = ops.mmd(x, y, SIGMAS)
    monkeypatch.setattr(reference, "_PAIRS", 15)
    assert_close(ops.mmd(strided(x), strided(y), SIGMAS), whole, rtol=1e-12)


def test_gradcheck():
    x, y = normals(4, 3).requires_grad_(), normals(5, 3, seed=1).requires_grad_()
    sigmas = torch.tensor(SIGMAS, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, y: reference.mmd(x, y, sigmas), (x, y))


@pytest.mark.parametrize(
    "x, y, message",
    [(torch.zeros(0, 2), torch.zeros(3, 2), "at least one row each"), (torch.zeros(2, 2), torch.zeros(3, 1), "y: expected shape")],
)
def test_bad_input(x, y, message):
    with pytest.raises(InputError, match=message):
        ops.mmd(x, y, SIGMAS)
