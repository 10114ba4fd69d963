"""Layers of the denoiser on one tile of rows, as Triton device functions; activations stay in registers.

Operands of tensor cores have a low type. A layer that is float32 takes each operand as two numbers of it, the rounded value and the rounded
rest ("planes"), and leaves out the product of the rests:

- Hidden layers of precision bf16 and fp16 have one plane; those of float32 (EXACT) have two of fp16, 22 bits.
- Inputs, first and last layer always have two planes, those of bf16 16 bits.

fp16 has few exponents. EXACT therefore multiplies activations by `UP` and weights by `WEIGHT`, powers of two, so that the rest of a number
near 1 keeps its bits; gradients are scaled by `exponent_of` their largest. A number beyond the range has the planes inf and -inf, whose sum
of products is NaN, and `relu` keeps NaN.

A width H = 256 is two blocks of B = 128 units. Activations are tuples over blocks, each a tuple of planes.

A narrow side of at most 8 columns is a tile of P = 8, whose two planes are the 16 inner columns of one product; a wider one is padded to a
power of two P >= 16 with a tile for each plane.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ddvi_fast.kernels.signs import pack_block, unpack_block
from ddvi_fast.precision import NARROW

_INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

# float32: factors of activations and weights, exponent to which gradients are scaled
UP, WEIGHT, TARGET = tl.constexpr(8.0), tl.constexpr(256.0), tl.constexpr(3)
OUTPUT = tl.constexpr(1.0 / 2048.0)  # undoes both factors
DOWN, WEIGHT_EXPONENT = tl.constexpr(1.0 / 256.0), tl.constexpr(8)

# Precision of the hidden products -> low type, and whether they have two planes. tf32 gets more than it asks for.
LOW_TYPES = {"float32": (torch.float16, True), "tf32": (torch.float16, True), **{name: (dtype, False) for name, dtype in NARROW.items()}}


@triton.jit
def dot(a, b, total):
    """`total + a @ b`, the sum in float32."""
    if _INTERPRETED:  # NumPy has no bfloat16: the interpreter would multiply its bits
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    else:
        return tl.dot(a, b, total)


@triton.jit
def rounded(x, LOW: tl.constexpr):
    """`x` to the nearest number of the low type, two at a time. (The interpreter's own conversion to bf16 cuts off.)"""
    if _INTERPRETED:
        if tl.bfloat16 == LOW:
            bits = x.to(tl.int32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
            return bits.to(tl.float32, bitcast=True).to(LOW)
        else:
            return x.to(LOW)
    elif tl.bfloat16 == LOW:
        return tl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2)
    else:
        return tl.inline_asm_elementwise("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.float16, is_pure=True, pack=2)


@triton.jit
def rest(x, high, LOW: tl.constexpr):
    """What rounding `x` to `high` left, rounded."""
    if _INTERPRETED or tl.bfloat16 != LOW:
        return rounded(x - high.to(tl.float32), LOW)
    else:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 a, b; .reg .f32 c, d; shl.b32 a, $3, 16; and.b32 b, $3, 0xffff0000; mov.b32 c, a; mov.b32 d, b; sub.f32 c, $1, c; "
            "sub.f32 d, $2, d; cvt.rn.bf16x2.f32 $0, d, c; }",
            "=r,r,r,r", [x, high], dtype=tl.bfloat16, is_pure=True, pack=2,
        )  # fmt: skip


@triton.jit
def relu(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _rounded_relu(x, LOW: tl.constexpr):
    if _INTERPRETED:
        return rounded(relu(x), LOW)
    elif tl.bfloat16 == LOW:
        return tl.inline_asm_elementwise("cvt.rn.relu.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2)
    else:
        return tl.inline_asm_elementwise("cvt.rn.relu.f16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.float16, is_pure=True, pack=2)


@triton.jit
def _plus(x, y, LOW: tl.constexpr):
    """The rounded sum of two numbers of the low type; of bf16 a product with one, because sm_80 has no sum."""
    if _INTERPRETED:
        return rounded(x.to(tl.float32) + y.to(tl.float32), LOW)
    elif tl.bfloat16 == LOW:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 one; mov.b32 one, 0x3f803f80; fma.rn.bf16x2 $0, $1, one, $2; }", "=r,r,r", [x, y], dtype=tl.bfloat16, is_pure=True, pack=2
        )  # fmt: skip
    else:
        return x + y


@triton.jit
def planes(x, LOW: tl.constexpr, TWO: tl.constexpr):
    """One or two planes of `x`."""
    high = rounded(x, LOW)
    if TWO:
        return high, rest(x, high, LOW)
    else:
        return (high,)


@triton.jit
def product(x, w, total, TWO: tl.constexpr):
    """`total + x @ w` of operands that both have one plane or two; the small parts first."""
    if TWO:
        total = dot(x[1], w[0], total)
        total = dot(x[0], w[1], total)
    return dot(x[0], w[0], total)


# Powers of two


@triton.jit
def power(n):
    """2^n for integers within +-126."""
    return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exponent_of(largest):
    """The integer e for which `largest` 2^e is in [2^TARGET, 2 2^TARGET); within -119 and 118."""
    biased = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    return -tl.minimum(tl.maximum(biased, TARGET + 9), TARGET + 246) + (TARGET + 127)


# Narrow sides


@triton.jit
def pair(x, ROWS: tl.constexpr):
    """`x` [ROWS, 8] twice, side by side."""
    return tl.reshape(tl.permute(tl.join(x, x), (0, 2, 1)), (ROWS, 16))


@triton.jit
def _end_block(
    weight, M: tl.constexpr, LANE: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr, P: tl.constexpr, B: tl.constexpr,
    LOW: tl.constexpr, EXACT: tl.constexpr, TALL: tl.constexpr,
):  # fmt: skip
    PAIR: tl.constexpr = P == 8
    inner = tl.arange(0, 16 if PAIR else P)
    column = inner % 8 if PAIR else inner
    lane = M * B + tl.arange(0, B)
    if TALL:
        w = tl.load(weight + lane[:, None] * LANE + column[None, :] * STRIDE, (column < WIDTH)[None, :], 0.0)
        second = (inner >= 8)[None, :]
    else:
        w = tl.load(weight + lane[None, :] * LANE + column[:, None] * STRIDE, (column < WIDTH)[:, None], 0.0)
        second = (inner >= 8)[:, None]
    if EXACT:
        w *= WEIGHT
    high = rounded(w, LOW)
    low = rest(w, high, LOW)
    if PAIR:
        return (tl.where(second, low, high),)
    else:
        return high, low


@triton.jit
def end_weights(
    weight, LANE: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr, P: tl.constexpr, H: tl.constexpr, B: tl.constexpr,
    LOW: tl.constexpr, EXACT: tl.constexpr, TALL: tl.constexpr,
):  # fmt: skip
    """Weights of a narrow layer by block: [P, B], or [B, P] if TALL; w[column, unit] is at `column STRIDE + unit LANE`."""
    found = ()
    for m in tl.static_range(H // B):
        found = found + (_end_block(weight, m, LANE, STRIDE, WIDTH, P, B, LOW, EXACT, TALL),)
    return found


@triton.jit
def widen(x, w, total, ROWS: tl.constexpr, P: tl.constexpr, LOW: tl.constexpr):
    """`total + x @ w` for a narrow `x` [ROWS, P] and a block of weights."""
    if P == 8:
        x = pair(x, ROWS)
        high = rounded(x, LOW)
        total = dot(rest(x, high, LOW), w[0], total)
        return dot(high, w[0], total)
    else:
        high = rounded(x, LOW)
        total = dot(rest(x, high, LOW), w[0], total)
        total = dot(high, w[1], total)
        return dot(high, w[0], total)


@triton.jit
def narrow(x, w, ROWS: tl.constexpr, P: tl.constexpr, BLOCKS: tl.constexpr, TWO: tl.constexpr):
    """`x @ w` [ROWS, P] for activations of one plane or two and TALL weights."""
    total = tl.zeros((ROWS, 16 if P == 8 else P), tl.float32)
    for k in tl.static_range(BLOCKS):
        if TWO:
            total = dot(x[k][1], w[k][0], total)
        if P > 8:
            total = dot(x[k][0], w[k][1], total)
        total = dot(x[k][0], w[k][0], total)
    return folded(total, ROWS, P)


@triton.jit
def folded(total, ROWS: tl.constexpr, P: tl.constexpr):
    """The sum of both halves of [ROWS, 16] if P = 8; else `total` itself."""
    if P == 8:
        return tl.sum(tl.reshape(total, (ROWS, 2, 8)), axis=1)
    else:
        return total


# Hidden layers


@triton.jit
def kept_matrices(matrices, H: tl.constexpr, EXACT: tl.constexpr, KEEP: tl.constexpr):
    """The three matrices, plane by plane, as tiles if KEEP, which then stay on chip; else the pointer."""
    if KEEP:
        lanes = tl.arange(0, H)
        tile = matrices + lanes[:, None] * H + lanes[None, :]
        one = (tl.load(tile), tl.load(tile + H * H), tl.load(tile + 2 * H * H))
        if EXACT:
            tile += 3 * H * H
            return one + (tl.load(tile), tl.load(tile + H * H), tl.load(tile + 2 * H * H))
        else:
            return one
    else:
        return matrices


@triton.jit
def matrix_block(
    kept, LAYER: tl.constexpr, M: tl.constexpr, K: tl.constexpr, H: tl.constexpr, B: tl.constexpr, EXACT: tl.constexpr, KEEP: tl.constexpr
):
    """Planes of the block of rows M and columns K of a hidden matrix."""
    if KEEP:
        if EXACT:
            return kept[LAYER], kept[3 + LAYER]
        else:
            return (kept[LAYER],)
    else:
        lanes = tl.arange(0, B)
        tile = kept + ((LAYER * H + M * B) * H + K * B) + (lanes[:, None] * H + lanes[None, :])
        if EXACT:
            return tl.load(tile), tl.load(tile + 3 * H * H)
        else:
            return (tl.load(tile),)


@triton.jit
def turned(w, TWO: tl.constexpr):
    if TWO:
        return tl.trans(w[0]), tl.trans(w[1])
    else:
        return (tl.trans(w[0]),)


@triton.jit
def bias_rows(table, H: tl.constexpr, B: tl.constexpr):
    """Blocks [16, B] of one step's prepared biases."""
    found = ()
    for m in tl.static_range(H // B):
        found = found + (tl.load(table + m * B + tl.arange(0, 16)[:, None] * H + tl.arange(0, B)[None, :]),)
    return found


@triton.jit
def bias(rows, pin, LAYER: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, LOW: tl.constexpr, EXACT: tl.constexpr):
    """Blocks [ROWS, B] with a layer's bias in each row: a product with the factor that picks its two planes.

    Zero times `pin` [ROWS, 1] keeps that factor in registers.
    """
    k = tl.arange(0, 16)[None, :]
    factor = rounded(tl.where(k // 2 == LAYER, UP if EXACT else 1.0, 0.0 * pin), LOW)
    found = ()
    for m in tl.static_range(BLOCKS):
        zero = tl.zeros((ROWS, rows[m].shape[1]), tl.float32)
        found = found + (dot(factor, rows[m], zero),)
    return found


@triton.jit
def forward_layer(x, kept, totals, LAYER: tl.constexpr, H: tl.constexpr, B: tl.constexpr, EXACT: tl.constexpr, KEEP: tl.constexpr):
    """`totals + x @ W^T`, by block."""
    found = ()
    for m in tl.static_range(H // B):
        total = totals[m]
        for k in tl.static_range(H // B):
            total = product(x[k], turned(matrix_block(kept, LAYER, m, k, H, B, EXACT, KEEP), EXACT), total, EXACT)
        found = found + (total,)
    return found


@triton.jit
def backward_layer(d, kept, totals, LAYER: tl.constexpr, H: tl.constexpr, B: tl.constexpr, EXACT: tl.constexpr, KEEP: tl.constexpr):
    """`totals + d @ W`, by block."""
    found = ()
    for m in tl.static_range(H // B):
        total = totals[m]
        for k in tl.static_range(H // B):
            total = product(d[k], matrix_block(kept, LAYER, k, m, H, B, EXACT, KEEP), total, EXACT)
        found = found + (total,)
    return found


@triton.jit
def zeros(ROWS: tl.constexpr, H: tl.constexpr, B: tl.constexpr):
    found = ()
    for _ in tl.static_range(H // B):
        found = found + (tl.zeros((ROWS, B), tl.float32),)
    return found


@triton.jit
def activations(totals, BLOCKS: tl.constexpr, LOW: tl.constexpr, EXACT: tl.constexpr):
    """Planes of the ReLU of a layer's sums."""
    found = ()
    for m in tl.static_range(BLOCKS):
        if EXACT:
            found = found + (planes(relu(totals[m]) * DOWN, LOW, True),)
        else:
            found = found + ((_rounded_relu(totals[m], LOW),),)
    return found


@triton.jit
def summed(x, x1, BLOCKS: tl.constexpr, LOW: tl.constexpr, EXACT: tl.constexpr):
    """Planes of the sum of two activations."""
    found = ()
    for m in tl.static_range(BLOCKS):
        if EXACT:
            total = (x[m][0].to(tl.float32) + x1[m][0].to(tl.float32)) + (x[m][1].to(tl.float32) + x1[m][1].to(tl.float32))
            found = found + (planes(total, LOW, True),)
        else:
            found = found + ((_plus(x[m][0], x1[m][0], LOW),),)
    return found


@triton.jit
def last_activations(totals, BLOCKS: tl.constexpr, LOW: tl.constexpr, EXACT: tl.constexpr):
    """Both planes of the ReLU of the last hidden layer's sums."""
    found = ()
    for m in tl.static_range(BLOCKS):
        x = relu(totals[m])
        if EXACT:
            x *= DOWN
        found = found + (planes(x, LOW, True),)
    return found


@triton.jit
def masked(totals, packed, factor, BLOCKS: tl.constexpr, ROWS: tl.constexpr, B: tl.constexpr, LOW: tl.constexpr, EXACT: tl.constexpr):
    """Planes of the gradients before a ReLU; EXACT multiplies by `factor`."""
    found = ()
    for m in tl.static_range(BLOCKS):
        d = tl.where(unpack_block(packed[m], ROWS, B), totals[m], 0.0)
        if EXACT:
            d *= factor
        found = found + (planes(d, LOW, EXACT),)
    return found


@triton.jit
def load_signs(signs, present, LAYER: tl.constexpr, H: tl.constexpr, B: tl.constexpr):
    """Words of a layer by block; `signs` [ROWS, 1] points to those of each row."""
    words = tl.arange(0, B // 32)[None, :] * (H // B)
    found = ()
    for m in tl.static_range(H // B):
        found = found + (tl.load(signs + (LAYER * (H // 32) + m) + words, present[:, None], 0),)
    return found


@triton.jit
def store_signs(signs, x, present, LAYER: tl.constexpr, H: tl.constexpr, B: tl.constexpr, HALVES: tl.constexpr):
    """Write the signs of a layer's activations."""
    words = tl.arange(0, B // 32)[None, :] * (H // B)
    for m in tl.static_range(H // B):
        packed = pack_block(x[m][0], x[m][0].shape[0], B, HALVES)
        tl.store(signs + (LAYER * (H // 32) + m) + words, packed, present[:, None])


# Operands that every program reads, made once a call


@triton.jit(do_not_specialize=["count", "rows"])
def denoiser_operands_kernel(
    hidden,  # [G, 3, H, H]
    time_table,  # [G, T, 4, H]
    matrices,  # [G, planes, 3, H, H]
    table,  # [G, T, 16, H]
    count, rows,
    H: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Planes of the hidden matrices, and of each step's four biases: rows 2 l and 2 l + 1 for layer l, zero for the rest.

    The first `count` programs do the matrices. G T = `rows`.
    """
    LOW: tl.constexpr = matrices.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    SIZE: tl.constexpr = 3 * H * H
    if program < count:
        at = program * BLOCK + tl.arange(0, BLOCK)
        group = at // SIZE
        inside = at < tl.cast(count, tl.int64) * BLOCK
        w = tl.load(hidden + at, inside, 0.0)
        if EXACT:
            w *= WEIGHT
        high = rounded(w, LOW)
        tl.store(matrices + at + (group * SIZE if EXACT else 0), high, inside)
        if EXACT:
            tl.store(matrices + at + (group + 1) * SIZE, rest(w, high, LOW), inside)
    else:
        at = (program - count) * BLOCK + tl.arange(0, BLOCK)
        row, k, lane = at // (16 * H), at // H % 16, at % H
        inside = at < tl.cast(rows, tl.int64) * 16 * H
        w = tl.load(time_table + (row * 4 + k // 2) * H + lane, inside & (k < 8), 0.0)
        if EXACT:
            w *= WEIGHT
        high = rounded(w, LOW)
        tl.store(table + at, tl.where(k % 2 == 0, high, rest(w, high, LOW)), inside)
