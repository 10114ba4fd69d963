"""The denoiser's network on a tile of rows in Triton, forwards and from its output back to its last hidden layer."""

from __future__ import annotations

import triton
import triton.language as tl

from ddvi_fast.kernels.layers import (
    DOWN,
    OUTPUT,
    UP,
    activations,
    bias,
    exponent_of,
    forward_layer,
    last_activations,
    narrow,
    pair,
    power,
    store_signs,
    summed,
    widen,
)


@triton.jit
def run_forward(
    y, c, first_weights, context_weights, kept, last_weights, biases, signs, present, P: tl.constexpr, Q: tl.constexpr, H: tl.constexpr,
    B: tl.constexpr, BN: tl.constexpr, LOW: tl.constexpr, RESIDUAL: tl.constexpr, EXACT: tl.constexpr, KEEP: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """The output [BN, P] without its bias, from states `y` [BN, P] and contexts `c` [BN, Q], None if they stand in `y`.

    `signs` points to where each row stores the signs of its ReLUs, or is None.
    """
    BLOCKS: tl.constexpr = H // B
    scaled = y * UP if EXACT else y
    pin = tl.max(y, axis=1)[:, None] if P > 8 else pair(y, BN)
    sums = ()
    for m in tl.static_range(BLOCKS):
        total = bias(biases, pin, 0, BN, BLOCKS, LOW, EXACT)[m]
        if Q > 0:
            total = widen(c, context_weights[m], total, BN, Q, LOW)
        sums = sums + (widen(scaled, first_weights[m], total, BN, P, LOW),)
    x1 = activations(sums, BLOCKS, LOW, EXACT)
    if signs is not None:
        store_signs(signs, x1, present, 0, H, B, HALVES)
    x = activations(forward_layer(x1, kept, bias(biases, pin, 1, BN, BLOCKS, LOW, EXACT), 0, H, B, EXACT, KEEP), BLOCKS, LOW, EXACT)
    if signs is not None:
        store_signs(signs, x, present, 1, H, B, HALVES)
    x = activations(forward_layer(x, kept, bias(biases, pin, 2, BN, BLOCKS, LOW, EXACT), 1, H, B, EXACT, KEEP), BLOCKS, LOW, EXACT)
    if signs is not None:
        store_signs(signs, x, present, 2, H, B, HALVES)
    if RESIDUAL:
        x = summed(x, x1, BLOCKS, LOW, EXACT)
    x = last_activations(forward_layer(x, kept, bias(biases, pin, 3, BN, BLOCKS, LOW, EXACT), 2, H, B, EXACT, KEEP), BLOCKS, LOW, EXACT)
    if signs is not None:
        store_signs(signs, x, present, 3, H, B, HALVES)
    output = narrow(x, last_weights, BN, P, BLOCKS, True)
    if EXACT:
        output *= OUTPUT
    return output


@triton.jit
def through_last(
    d_output, last_weights, P: tl.constexpr, BLOCKS: tl.constexpr, B: tl.constexpr, BN: tl.constexpr, LOW: tl.constexpr, EXACT: tl.constexpr
):
    """The gradients of the last hidden layer, by block, from those of the output [BN, P]; and, where `EXACT`, what keeps them in range.

    Rows are scaled by powers of two: by 2^exponent before the product and by `factor`, which is 2^more, after it; `unscaled` undoes both.
    """
    exponent, more, factor = 0, 0, 1.0
    if EXACT:
        exponent = exponent_of(tl.max(tl.abs(d_output), axis=1))[:, None]
        d_output *= power(exponent)
    totals = ()
    for m in tl.static_range(BLOCKS):
        totals = totals + (widen(d_output, last_weights[m], tl.zeros((BN, B), tl.float32), BN, P, LOW),)
    if EXACT:
        largest = tl.max(tl.abs(totals[0]), axis=1)
        for m in tl.static_range(1, BLOCKS):
            largest = tl.maximum(largest, tl.max(tl.abs(totals[m]), axis=1))
        more = exponent_of(largest)[:, None]
        factor = power(more)
    return totals, factor, exponent, more


@triton.jit
def unscaled(d, exponent, more, EXACT: tl.constexpr):
    """Gradients without the factors of `through_last`, undone one after the other because their product may be out of range."""
    if EXACT:
        d = d * (power(-more) * (DOWN * DOWN)) * power(-exponent)
    return d
