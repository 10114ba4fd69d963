"""The sleep term's regression in C++ against the reference in float64: values, every gradient, awkward shapes, determinism, bf16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddvi_fast import parity
from ddvi_fast._checks import InputError
from ddvi_fast.native import sleep
from tests.operands import call, exact_regression, largest_relative_error, sleep_operands

# N, T, D, C, H, G: every size of the contract at least once, small sizes with large ones.
SHAPES = [
    (0, 2, 2, 2, 64, None),
    (1, 5, 1, 0, 64, None),
    (2, 20, 2, 2, 64, None),
    (63, 2, 3, 7, 128, 3),
    (64, 5, 5, 64, 64, None),
    (65, 100, 16, 1, 128, 1),
    (257, 40, 33, 2, 64, 3),
    (17, 2, 64, 0, 256, None),
    (1000, 20, 2, 2, 64, None),
    (9, 5, 2, 0, 64, 10),
]


def _case(shape, loss="squared", residual=None):
    return replace(parity.sleep_case(shape, "given", loss, "random", residual), floor=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(isa, shape, poison_empty):
    parity.check(_case(shape), "cpp")


@pytest.mark.parametrize("loss", sleep.LOSSES)
@pytest.mark.parametrize("residual", [False, True])
def test_losses(isa, loss, residual):
    parity.check(_case((77, 5, 3, 2, 64, None), loss, residual), "cpp")


def test_an_exact_prediction_has_neither_loss_nor_gradient(isa):
    """The kink of |e| at zero counts as flat, as in torch."""
    operands = sleep_operands((5, 3, 2, 0, 64, None), "absolute")
    table = operands.table * torch.tensor([1.0, 1, 0, 0, 1])
    operands = operands._replace(last=torch.zeros_like(operands.last), last_bias=torch.zeros_like(operands.last_bias), table=table)
    for name, value in call(sleep, operands).items():
        assert value is None or not value.any(), name


@pytest.mark.parametrize("samples, rows, groups", [((), 65, None), ((3,), 22, None), ((2, 5), 7, None), ((3,), 7, 2)])
def test_drawn_noise_is_the_given_noise(isa, samples, rows, groups):
    """Rows keep their draws however they are flattened, with seeds of 64 bits; groups count as samples."""
    parity.check(parity.sleep_case((rows, 3, 5, 2, 64, groups), "drawn", "huber", "random", samples=samples), "cpp")


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_same_bits_twice_and_for_any_number_of_threads(isa, same_for_any_threads, precision):
    operands = sleep_operands((200, 3, 3, 2, 64, 2), "huber", precision=precision)
    same_for_any_threads(lambda: call(sleep, operands))


@pytest.mark.parametrize("shape", [(1, 2, 1, 0, 64, None), (65, 4, 3, 2, 128, None), (127, 2, 16, 7, 64, 2)], ids=str)
def test_bf16_stays_within_bf16_rounding(bf16_isa, shape):
    """Weights and activations lose 8 bits each; a wrong pairing of neighbors would be off by the size of the values."""
    operands = sleep_operands(shape, precision="bf16")
    assert 1e-5 < largest_relative_error(call(sleep, operands), exact_regression(operands)) < 0.06


def test_a_step_that_does_not_exist_is_named():
    operands = sleep_operands((40, 3, 3, 2, 64, None))
    for wrong in (-1, 3):
        operands.t[7] = wrong
        with pytest.raises(InputError, match=rf"^t: expected steps in \[0, 3\), got {wrong}$"):
            sleep.forward(operands)


def test_unsupported_operands_are_named():
    wide, double = torch.zeros(3, 96, 96), torch.zeros(2, dtype=torch.float64)
    assert sleep.unsupported(hidden=torch.zeros(3, 64, 64)) is None
    assert "multiples of 64, got 96" in sleep.unsupported(hidden=wide)
    assert "float32 and bf16, got tf32" in sleep.unsupported("tf32")
    assert "x0: the C++ kernels are float32, got float64" in sleep.unsupported(x0=double)
