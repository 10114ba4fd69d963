"""The denoiser's layers on one tile of rows, as device functions.

A function makes BH columns of a layer at once: pointers it takes stand at the first of them. First and last layer are float32: outer
products or sums over columns for a narrow state or context, else products of tensor cores that split each float32 in two tf32 ("tf32x3",
good to about 2^-22).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ddvi_fast.kernels.common import column, relu

# States and contexts of at most so many columns are narrow.
NARROW = tl.constexpr(4)
_LEAST = 16  # columns that tensor cores take
_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


def padded(width: int, dots: bool) -> int:
    """The power of two that a state or context of this width is padded to, below 16 only if it is narrow and need not enter `tl.dot`."""
    return triton.next_power_of_2(width) if width <= NARROW.value and not dots else max(_LEAST, triton.next_power_of_2(width))


@triton.jit
def input_product(x, first, STRIDE: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, BH: tl.constexpr):
    """`x @ W^T`, float32 [BN, BH], for `x` [BN, PAD], zero beyond WIDTH columns, and W [BH, WIDTH] with rows STRIDE apart."""
    lanes, columns = tl.arange(0, BH), tl.arange(0, PAD)
    if PAD < 16:
        total = tl.zeros((x.shape[0], BH), tl.float32)
        for d in tl.static_range(WIDTH):
            total += column(x, columns, d)[:, None] * tl.load((first + d) + lanes * STRIDE)[None, :]
        return total
    else:
        weights = tl.load(first + (lanes[None, :] * STRIDE + columns[:, None]), columns[:, None] < WIDTH, 0.0)
        return tl.dot(x, weights, input_precision="tf32x3")


@triton.jit
def input_gradient(d, first, STRIDE: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, BH: tl.constexpr):
    """`d @ W`, [BN, PAD], zero beyond WIDTH columns: what BH columns send back through `input_product`."""
    lanes, columns = tl.arange(0, BH), tl.arange(0, PAD)
    if WIDTH <= NARROW:
        out = tl.zeros((d.shape[0], PAD), tl.float32)
        for c in tl.static_range(WIDTH):
            part = tl.sum(d * tl.load((first + c) + lanes * STRIDE)[None, :], axis=1)
            out += tl.where(columns[None, :] == c, part[:, None], 0.0)
        return out
    else:
        weights = tl.load(first + (lanes[:, None] * STRIDE + columns[None, :]), columns[None, :] < WIDTH, 0.0)
        return tl.dot(d, weights, input_precision="tf32x3")


@triton.jit
def output_product(x, last, H: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BH: tl.constexpr):
    """`x @ L^T` for BH columns of L [D, H]: [BN, D_PAD], zero beyond D columns."""
    lanes, columns = tl.arange(0, BH), tl.arange(0, D_PAD)
    if D <= NARROW:
        out = tl.zeros((x.shape[0], D_PAD), tl.float32)
        for d in tl.static_range(D):
            part = tl.sum(x * tl.load((last + d * H) + lanes)[None, :], axis=1)
            out += tl.where(columns[None, :] == d, part[:, None], 0.0)
        return out
    else:
        weights = tl.load(last + (columns[None, :] * H + lanes[:, None]), columns[None, :] < D, 0.0)
        return tl.dot(x, weights, input_precision="tf32x3")


@triton.jit
def output_gradient(d_out, last, H: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BH: tl.constexpr):
    """`d_out @ L`, float32 [BN, BH]: the way back through `output_product`; D_PAD is 16 at least."""
    lanes, columns = tl.arange(0, BH), tl.arange(0, D_PAD)
    weights = tl.load(last + (columns[:, None] * H + lanes[None, :]), columns[:, None] < D, 0.0)
    return tl.dot(d_out, weights, input_precision="tf32x3")


@triton.jit
def bias_relu(x, bias, BH: tl.constexpr):
    """`relu(x + bias)` with BH entries of a row of the time table."""
    return relu(x + tl.load(bias + tl.arange(0, BH))[None, :])


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
    """What `store_columns` wrote, in float32; zero in absent rows."""
    rows, lanes = tl.arange(0, present.shape[0]), begin + tl.arange(0, BH)
    return tl.load(x + (rows[:, None] * H + lanes[None, :]), present[:, None], 0.0).to(tl.float32)
