"""The denoiser on one tile of rows, as device functions: its layers forward, and backward to its input.

A hidden activation is a tuple of chunks [BN, BH] of its H columns, so that a product never needs more than a [BH, BH] block of weights at
once. First and last layer are float32: outer products for a narrow state or context, else products of tensor cores that split each float32
in two tf32 ("tf32x3", good to about 2^-22).
"""

from __future__ import annotations

import triton
import triton.language as tl

from ddvi_fast.kernels.common import column, relu

# Up to this many columns, states and contexts are handled by outer products; beyond, they are padded to what tensor cores take.
NARROW = 4


def padded(width: int) -> int:
    """The power of two that a state or context of this width is padded to."""
    return triton.next_power_of_2(width) if width <= NARROW else max(16, triton.next_power_of_2(width))


@triton.jit
def load_hidden(hidden, H: tl.constexpr, BH: tl.constexpr, KEEP: tl.constexpr):
    """All blocks of the three hidden matrices, to be kept for the whole loop; nothing if they are to be streamed."""
    blocks = ()
    if KEEP:
        for layer in tl.static_range(3):
            for j in tl.static_range(H // BH):
                for k in tl.static_range(H // BH):
                    blocks = blocks + (load_block(hidden, layer, j, k, H, BH),)
    return blocks


@triton.jit
def load_block(hidden, layer: tl.constexpr, j: tl.constexpr, k: tl.constexpr, H: tl.constexpr, BH: tl.constexpr):
    """Rows of chunk `j`, columns of chunk `k` of a layer's matrix [H, H]."""
    # All blocks share one tensor of offsets; what differs is a scalar. Else each keeps addresses of its own in registers.
    lanes = tl.arange(0, BH)
    return tl.load((hidden + ((layer * H + j * BH) * H + k * BH)) + (lanes[:, None] * H + lanes[None, :]))


@triton.jit
def get_block(blocks, hidden, layer: tl.constexpr, j: tl.constexpr, k: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, KEEP: tl.constexpr):
    """A block that was kept, or now loaded."""
    if KEEP:
        return blocks[(layer * (H // BH) + j) * (H // BH) + k]
    else:
        return load_block(hidden, layer, j, k, H, BH)


@triton.jit
def multiply(x, blocks, hidden, layer: tl.constexpr, FORWARD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, KEEP: tl.constexpr, PRODUCT: tl.constexpr):
    """`x @ W^T` (forward) or `x @ W` (backward) of the layer's matrix W, float32 chunks."""
    CHUNKS: tl.constexpr = H // BH
    out = ()
    for j in tl.static_range(CHUNKS):
        total = tl.zeros((x[0].shape[0], BH), tl.float32)
        for k in tl.static_range(CHUNKS):
            if FORWARD:
                block = tl.trans(get_block(blocks, hidden, layer, j, k, H, BH, KEEP))
            else:
                block = get_block(blocks, hidden, layer, k, j, H, BH, KEEP)
            total = tl.dot(x[k], block, total, input_precision=PRODUCT)
        out = out + (total,)
    return out


@triton.jit
def add_bias_relu(x, table, H: tl.constexpr, BH: tl.constexpr):
    """`relu(x + bias)` with a row [H] of the time table, or with one for each row of `x` if `table` is pointers [BN, 1]."""
    out = ()
    for j in tl.static_range(H // BH):
        out = out + (relu(x[j] + tl.load(table + (j * BH + tl.arange(0, BH))[None, :])),)
    return out


@triton.jit
def add(x, y, CHUNKS: tl.constexpr):
    out = ()
    for j in tl.static_range(CHUNKS):
        out = out + (x[j] + y[j].to(tl.float32),)
    return out


@triton.jit
def narrow_to(x, like, CHUNKS: tl.constexpr):
    """The chunks in the element type that `like` points to: what a product of that precision sees."""
    out = ()
    for j in tl.static_range(CHUNKS):
        out = out + (x[j].to(like.dtype.element_ty),)
    return out


@triton.jit
def gate(upstream, activation, CHUNKS: tl.constexpr):
    """The gradient before a ReLU from that after it."""
    out = ()
    for j in tl.static_range(CHUNKS):
        out = out + (tl.where(activation[j] > 0, upstream[j], 0.0),)
    return out


@triton.jit
def input_product(x, first, stride: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr):
    """`x @ W^T` for `x` [BN, PAD], zero beyond WIDTH columns, and W [H, WIDTH] with rows `stride` apart; float32 chunks."""
    lanes, columns = tl.arange(0, BH), tl.arange(0, PAD)
    out = ()
    for j in tl.static_range(H // BH):
        if PAD < 16:
            total = tl.zeros((x.shape[0], BH), tl.float32)
            for d in tl.static_range(WIDTH):
                total += column(x, columns, d)[:, None] * tl.load((first + (j * BH * stride + d)) + lanes * stride)[None, :]
        else:
            weights = tl.load((first + j * BH * stride) + (lanes[None, :] * stride + columns[:, None]), columns[:, None] < WIDTH, 0.0)
            total = tl.dot(x, weights, input_precision="tf32x3")
        out = out + (total,)
    return out


@triton.jit
def input_gradient(d, first, stride: tl.constexpr, WIDTH: tl.constexpr, PAD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr):
    """`d @ W`, [BN, PAD], zero beyond WIDTH columns: the way back through `input_product`."""
    lanes, columns = tl.arange(0, BH), tl.arange(0, PAD)
    out = tl.zeros((d[0].shape[0], PAD), tl.float32)
    for j in tl.static_range(H // BH):
        if PAD < 16:
            for c in tl.static_range(WIDTH):
                part = tl.sum(d[j] * tl.load((first + (j * BH * stride + c)) + lanes * stride)[None, :], axis=1)
                out += tl.where(columns[None, :] == c, part[:, None], 0.0)
        else:
            weights = tl.load((first + j * BH * stride) + (lanes[:, None] * stride + columns[None, :]), columns[None, :] < WIDTH, 0.0)
            out = tl.dot(d[j], weights, out, input_precision="tf32x3")
    return out


@triton.jit
def output_product(x, last, last_bias, D: tl.constexpr, D_PAD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr):
    """`x @ L^T + bias` for L [D, H]: [BN, D_PAD], zero beyond D columns."""
    lanes, columns = tl.arange(0, BH), tl.arange(0, D_PAD)
    out = tl.zeros((x[0].shape[0], D_PAD), tl.float32)
    for j in tl.static_range(H // BH):
        if D_PAD < 16:
            for d in tl.static_range(D):
                part = tl.sum(x[j] * tl.load((last + (d * H + j * BH)) + lanes)[None, :], axis=1)
                out += tl.where(columns[None, :] == d, part[:, None], 0.0)
        else:
            weights = tl.load((last + j * BH) + (columns[None, :] * H + lanes[:, None]), columns[None, :] < D, 0.0)
            out = tl.dot(x[j], weights, out, input_precision="tf32x3")
    return out + tl.load(last_bias + columns, columns < D, 0.0)[None, :]


@triton.jit
def output_gradient(d_out, last, D: tl.constexpr, D_PAD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr):
    """`d_out @ L`, float32 chunks: the way back through `output_product`."""
    lanes, columns = tl.arange(0, BH), tl.arange(0, D_PAD)
    out = ()
    for j in tl.static_range(H // BH):
        if D_PAD < 16:
            total = tl.zeros((d_out.shape[0], BH), tl.float32)
            for d in tl.static_range(D):
                total += column(d_out, columns, d)[:, None] * tl.load((last + (d * H + j * BH)) + lanes)[None, :]
        else:
            weights = tl.load((last + j * BH) + (columns[:, None] * H + lanes[None, :]), columns[:, None] < D, 0.0)
            total = tl.dot(d_out, weights, input_precision="tf32x3")
        out = out + (total,)
    return out


@triton.jit
def hidden_layers(
    x1, blocks, hidden, table, H: tl.constexpr, BH: tl.constexpr, KEEP: tl.constexpr, RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr
):
    """From the first hidden layer's activation, in the products' element type: the second, the input of the last matrix (third, plus first
    in a residual network), whether the third passed its ReLU, and the fourth in float32."""
    CHUNKS: tl.constexpr = H // BH
    x2 = narrow_to(add_bias_relu(multiply(x1, blocks, hidden, 0, True, H, BH, KEEP, PRODUCT), table + H, H, BH), hidden, CHUNKS)
    x3 = add_bias_relu(multiply(x2, blocks, hidden, 1, True, H, BH, KEEP, PRODUCT), table + 2 * H, H, BH)
    summed = add(x3, x1, CHUNKS) if RESIDUAL else x3
    summed = narrow_to(summed, hidden, CHUNKS)
    x4 = add_bias_relu(multiply(summed, blocks, hidden, 2, True, H, BH, KEEP, PRODUCT), table + 3 * H, H, BH)
    return x2, narrow_to(x3, hidden, CHUNKS), summed, x4
