"""Maximum mean discrepancy in C++ on every instruction set: parity, equal bits."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import parity
from ddvi_fast.native import mmd
from ddvi_fast.parity import normals

SIGMAS = torch.tensor([1.0, 4.0, 20.0])


def _sets(first, second, width):
    return normals(1, first, width), normals(2, second, width) + 0.4


# Sizes around a strip (64), a panel (192) and a block of features (112).
@pytest.mark.parametrize("case", parity.cases("mmd"), ids=str)
def test_values_and_gradients(isa, case):
    parity.check(case, "cpp")


def test_a_set_against_itself(isa):
    x, _ = _sets(70, 1, 3)
    value = mmd.forward(x, x.clone(), SIGMAS)
    assert 0 <= value < 1e-3


def test_same_bits_for_any_number_of_threads(isa, same_for_any_threads):
    case = parity.mmd_case(300, 250, 5)
    same_for_any_threads(lambda: parity.run(case, "cpp"))


def test_gradients_that_nobody_needs_are_not_computed():
    x, y = _sets(4, 5, 2)
    first, second = mmd.backward(x, y, SIGMAS, mmd.forward(x, y, SIGMAS), torch.tensor(1.0), [False, True])
    assert first is None and second.shape == y.shape
