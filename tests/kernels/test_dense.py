"""Bias, activation and dropout of dense layers in Triton against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import rng, testing
from ddvi_fast._operands import DenseOptions
from ddvi_fast.dense import dropout
from ddvi_fast.kernels import dense
from ddvi_fast.parity import normals
from ddvi_fast.rng import Draws

pytestmark = pytest.mark.usefixtures("poison_empty")
DRAWS = Draws(7, (1 << 33) - 3)


@pytest.mark.parametrize("slope, rate", [(0.0, 0.0), (0.2, 0.0), (1.0, 0.0), (0.0, 0.4), (0.2, 0.4)])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 70), (1, 1030, 17)])
def test_values_and_gradients(slope, rate, shape):
    product, bias = normals(0, *shape).requires_grad_(), normals(1, shape[-1]).requires_grad_()
    options = DenseOptions(slope, "float32", rate, DRAWS.state() if rate else None, 0, shape[-2], rng.DROPOUT + 2)
    flat = product.detach().view(-1, shape[-1])
    activated = torch.nn.functional.leaky_relu((product + bias).double(), slope)
    expected = dropout(activated, rate, DRAWS, 2)
    got = dense.forward(flat, bias.detach(), options, torch.float32)
    testing.assert_close(got.view(shape), expected.detach(), rtol=1e-6, atol=1e-7)
    upstream = normals(2, *shape)
    wanted = torch.autograd.grad(expected, (product, bias), upstream.double())
    for found, value in zip(dense.backward(upstream.view(flat.shape), got, options, torch.float32), wanted, strict=True):
        testing.assert_close(found.view(value.shape), value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_what_is_not_finite_stays_so(rate):
    product = torch.tensor([[torch.nan, torch.inf, 1.0]]).repeat(8, 1)
    got = dense.forward(product, torch.zeros(3), DenseOptions(0.2, "float32", rate, Draws(0).state() if rate else None, 0, 8, 1), torch.float32)
    assert got[:, 0].isnan().all() and not got[:, 1].isfinite().any() and got[:, 2].isfinite().all()


def test_no_rows():
    out = dense.forward(torch.zeros(0, 3), torch.zeros(3), DenseOptions(0.2, "float32"), torch.float32)
    d_product, d_bias = dense.backward(out, out, DenseOptions(0.2, "float32"), torch.float32)
    assert d_product.shape == (0, 3) and torch.equal(d_bias, torch.zeros(3))
