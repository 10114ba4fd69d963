"""Maximum mean discrepancy in C++ on every instruction set: parity, equal bits."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import parity, rng
from ddvi_fast.native import mmd
from ddvi_fast.rng import Draws

SIGMAS = torch.tensor([1.0, 4.0, 20.0])


def _case(first, second, width):
    return rng.normal(Draws(1), (first, width), 0), rng.normal(Draws(2), (second, width), 0) + 0.4


# Sizes around a strip (64), a panel (192) and a block of features (112).
@pytest.mark.parametrize("case", parity.cases("mmd"), ids=str)
def test_values_and_gradients(isa, case):
    parity.check(case, "cpp")


def test_a_set_against_itself(isa):
    x, _ = _case(70, 1, 3)
    value = mmd.forward(x, x.clone(), SIGMAS)
    assert 0 <= value < 1e-3


def test_same_bits_for_any_number_of_threads(isa, threads):
    (x, y), results = _case(300, 250, 5), []
    for count in (1, 2, 2):
        threads(count)
        value = mmd.forward(x, y, SIGMAS)
        results.append([value, *mmd.backward(x, y, SIGMAS, value, torch.tensor(1.7), [True, True])])
    assert all(torch.equal(first, other) for later in results[1:] for first, other in zip(results[0], later, strict=True))


def test_gradients_that_nobody_needs_are_not_computed():
    x, y = _case(4, 5, 2)
    first, second = mmd.backward(x, y, SIGMAS, mmd.forward(x, y, SIGMAS), torch.tensor(1.0), [False, True])
    assert first is None and second.shape == y.shape
