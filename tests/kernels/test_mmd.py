"""Maximum mean discrepancy in Triton against the reference in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import parity
from ddvi_fast.kernels import mmd
from ddvi_fast.parity import normals
from ddvi_fast.reference import mmd as reference
from tests.operands import check_triton, run_triton

pytestmark = pytest.mark.usefixtures("poison_empty")

SIGMAS = torch.tensor([1.0, 4.0, 20.0])


def _sets(first, second, width):
    return normals(1, first, width), normals(2, second, width) + 0.4


# One tile of a set to three; sets that end within a tile and on its edge; features of one turn to five.
@pytest.mark.parametrize("first, second, width", [(1, 1, 1), (2, 3, 2), (1, 130, 5), (128, 2, 3), (127, 128, 32), (20, 129, 33), (300, 70, 130)])
def test_values_and_gradients(first, second, width):
    check_triton(parity.mmd_case(first, second, width))


def test_coefficients_of_one_tile_at_a_time(monkeypatch):
    """Blocks of pairs only change the order of sums."""
    case = parity.mmd_case(300, 140, 3)
    expected = run_triton(case)
    monkeypatch.setattr(mmd, "_SIDE", 1)
    for name, value in run_triton(case).items():
        torch.testing.assert_close(value, expected[name], rtol=2e-6, atol=1e-6 * float(expected[name].abs().max()))


def test_every_pair_of_tiles_counts_once():
    """Far apart sets of equal rows: every kernel is 1 or 0, so the value is known, for any number of tiles."""
    for tiles in range(1, 6):
        x, y = torch.zeros(mmd.TILE * tiles - 5, 2), torch.full((3, 2), 1000.0)
        assert mmd.forward(x, y, torch.tensor([1.0])).item() == torch.tensor(2.0).sqrt().item()


@pytest.mark.parametrize("apart", [0.1, 1e-2, 0.0])
def test_sets_that_nearly_agree(apart):
    """Images of a set and the same with a little noise: of the three sums almost nothing is left, and the root is of little more than rounding."""
    x = torch.sigmoid(3 * normals(1, 130, 784))
    y = x + apart * normals(2, 130, 784)
    sigmas = torch.tensor([5.0, 50.0, 500.0])
    exact, value = reference.mmd(x.double(), y.double(), sigmas.double()), mmd.forward(x, y, sigmas).double()
    assert abs(value**2 - exact**2) < 2e-7
    assert apart < 0.1 or abs(value - exact) < 1e-6


def test_rows_of_very_different_lengths():
    """Each row has a factor of its own, and a tile of coefficients another: neither long rows nor far ones take digits from short ones."""
    x = torch.cat((normals(1, 60, 20), 1e5 * normals(2, 3, 20), 1e-6 * normals(4, 60, 20)))
    y = normals(3, 150, 20) + 0.4
    sigmas = torch.tensor([1.0, 20.0])
    value = mmd.forward(x, y, sigmas)
    wide = x.double().requires_grad_(), y.double().requires_grad_()
    exact = reference.mmd(*wide, sigmas.double())
    assert abs(value.double() - exact) < 1e-6
    for got, expected in zip(mmd.backward(x, y, sigmas, value, torch.tensor(1.0), [True, True]), torch.autograd.grad(exact, wide), strict=True):
        assert ((got.double() - expected).norm() / expected.norm()) < 3e-6


def test_no_rows_have_no_discrepancy():
    x, y = _sets(0, 3, 2)
    value = mmd.forward(x, y, SIGMAS)
    to_x, to_y = mmd.backward(x, y, SIGMAS, value, torch.tensor(-1.7), [True, True])
    assert torch.isnan(value) and to_x.shape == (0, 2) and torch.equal(to_y, torch.zeros(3, 2))


def test_what_is_not_finite_stays_so():
    x, y = _sets(5, 7, 3)
    x[2, 1] = torch.nan
    value = mmd.forward(x, y, SIGMAS)
    assert torch.isnan(value)
    assert all(gradient.isnan().all() for gradient in mmd.backward(x, y, SIGMAS, value, torch.tensor(1.0), [True, True]))


def test_same_bits_twice():
    first, second = (run_triton(parity.mmd_case(60, 50, 5)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_unsupported_operands_are_named():
    (x, y), sigmas = _sets(2, 3, 2), torch.ones(2)
    assert mmd.unsupported(x=x, y=y, sigmas=sigmas) is None
    assert "sigmas" in mmd.unsupported(x=x, y=y, sigmas=sigmas.clone().requires_grad_())
    assert "up to" in mmd.unsupported(x=x, y=y, sigmas=torch.ones(65))
    assert "float32" in mmd.unsupported(x=x.double(), y=y, sigmas=sigmas)
