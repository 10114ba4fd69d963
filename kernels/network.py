"""Layers of the denoiser on one tile of rows, as Triton device functions, and whole passes that keep activations in memory.

A function computes BH columns of a layer at once; its pointers are those of the first of them. In a pass over the layers the rows of the
tile stay in cache, and neither width nor precision exhausts the registers; loops keep their invariants inside (`disable_licm`), since
outside they would fill the registers. A barrier separates layers, because every thread reads what others wrote.

First and last layer are float32: outer products or sums over columns for a narrow state or context, else tensor-core products that split
each float32 into two tf32 ("tf32x3", good to about 2^-22).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ddvi_fast.kernels.common import column, relu

# Most columns of a narrow state or context.
NARROW = tl.constexpr(4)
_LEAST = 16  # fewest columns of a tensor-core product
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


def padded(width: int, dots: bool) -> int:
    """Power of two to which a state or context of this width is padded, below 16 only if it is narrow and does not enter `tl.dot`."""
    return triton.next_power_of_2(width) if width <= NARROW.value and not dots else max(_LEAST, triton.next_power_of_2(width))


@triton.jit
def widen(x, weight, LANE: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, BH: tl.constexpr):
    """`sum_d x[:, d] w[d, :]`, float32 [BN, BH], for `x` [BN, PAD], zero beyond WIDTH columns; w[d, lane] is at `d STRIDE + lane LANE`."""
    lanes, columns = tl.arange(0, BH), tl.arange(0, PAD)
    if PAD < 16:
        total = tl.zeros((x.shape[0], BH), tl.float32)
        for d in tl.static_range(WIDTH):
            total += column(x, columns, d)[:, None] * tl.load((weight + d * STRIDE) + lanes * LANE)[None, :]
        return total
    else:
        block = tl.load(weight + (columns[:, None] * STRIDE + lanes[None, :] * LANE), columns[:, None] < WIDTH, 0.0)
        return tl.dot(x, block, input_precision="tf32x3")


@triton.jit
def narrow(x, weight, LANE: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, BH: tl.constexpr):
    """`sum_lane x[:, lane] w[:, lane]`, float32 [BN, PAD], zero beyond WIDTH columns, for `x` [BN, BH]: the transpose of `widen`."""
    lanes, columns = tl.arange(0, BH), tl.arange(0, PAD)
    if WIDTH <= NARROW:
        out = tl.zeros((x.shape[0], PAD), tl.float32)
        for d in tl.static_range(WIDTH):
            part = tl.sum(x * tl.load((weight + d * STRIDE) + lanes * LANE)[None, :], axis=1)
            out += tl.where(columns[None, :] == d, part[:, None], 0.0)
        return out
    else:
        block = tl.load(weight + (lanes[:, None] * LANE + columns[None, :] * STRIDE), columns[None, :] < WIDTH, 0.0)
        return tl.dot(x, block, input_precision="tf32x3")


@triton.jit
def bias_relu(x, bias, BH: tl.constexpr):
    """`relu(x + bias)` with BH entries of one row of the time table, or for pointers [BN, 1] of a row for each row of `x`."""
    return relu(x + tl.load(bias + tl.arange(0, BH)[None, :]))


@triton.jit
def hidden_product(x, matrix, total, PRODUCT: tl.constexpr):
    """`total + x @ matrix`, operands in one element type, the sum in float32."""
    if _INTERPRETED:  # NumPy has no bfloat16: the interpreter would multiply its bits
        return tl.dot(x.to(tl.float32), matrix.to(tl.float32), total)
    else:
        return tl.dot(x, matrix, total, input_precision=PRODUCT)


@triton.jit
def load_matrix(matrix, H: tl.constexpr):
    lanes = tl.arange(0, H)
    return tl.load(matrix + (lanes[:, None] * H + lanes[None, :]))


@triton.jit
def streamed_product(x, matrix, present, begin, TURNED: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr, PRODUCT: tl.constexpr):
    """Columns `begin` to `begin + BH - 1` of `x @ W^T`, or of `x @ W` if TURNED, float32 [BN, BH], both factors read from memory.

    `x` [BN, H] is a pointer to rows that this program wrote before its last barrier; only the `present` ones are read.
    """
    rows, lanes, inner = tl.arange(0, present.shape[0]), begin + tl.arange(0, BH), tl.arange(0, BK)
    total = tl.zeros((present.shape[0], BH), tl.float32)
    for k in range(0, H, BK):
        part = tl.load(x + (rows[:, None] * H + (k + inner)[None, :]), present[:, None], 0.0)
        if TURNED:
            block = tl.load(matrix + ((k + inner)[:, None] * H + lanes[None, :]))
        else:
            block = tl.load(matrix + ((k + inner)[:, None] + lanes[None, :] * H))
        total = hidden_product(part, block, total, PRODUCT)
    return total


@triton.jit
def store_columns(x, tile, present, begin, H: tl.constexpr, BH: tl.constexpr):
    """Columns from `begin` on of the rows at pointer `x` [BN, H], in its element type."""
    rows, lanes = tl.arange(0, present.shape[0]), begin + tl.arange(0, BH)
    tl.store(x + (rows[:, None] * H + lanes[None, :]), tile.to(x.dtype.element_ty), present[:, None])


@triton.jit
def load_columns(x, present, begin, H: tl.constexpr, BH: tl.constexpr):
    """Columns that `store_columns` wrote, in float32; zero in absent rows."""
    rows, lanes = tl.arange(0, present.shape[0]), begin + tl.arange(0, BH)
    return tl.load(x + (rows[:, None] * H + lanes[None, :]), present[:, None], 0.0).to(tl.float32)


@triton.jit
def run_forward(
    y, c, first, hidden, last, bias, x1, x2, x3, summed, x4, present,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """The output [BN, D_PAD] without its bias, at states `y` [BN, D_PAD] and contexts `c` [BN, C_PAD]; zero if `last` is None.

    Planes [BN, H] get the first two activations `x1` and `x2`, the third `x3` (may be None), the last matrix's input `summed` (may be
    `x1`) and the fourth activation `x4` (may be None). `bias` points to a row [4, H] of the time table, or [BN, 1] to one for each row.
    """
    tl.debug_barrier()  # an earlier pass may still read its planes
    for j in tl.range(0, H, BH, disable_licm=True):
        tile = widen(y, first + j * (D + C), D + C, 1, D, D_PAD, BH)
        if C > 0:
            tile += widen(c, first + j * (D + C) + D, D + C, 1, C, C_PAD, BH)
        store_columns(x1, bias_relu(tile, bias + j, BH), present, j, H, BH)
    tl.debug_barrier()
    for j in tl.range(0, H, BH, disable_licm=True):
        tile = streamed_product(x1, hidden, present, j, False, H, BH, BK, PRODUCT)
        store_columns(x2, bias_relu(tile, bias + (H + j), BH), present, j, H, BH)
    tl.debug_barrier()
    for j in tl.range(0, H, BH, disable_licm=True):
        tile = bias_relu(streamed_product(x2, hidden + H * H, present, j, False, H, BH, BK, PRODUCT), bias + (2 * H + j), BH)
        if x3 is not None:
            store_columns(x3, tile, present, j, H, BH)
        if RESIDUAL:
            tile += load_columns(x1, present, j, H, BH)
        store_columns(summed, tile, present, j, H, BH)  # where `summed` is `x1`, each element depends only on the one it replaces
    tl.debug_barrier()
    output = tl.zeros((present.shape[0], D_PAD), tl.float32)
    for j in tl.range(0, H, BH, disable_licm=True):
        tile = bias_relu(streamed_product(summed, hidden + 2 * H * H, present, j, False, H, BH, BK, PRODUCT), bias + (3 * H + j), BH)
        if x4 is not None:
            store_columns(x4, tile, present, j, H, BH)
        if last is not None:
            output += narrow(tile, last + j, 1, H, D, D_PAD, BH)
    return output


@triton.jit
def run_backward(
    d_output, first, hidden, last, x1, x2, x3, x4, d1, d2, d3, d4, sums, present,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BK: tl.constexpr,
    RESIDUAL: tl.constexpr, OF_CONTEXT: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Gradients of states [BN, D_PAD] and contexts [BN, C_PAD] (zero unless OF_CONTEXT) from that of the output, after `run_forward`.

    Planes [BN, H] `d1` to `d4` get the gradients before the four ReLUs; until the last step `d1` (float32) holds that of the last matrix's
    input. `sums` [4, H] (may be None) gets their sums over rows.
    """
    tl.debug_barrier()
    for j in tl.range(0, H, BH, disable_licm=True):
        d = widen(d_output, last + j, 1, H, D, D_PAD, BH)
        _store_gradient(d4, d, x4, sums, 3, present, j, H, BH)
    tl.debug_barrier()
    for j in tl.range(0, H, BH, disable_licm=True):
        d = streamed_product(d4, hidden + 2 * H * H, present, j, True, H, BH, BK, PRODUCT)
        if RESIDUAL:
            store_columns(d1, d, present, j, H, BH)
        _store_gradient(d3, d, x3, sums, 2, present, j, H, BH)
    tl.debug_barrier()
    for j in tl.range(0, H, BH, disable_licm=True):
        d = streamed_product(d3, hidden + H * H, present, j, True, H, BH, BK, PRODUCT)
        _store_gradient(d2, d, x2, sums, 1, present, j, H, BH)
    tl.debug_barrier()
    d_y = tl.zeros((present.shape[0], D_PAD), tl.float32)
    d_c = tl.zeros((present.shape[0], C_PAD), tl.float32)
    for j in tl.range(0, H, BH, disable_licm=True):
        d = streamed_product(d2, hidden, present, j, True, H, BH, BK, PRODUCT)
        if RESIDUAL:
            d += load_columns(d1, present, j, H, BH)
        d = _store_gradient(d1, d, x1, sums, 0, present, j, H, BH)
        d_y += narrow(d, first + j * (D + C), D + C, 1, D, D_PAD, BH)
        if OF_CONTEXT:
            d_c += narrow(d, first + j * (D + C) + D, D + C, 1, C, C_PAD, BH)
    return d_y, d_c


@triton.jit
def _store_gradient(plane, d, activation, sums, LAYER: tl.constexpr, present, begin, H: tl.constexpr, BH: tl.constexpr):
    """Gradient before the ReLU that gave `activation`: returned, stored, and summed over rows."""
    d = tl.where(load_columns(activation, present, begin, H, BH) > 0, d, 0.0)
    store_columns(plane, d, present, begin, H, BH)
    if sums is not None:
        tl.store(sums + (LAYER * H + begin) + tl.arange(0, BH), tl.sum(d, axis=0))
    return d
