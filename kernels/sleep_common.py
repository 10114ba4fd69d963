"""Device functions of the sleep term's regression, for both passes: noising of a tile of rows, each to a step of its own, and the loss."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ddvi_fast import rng
from ddvi_fast.kernels.chain_options import Sizes
from ddvi_fast.kernels.rng import draw_index, step_noise

STREAM = tl.constexpr(rng.NOISE)


@triton.jit
def penalty(error, LOSS: tl.constexpr):
    size = tl.abs(error)
    if LOSS == "squared":
        return error * error
    elif LOSS == "absolute":
        return size
    else:
        return tl.where(size < 1, 0.5 * error * error, size - 0.5)


@triton.jit
def slope(error, LOSS: tl.constexpr):
    """The derivative of `penalty`; that of |e| is 0 at 0."""
    sign = tl.where(error > 0, 1.0, tl.where(error < 0, -1.0, error))
    if LOSS == "squared":
        return 2 * error
    elif LOSS == "absolute":
        return sign
    else:
        return tl.where(tl.abs(error) < 1, error, sign)


@triton.jit
def noised(x0, t, table, noise, state, row, alive, offset, rows_per_sample, steps, D: tl.constexpr, D_PAD: tl.constexpr):
    """Clean latents, noise, step, the five entries of its row of the table, offsets and mask, for a tile of rows.

    A row whose step does not exist gets the weight NaN, so that its loss and gradients show it.
    """
    across = tl.arange(0, D_PAD)
    inside = alive[:, None] & (across < D)[None, :]
    place = row[:, None] * D + across[None, :]
    step = tl.load(t + row, alive, 0)
    known = (step >= 0) & (step < steps)
    step = tl.where(known, step, 0)
    clean = tl.load(x0 + place, inside, 0.0)
    index = row
    if noise is None:
        index = draw_index(state, offset, row, rows_per_sample)
    eps = step_noise(noise, state, index, place, inside, STREAM, 0, D_PAD)
    k = table + 5 * step
    signal, deviation, c0, c1 = tl.load(k)[:, None], tl.load(k + 1)[:, None], tl.load(k + 2)[:, None], tl.load(k + 3)[:, None]
    weight = tl.where(known, tl.load(k + 4), float("nan"))
    return clean, eps, step, signal, deviation, c0, c1, weight, place, inside


@triton.jit
def context_tile(context, absent, row, alive, C: tl.constexpr, C_PAD: tl.constexpr):
    """The contexts [BN, C_PAD] of a tile, zero beyond C columns; `absent` if there are none."""
    if C > 0:
        across = tl.arange(0, C_PAD)
        return tl.load(context + row[:, None] * C + across[None, :], alive[:, None] & (across < C)[None, :], 0.0)
    else:
        return absent


def constexprs(sizes: Sizes, residual: bool, precision: str, loss: str) -> dict[str, Any]:
    """Constants that both kernels are compiled for."""
    return sizes.constexprs(residual, precision, dots=True) | {"LOSS": loss}
