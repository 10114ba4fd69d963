"""Edge cases of the maximum mean discrepancy on every fused backend: equal sets, golden value, needed gradients."""

from __future__ import annotations

import torch

from ddvi_fast import testing
from ddvi_fast.parity import normals

SIGMAS = torch.tensor([1.0, 4.0, 20.0])


def test_golden_value(golden, implementation):
    x, y, sigmas = (torch.tensor(golden[f"mmd/{name}"], dtype=torch.float32) for name in ("x", "y", "sigma"))
    testing.assert_close(implementation.forward(x, y, sigmas), torch.tensor(golden["mmd/value"]), rtol=1e-5)


def test_a_set_against_itself(implementation):
    """The discrepancy of equal sets is 0 up to rounding, with a gradient without NaN."""
    x = normals(1, 70, 3)
    assert 0 <= implementation.forward(x, x.clone(), SIGMAS) < 1e-3
    gradients = implementation.backward(x, x, SIGMAS, torch.zeros(()), torch.ones(()), [True, True])
    assert all(torch.equal(gradient, torch.zeros_like(x)) for gradient in gradients)


def test_only_the_gradients_that_are_needed(implementation):
    x, y = normals(1, 5, 3), normals(2, 7, 3) + 0.4
    given = (x, y, SIGMAS, implementation.forward(x, y, SIGMAS), torch.tensor(-1.7))
    none, to_y = implementation.backward(*given, [False, True])
    assert none is None and torch.equal(to_y, implementation.backward(*given, [True, True])[1])
