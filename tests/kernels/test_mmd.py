"""Maximum mean discrepancy in Triton against the reference in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import rng, testing
from ddvi_fast.kernels import mmd
from ddvi_fast.reference import mmd as reference
from ddvi_fast.rng import Draws

pytestmark = pytest.mark.usefixtures("poison_empty")

SIGMAS = (1.0, 4.0, 20.0)


def _case(first, second, width):
    return rng.normal(Draws(1), (first, width), 0), rng.normal(Draws(2), (second, width), 0) + 0.4


def _kernels(x, y, sigmas=SIGMAS):
    """Value and both gradients, under an upstream gradient that is not 1."""
    sigmas = torch.tensor(sigmas)
    value = mmd.forward(x, y, sigmas)
    return value, *mmd.backward(x, y, sigmas, value, torch.tensor(-1.7), [True, True])


def _plain(x, y, dtype, sigmas=SIGMAS):
    leaves = [value.to(dtype).clone().requires_grad_() for value in (x, y)]
    value = reference.mmd(*leaves, torch.tensor(sigmas, dtype=dtype))
    return value, *torch.autograd.grad(-1.7 * value, leaves)


def _compare(x, y):
    for name, got, plain, exact in zip(
        ("value", "to x", "to y"), _kernels(x, y), _plain(x, y, torch.float32), _plain(x, y, torch.float64), strict=True
    ):
        testing.assert_within_budget(got, plain, exact, floor=3e-6, name=name)


# One tile to ten, in odd and even numbers; sets that end within a tile and on its edge.
@pytest.mark.parametrize(
    "first, second, width", [(1, 1, 1), (2, 3, 2), (1, 65, 5), (63, 2, 3), (64, 64, 16), (20, 129, 33), (70, 63, 64), (190, 70, 5)]
)
def test_values_and_gradients(first, second, width):
    _compare(*_case(first, second, width))


def test_more_rows_than_the_workspace_holds(monkeypatch):
    """Pair coefficients of a tile of rows at a time give the same bits as those of all rows at once."""
    x, y = _case(70, 20, 3)
    expected = _kernels(x, y)
    monkeypatch.setattr(mmd, "_WORKSPACE", 1)
    assert all(torch.equal(got, whole) for got, whole in zip(_kernels(x, y), expected, strict=True))


def test_every_pair_of_tiles_counts_once():
    """Far apart sets of equal rows: every kernel is 1 or 0, so the value is known, for any number of tiles."""
    for tiles in range(1, 6):
        x, y = torch.zeros(64 * tiles - 5, 2), torch.full((3, 2), 1000.0)
        assert mmd.forward(x, y, torch.tensor([1.0])).item() == torch.tensor(2.0).sqrt().item()


def test_golden_value(golden):
    x, y, sigmas = (torch.tensor(golden[f"mmd/{name}"], dtype=torch.float32) for name in ("x", "y", "sigma"))
    testing.assert_close(mmd.forward(x, y, sigmas), torch.tensor(golden["mmd/value"]), rtol=1e-5)


def test_a_set_against_itself():
    """Nothing to tell apart: 0 up to rounding, and a gradient without NaN."""
    x, _ = _case(70, 1, 3)
    value = mmd.forward(x, x.clone(), torch.tensor(SIGMAS))
    assert 0 <= value < 1e-3
    nothing = mmd.backward(x, x, torch.tensor(SIGMAS), torch.zeros(()), torch.ones(()), [True, True])
    assert all(torch.equal(gradient, torch.zeros_like(x)) for gradient in nothing)


def test_only_the_gradients_that_are_needed():
    (x, y), sigmas = _case(5, 7, 3), torch.tensor(SIGMAS)
    value, *both = _kernels(x, y)
    none, to_y = mmd.backward(x, y, sigmas, value, torch.tensor(-1.7), [False, True])
    assert none is None and torch.equal(to_y, both[1])


def test_no_rows_have_no_discrepancy():
    x, y = _case(0, 3, 2)
    value, to_x, to_y = _kernels(x, y)
    assert torch.isnan(value) and to_x.shape == (0, 2) and torch.equal(to_y, torch.zeros(3, 2))


def test_what_is_not_finite_stays_so():
    x, y = _case(5, 7, 3)
    x[2, 1] = torch.nan
    assert torch.isnan(mmd.forward(x, y, torch.tensor(SIGMAS)))


def test_same_bits_twice():
    inputs = _case(60, 50, 5)
    assert all(torch.equal(first, second) for first, second in zip(_kernels(*inputs), _kernels(*inputs), strict=True))


def test_what_the_kernels_refuse():
    (x, y), sigmas = _case(2, 3, 2), torch.ones(2)
    assert mmd.unsupported(x=x, y=y, sigmas=sigmas) is None
    assert "sigmas" in mmd.unsupported(x=x, y=y, sigmas=sigmas.clone().requires_grad_())
    assert "up to" in mmd.unsupported(x=x, y=y, sigmas=torch.ones(65))
    assert "float32" in mmd.unsupported(x=x.double(), y=y, sigmas=sigmas)
