"""The sleep term's regression in Triton against the reference in float64: values, every gradient, awkward shapes, several pieces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddvi_fast import parity
from ddvi_fast.kernels import sleep, sleep_backward
from tests.operands import TRITON_DEVICE, call, check_triton, exact_regression, largest_relative_error, sleep_operands

# N, T, D, C, H, G
SHAPES = [
    (0, 2, 2, 2, 64, None),
    (1, 5, 1, 0, 64, None),
    (2, 20, 2, 2, 64, None),
    (33, 2, 3, 7, 64, 2),
    (65, 100, 5, 1, 64, 1),
    (17, 5, 16, 64, 128, None),
    (3, 2, 33, 2, 256, None),
    (9, 5, 64, 0, 64, 2),
]

pytestmark = pytest.mark.usefixtures("poison_empty")


def _case(shape, loss="squared", parametrisation="random", source="given", residual=None):
    # Products of tf32 triples are good to about 2^-22.
    return replace(parity.sleep_case(shape, source, loss, parametrisation, residual), floor=4e-6 if source == "given" else 1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape):
    check_triton(_case(shape))


@pytest.mark.parametrize("loss", ["absolute", "huber"])
@pytest.mark.parametrize("residual", [False, True])
def test_losses(loss, residual):
    check_triton(_case((21, 5, 3, 2, 64, None), loss, residual=residual))


@pytest.mark.parametrize("groups", [None, 2])
def test_drawn_noise_is_the_given_noise(groups):
    """Rows keep their draws however they are flattened, with seeds of 64 bits and an offset."""
    check_triton(parity.sleep_case((7, 3, 5, 2, 64, groups), "drawn", "huber", "random", samples=(3,) if groups else (2, 3)))


def test_pieces_tiles_and_slices_add_up(monkeypatch):
    """Scratch for one tile at a time, one program for all tiles of a forward pass."""
    monkeypatch.setattr(sleep_backward, "SCRATCH_BYTES", 1)
    monkeypatch.setattr(sleep, "_PROGRAMS", 1)
    check_triton(_case((100, 70, 2, 2, 64, None)))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_within_its_rounding(precision):
    operands = sleep_operands((40, 4, 3, 2, 64, 2), precision=precision, device=TRITON_DEVICE)
    assert 1e-5 < largest_relative_error(call(sleep, operands), exact_regression(operands)) < (0.06 if precision == "bf16" else 0.01)


def test_a_step_that_does_not_exist_gives_nan():
    operands = sleep_operands((40, 3, 3, 2, 64, None), device=TRITON_DEVICE)
    operands.t[7], operands.t[9] = -1, 3
    assert call(sleep, operands)["loss"].isnan().nonzero().flatten().tolist() == [7, 9]


def test_unsupported_operands_are_named():
    odd = torch.zeros(3, 96, 96, device=TRITON_DEVICE)
    assert sleep.unsupported(hidden=torch.zeros(3, 64, 64, device=TRITON_DEVICE)) is None
    assert "hidden widths 64, 128, 256, got 96" in sleep.unsupported(hidden=odd)
    assert "got int8" in sleep.unsupported("int8")
    assert "at most 64 columns, got 65" in sleep.unsupported(x0=torch.zeros(2, 65, device=TRITON_DEVICE))
