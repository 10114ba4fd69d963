"""The denoiser on one tile of rows whose activations stand in memory: a layer reads its input a block of columns at a time.

For a single step that is the better way than keeping activations in registers (as the chain does for many steps): a backward pass has to
write them for the weight gradients anyway, the tile's rows stay in the cache, and neither width nor precision makes registers run out.
Rows of a tile begin at `at` [BN] of a plane; a barrier separates layers, since every thread reads what others wrote.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ddvi_fast.kernels.common import column, relu

NARROW = tl.constexpr(4)  # up to this many columns, products with states and contexts go column by column, else to tensor cores


@triton.jit
def read(plane, at, alive, j, BH: tl.constexpr):
    """Chunk `j` [BN, BH] of a plane."""
    return tl.load(plane + (at[:, None] + (j * BH + tl.arange(0, BH))[None, :]), alive[:, None], 0.0)


@triton.jit
def write(plane, at, alive, j, x, BH: tl.constexpr):
    tl.store(plane + (at[:, None] + (j * BH + tl.arange(0, BH))[None, :]), x, alive[:, None])


@triton.jit
def product(plane, at, alive, weight, j, FORWARD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, PRODUCT: tl.constexpr):
    """Chunk `j` of `x @ W^T` (forward) or `x @ W` (backward), float32, for a plane `x` and a hidden matrix W [H, H]."""
    lanes = j * BH + tl.arange(0, BH)
    total = tl.zeros((at.shape[0], BH), tl.float32)
    for k in range(0, H, BK):
        depth = k + tl.arange(0, BK)
        x = tl.load(plane + (at[:, None] + depth[None, :]), alive[:, None], 0.0)
        if FORWARD:
            block = tl.load(weight + (lanes[None, :] * H + depth[:, None]))
        else:
            block = tl.load(weight + (depth[:, None] * H + lanes[None, :]))
        total = tl.dot(x, block, total, input_precision=PRODUCT)
    return total


@triton.jit
def widen(x, weight, lane_stride: tl.constexpr, stride: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, BH: tl.constexpr):
    """`sum_d x[:, d] w[d, :]` for `x` [BN, PAD], zero beyond WIDTH columns: [BN, BH]. Entry (d, lane) of the weight is at the strides."""
    lanes, across = tl.arange(0, BH), tl.arange(0, PAD)
    if WIDTH <= NARROW:
        total = tl.zeros((x.shape[0], BH), tl.float32)
        for d in tl.static_range(WIDTH):
            total += column(x, across, d)[:, None] * tl.load(weight + d * stride + lanes * lane_stride)[None, :]
        return total
    else:
        block = tl.load(weight + (across[:, None] * stride + lanes[None, :] * lane_stride), across[:, None] < WIDTH, 0.0)
        return tl.dot(x, block, input_precision="tf32x3")


@triton.jit
def narrow(total, x, weight, lane_stride: tl.constexpr, stride: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, BH: tl.constexpr):
    """`total` [BN, PAD] plus `sum_lane x[:, lane] w[:, lane]` for a float32 chunk `x` [BN, BH]: the other way than `widen`."""
    lanes, across = tl.arange(0, BH), tl.arange(0, PAD)
    if WIDTH <= NARROW:
        for d in tl.static_range(WIDTH):
            part = tl.sum(x * tl.load(weight + d * stride + lanes * lane_stride)[None, :], axis=1)
            total += tl.where(across[None, :] == d, part[:, None], 0.0)
        return total
    else:
        block = tl.load(weight + (lanes[:, None] * lane_stride + across[None, :] * stride), across[None, :] < WIDTH, 0.0)
        return tl.dot(x, block, total, input_precision="tf32x3")


@triton.jit
def run_forward(
    y, c, first, hidden, last, last_bias, bias, at, alive, x1, x2, x3, summed, x4,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """The output [BN, D_PAD] at states `y` and contexts `c`, with biases [BN, 1] of pointers to rows [4, H].

    Writes the first two activations, the third (unless `x3` is None), the input of the last matrix and the fourth (unless None).
    """
    low = hidden.dtype.element_ty
    for j in range(H // BH):
        total = widen(y, first + j * BH * (D + C), D + C, 1, D, D_PAD, BH)
        if C > 0:
            total += widen(c, first + j * BH * (D + C) + D, D + C, 1, C, C_PAD, BH)
        write(x1, at, alive, j, relu(total + bias_of(bias, 0, j, H, BH)).to(low), BH)
    tl.debug_barrier()
    for j in range(H // BH):
        total = product(x1, at, alive, hidden, j, True, H, BH, BK, PRODUCT)
        write(x2, at, alive, j, relu(total + bias_of(bias, 1, j, H, BH)).to(low), BH)
    tl.debug_barrier()
    for j in range(H // BH):
        total = relu(product(x2, at, alive, hidden + H * H, j, True, H, BH, BK, PRODUCT) + bias_of(bias, 2, j, H, BH))
        if x3 is not None:
            write(x3, at, alive, j, total.to(low), BH)
        if RESIDUAL:
            total += read(x1, at, alive, j, BH).to(tl.float32)
        write(summed, at, alive, j, total.to(low), BH)
    tl.debug_barrier()
    out = tl.zeros((at.shape[0], D_PAD), tl.float32)
    for j in range(H // BH):
        total = relu(product(summed, at, alive, hidden + 2 * H * H, j, True, H, BH, BK, PRODUCT) + bias_of(bias, 3, j, H, BH))
        if x4 is not None:
            write(x4, at, alive, j, total, BH)
        out = narrow(out, total, last + j * BH, 1, H, D, D_PAD, BH)
    across = tl.arange(0, D_PAD)
    return out + tl.load(last_bias + across, across < D, 0.0)[None, :]


@triton.jit
def bias_of(bias, layer: tl.constexpr, j, H: tl.constexpr, BH: tl.constexpr):
    """Chunk `j` of a layer's biases, [BN, BH]."""
    return tl.load(bias + (layer * H + j * BH + tl.arange(0, BH))[None, :])


@triton.jit
def run_backward(
    d_output, first, hidden, last, at, alive, x1, x2, x3, x4, d1, d2, d3, d4,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """The gradients of states [BN, D_PAD] and contexts [BN, C_PAD] from that of the output, after `run_forward`.

    Writes the gradients before the four ReLUs. `d1` (float32) first holds the gradient of the sum.
    """
    low = hidden.dtype.element_ty
    tl.debug_barrier()
    for j in range(H // BH):
        total = widen(d_output, last + j * BH, 1, H, D, D_PAD, BH)
        write(d4, at, alive, j, tl.where(read(x4, at, alive, j, BH) > 0, total, 0.0).to(low), BH)
    tl.debug_barrier()
    for j in range(H // BH):
        total = product(d4, at, alive, hidden + 2 * H * H, j, False, H, BH, BK, PRODUCT)
        if RESIDUAL:
            write(d1, at, alive, j, total, BH)
        write(d3, at, alive, j, tl.where(read(x3, at, alive, j, BH) > 0, total, 0.0).to(low), BH)
    tl.debug_barrier()
    for j in range(H // BH):
        total = product(d3, at, alive, hidden + H * H, j, False, H, BH, BK, PRODUCT)
        write(d2, at, alive, j, tl.where(read(x2, at, alive, j, BH) > 0, total, 0.0).to(low), BH)
    tl.debug_barrier()
    d_y = tl.zeros((at.shape[0], D_PAD), tl.float32)
    d_c = tl.zeros((at.shape[0], C_PAD), tl.float32)
    for j in range(H // BH):
        total = product(d2, at, alive, hidden, j, False, H, BH, BK, PRODUCT)
        if RESIDUAL:
            total += read(d1, at, alive, j, BH)
        total = tl.where(read(x1, at, alive, j, BH) > 0, total, 0.0)
        tl.debug_barrier()
        write(d1, at, alive, j, total, BH)
        d_y = narrow(d_y, total, first + j * BH * (D + C), D + C, 1, D, D_PAD, BH)
        if C > 0:
            d_c = narrow(d_c, total, first + j * BH * (D + C) + D, D + C, 1, C, C_PAD, BH)
    return d_y, d_c
