"""Maximum mean discrepancy in C++ against the reference in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import rng, testing
from ddvi_fast.native import mmd
from ddvi_fast.reference import mmd as reference
from ddvi_fast.rng import Draws

SIGMAS = (1.0, 4.0, 20.0)


def _case(first, second, width):
    return rng.normal(Draws(1), (first, width), 0), rng.normal(Draws(2), (second, width), 0) + 0.4


def _run(function, inputs, dtype):
    leaves = [value.to(dtype).clone().requires_grad_() for value in inputs]
    out = function(*leaves, torch.tensor(SIGMAS, dtype=dtype))
    return out, *torch.autograd.grad(1.7 * out, leaves)


# Sizes around a strip (64), a panel (192) and a block of features (112).
@pytest.mark.parametrize("first, second, width", [(1, 1, 1), (2, 3, 2), (63, 65, 3), (200, 131, 17), (193, 400, 113)])
def test_values_and_gradients(isa, first, second, width):
    inputs = _case(first, second, width)
    every = [(mmd.mmd, torch.float32), (reference.mmd, torch.float32), (reference.mmd, torch.float64)]
    for got, plain, exact in zip(*(_run(function, inputs, dtype) for function, dtype in every), strict=True):
        testing.assert_within_budget(got, plain, exact, floor=3e-6)


def test_a_set_against_itself(isa):
    x, _ = _case(70, 1, 3)
    value = mmd.mmd(x, x.clone(), torch.tensor(SIGMAS))
    assert 0 <= value < 1e-3


def test_same_bits_for_any_number_of_threads(isa, threads):
    inputs, results = _case(300, 250, 5), []
    for count in (1, 2, 2):
        threads(count)
        results.append(_run(mmd.mmd, inputs, torch.float32))
    assert all(torch.equal(first, other) for later in results[1:] for first, other in zip(results[0], later, strict=True))


def test_strided_inputs(isa):
    (x, y), sigmas = _case(30, 40, 5), torch.tensor(SIGMAS)
    assert torch.equal(mmd.mmd(testing.strided(x), testing.strided(y), sigmas), mmd.mmd(x, y, sigmas))
