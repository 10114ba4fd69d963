"""Maximum mean discrepancy in Triton against the reference in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import parity
from ddvi_fast.kernels import mmd
from ddvi_fast.parity import normals
from tests.operands import check_triton, run_triton

pytestmark = pytest.mark.usefixtures("poison_empty")

SIGMAS = torch.tensor([1.0, 4.0, 20.0])


def _sets(first, second, width):
    return normals(1, first, width), normals(2, second, width) + 0.4


# One tile to ten, in odd and even numbers; sets that end within a tile and on its edge.
@pytest.mark.parametrize(
    "first, second, width", [(1, 1, 1), (2, 3, 2), (1, 65, 5), (63, 2, 3), (64, 64, 16), (20, 129, 33), (70, 63, 64), (190, 70, 5)]
)
def test_values_and_gradients(first, second, width):
    check_triton(parity.mmd_case(first, second, width))


def test_more_rows_than_the_workspace_holds(monkeypatch):
    """Pair coefficients of a tile of rows at a time give the same bits as those of all rows at once."""
    case = parity.mmd_case(70, 20, 3)
    expected = run_triton(case)
    monkeypatch.setattr(mmd, "_WORKSPACE", 1)
    got = run_triton(case)
    assert all(torch.equal(got[name], expected[name]) for name in got)


def test_every_pair_of_tiles_counts_once():
    """Far apart sets of equal rows: every kernel is 1 or 0, so the value is known, for any number of tiles."""
    for tiles in range(1, 6):
        x, y = torch.zeros(64 * tiles - 5, 2), torch.full((3, 2), 1000.0)
        assert mmd.forward(x, y, torch.tensor([1.0])).item() == torch.tensor(2.0).sqrt().item()


def test_no_rows_have_no_discrepancy():
    x, y = _sets(0, 3, 2)
    value = mmd.forward(x, y, SIGMAS)
    to_x, to_y = mmd.backward(x, y, SIGMAS, value, torch.tensor(-1.7), [True, True])
    assert torch.isnan(value) and to_x.shape == (0, 2) and torch.equal(to_y, torch.zeros(3, 2))


def test_what_is_not_finite_stays_so():
    x, y = _sets(5, 7, 3)
    x[2, 1] = torch.nan
    assert torch.isnan(mmd.forward(x, y, SIGMAS))


def test_same_bits_twice():
    first, second = (run_triton(parity.mmd_case(60, 50, 5)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_unsupported_operands_are_named():
    (x, y), sigmas = _sets(2, 3, 2), torch.ones(2)
    assert mmd.unsupported(x=x, y=y, sigmas=sigmas) is None
    assert "sigmas" in mmd.unsupported(x=x, y=y, sigmas=sigmas.clone().requires_grad_())
    assert "up to" in mmd.unsupported(x=x, y=y, sigmas=torch.ones(65))
    assert "float32" in mmd.unsupported(x=x.double(), y=y, sigmas=sigmas)
