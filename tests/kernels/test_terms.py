"""The end of a loss in Triton against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import testing
from ddvi_fast.kernels import terms
from ddvi_fast.parity import normals

pytestmark = pytest.mark.usefixtures("poison_empty")


@pytest.mark.parametrize("count, rows", [(1, 1), (3, 128), (2, 1500)])
def test_sum_means_and_gradients(count, rows):
    values, weights = normals(0, count, rows).requires_grad_(), normals(1, count)
    lost, found = torch.zeros(count), torch.zeros(())
    total, means = terms.forward(values.detach(), weights, lost, found)
    expected = (weights.double() * values.double().mean(1)).sum()
    testing.assert_close(means, values.detach().double().mean(1), rtol=1e-6, atol=1e-7)
    testing.assert_close(total, expected.detach(), rtol=1e-6, atol=1e-7)
    (gradient,) = torch.autograd.grad(2 * expected, values)
    testing.assert_close(terms.backward(torch.tensor(2.0), weights, rows), gradient, rtol=1e-6)
    assert not lost.any() and not found


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_remembered(bad):
    values, weights = torch.ones(3, 5), torch.ones(3)
    values[1, 4] = bad
    lost, found = torch.zeros(3), torch.zeros(())
    terms.forward(values, weights, lost, found)
    terms.forward(torch.ones(3, 5), weights, lost, found)
    assert lost.tolist() == [0, 1, 0] and found == 1


def test_a_sum_beyond_the_range_is_found():
    lost, found = torch.zeros(2), torch.zeros(())
    terms.forward(torch.full((2, 4), 1e30), torch.full((2,), 1e30), lost, found)
    assert not lost.any() and found == 1
