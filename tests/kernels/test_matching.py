"""Mean matching along a deterministic chain in Triton against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import testing
from ddvi_fast.kernels import matching
from ddvi_fast.parity import normals

pytestmark = pytest.mark.usefixtures("poison_empty")


@pytest.mark.parametrize("steps, rows, width", [(2, 1, 1), (5, 300, 2), (4, 6, 5)])
def test_values_and_gradients(steps, rows, width):
    trajectory, weights = (3 * normals(0, steps + 1, rows, width)).requires_grad_(), normals(1, steps, 2)
    t = torch.arange(rows) % steps
    exact, here = trajectory.double(), torch.arange(rows)
    target = weights[t, :1] * exact[-1] + weights[t, 1:] * exact[steps - 1 - t, here]
    expected = torch.nn.functional.smooth_l1_loss(target, exact[steps - t, here], reduction="none").mean(-1)
    testing.assert_close(matching.forward(trajectory.detach(), t, weights), expected.detach(), rtol=1e-6, atol=1e-6)
    upstream = normals(2, rows)
    (wanted,) = torch.autograd.grad(expected, trajectory, upstream.double())
    testing.assert_close(matching.backward(upstream, trajectory.detach(), t, weights), wanted, rtol=1e-5, atol=1e-5)
