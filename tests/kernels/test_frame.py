"""The map out of the encoder's frame in Triton against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import testing
from ddvi_fast.kernels import frame
from ddvi_fast.parity import normals

pytestmark = pytest.mark.usefixtures("poison_empty")


@pytest.mark.parametrize("samples, rows, width", [(1, 128, 2), (3, 50, 3), (2, 7, 64), (4, 1, 1), (2, 0, 2)])
def test_values_and_gradients(samples, rows, width):
    """The density of the placed latents is that of the normal distribution there plus the log-determinant of the map."""
    output = normals(0, rows, 2 * width).requires_grad_()
    mean, log_var = output.chunk(2, 1)
    y, ratio = normals(1, samples * rows, width).requires_grad_(), normals(2, samples * rows).requires_grad_()
    u = mean.double().repeat(samples, 1) + torch.exp(0.5 * log_var.double()).repeat(samples, 1) * y.double()
    density = torch.distributions.Normal(0.0, 1.0, validate_args=False).log_prob(u).sum(1)
    expected = u, ratio.double() + density + 0.5 * log_var.double().sum(1).repeat(samples)
    halves = output.detach().chunk(2, 1)
    got = frame.forward(*halves, y.detach(), ratio.detach())
    for one, other in zip(got, expected, strict=True):
        testing.assert_close(one, other.detach(), rtol=1e-6, atol=1e-5)
    upstream = normals(3, samples * rows, width), normals(4, samples * rows)
    for given in ((0, 1), (0,), (1,)):
        outputs, of = [expected[i] for i in given], [upstream[i].double() for i in given]
        wanted = torch.autograd.grad(outputs, (mean, log_var, y), of, retain_graph=True)
        found = frame.backward(*(upstream[i] if i in given else None for i in range(2)), halves[1], y.detach(), got[0])
        for one, other in zip(found, wanted, strict=True):
            testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows, width", [(300, 2), (5, 20), (0, 3)])
def test_the_density_of_a_start(rows, width):
    start, path = normals(0, rows, width), normals(1, rows)
    density = torch.distributions.Normal(0.0, 1.0, validate_args=False).log_prob(start.double()).sum(1)
    testing.assert_close(frame.standard(start, path), path - density, rtol=1e-6, atol=1e-5)
