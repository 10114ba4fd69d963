"""Edge cases of the maximum mean discrepancy on every fused backend: equal sets, golden value, needed gradients."""

from __future__ import annotations

import pytest
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


@pytest.mark.parametrize("size", [1.0, 1e6, 1e15])
@pytest.mark.parametrize("width", [3, 130, 784])
def test_equal_rows_of_any_size_have_no_distance(implementation, width, size):
    """Squared lengths are made as products are. Of each set half the rows are in the other; other rows are far apart."""
    rows = size * 100 * normals(1, 90, width)
    x, y = rows[:60], rows[30:].flip(0)
    found = implementation.forward(x, y, SIGMAS)
    # Each row of a set is like itself, and like one of the other if it is in both.
    testing.assert_close(found, torch.tensor(len(SIGMAS) * (2 / 60 - 2 * 30 / 60**2)).sqrt(), rtol=1e-6)
