"""Reparametrized samples in Triton against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import rng, testing
from ddvi_fast.kernels import start
from ddvi_fast.parity import normals
from ddvi_fast.rng import Draws

pytestmark = pytest.mark.usefixtures("poison_empty")
DRAWS = Draws(7, (1 << 33) - 3)


@pytest.mark.parametrize("samples, rows, width", [(1, 128, 2), (3, 5, 3), (2, 7, 70), (1, 0, 2)])
def test_values_and_gradients(samples, rows, width):
    output = normals(0, rows, 2 * width).requires_grad_()
    mean, log_var = output.chunk(2, 1)
    expected = mean.double() + torch.exp(0.5 * log_var.double()) * rng.normal(DRAWS, (samples, rows, width), rng.START, dtype=torch.float64)
    halves = output.detach().chunk(2, 1)
    got = start.forward(*halves, DRAWS.state(), 0, samples, rng.START)
    testing.assert_close(got, expected.detach(), rtol=1e-6, atol=1e-6)
    upstream = normals(1, samples, rows, width)
    wanted = torch.autograd.grad(expected, (mean, log_var), upstream.double())
    for found, value in zip(start.backward(upstream, halves[0], got), wanted, strict=True):
        testing.assert_close(found, value, rtol=1e-5, atol=1e-5)
