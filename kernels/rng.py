"""Philox 4x32-10 in registers: words and uniforms bit for bit those of `ddvi_fast.rng`, normals to a few units in the last place.

`draw_index` gives the rows' draw indices, once a tile, from which `number_tile` computes the tile's numbers.
`state` is the int64 tensor (seed, first index) on the device: when it changes, a captured CUDA graph draws new numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def draw_index(state, offset, row, rows_per_sample):
    """Draw index of the flattened `row` (int64): rows count up within a sample, samples are 2^40 draws apart."""
    sample = row // rows_per_sample
    return tl.load(state + 1) + offset + (row - sample * rows_per_sample) + (sample << 40)


@triton.jit
def philox(index, block, stream, seed):
    """Four tensors of 32-bit words; draw `index` (int64) and `block` broadcast, `stream` and `seed` (int64) are scalars."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    c0 = index.to(tl.uint32)
    c1 = (index >> 32).to(tl.uint32)
    c2 = tl.cast(block, tl.uint32)
    c3 = tl.cast(stream, tl.uint32)
    for _ in tl.static_range(10):
        # A product of 32 x 32 to 64 bits gives both halves in one instruction.
        low = c0.to(tl.uint64) * 0xD2511F53
        high = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (high >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (low >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = high.to(tl.uint32)
        c3 = low.to(tl.uint32)
        k0 = (k0 + 0x9E3779B9).to(tl.uint32)
        k1 = (k1 + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def to_uniform(word):
    """`((r >> 8) + 0.5) 2^-24`: the sum rounds to float32 once, as the float64 of the specification does when it is narrowed."""
    return ((word >> 8).to(tl.float32) + 0.5) * (1.0 / 16777216.0)


@triton.jit
def box_muller(u1, u2):
    """`sqrt(-2 ln u1)` times cosine and sine of `2 pi u2`.

    Quarter turns are subtracted from `u2` without rounding, so that two short polynomials on [-pi/4, pi/4] are enough: the library's
    cosine has a reduction for huge arguments, which needs a stack frame.
    """
    radius = tl.sqrt(-2.0 * tl.log(u1))
    quarter = tl.floor(u2 * 4.0 + 0.5)
    angle = (u2 - quarter * 0.25) * 6.283185307179586
    s = angle * angle
    odd = ((-0.00019517 * s + 0.00833218) * s - 0.16666655) * (s * angle) + angle
    even = ((2.44384489e-05 * s - 1.38873675e-03) * s + 4.16666469e-02) * (s * s) + (1.0 - 0.5 * s)
    turn = quarter.to(tl.int32)
    swapped = (turn & 1) != 0
    cosine = tl.where(swapped, odd, even)
    sine = tl.where(swapped, even, odd)
    cosine = tl.where(((turn + 1) & 2) != 0, -cosine, cosine)
    sine = tl.where((turn & 2) != 0, -sine, sine)
    return radius * cosine, radius * sine


@triton.jit
def _side_by_side(a, b, c, d, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The four numbers of each block, four tensors [ROWS] or [ROWS, WIDTH / 4], as [ROWS, WIDTH]."""
    if WIDTH == 1:
        return a[:, None]
    elif WIDTH == 2:
        return tl.join(a, b)
    else:
        return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (ROWS, WIDTH))


@triton.jit
def number_tile(index, block, stream, seed, KIND: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Numbers [ROWS, WIDTH] of the draws `index` (int64 [ROWS]) from Philox block `block` on; WIDTH is a power of two.

    KIND 0 gives words (int64), 1 uniforms and 2 standard normals.
    """
    # One block a row stays one-dimensional: a column of width one gets a layout that repeats it in every lane.
    if WIDTH <= 4:
        a, b, c, d = philox(index, block, stream, seed)
    else:
        a, b, c, d = philox(index[:, None], (block + tl.arange(0, WIDTH // 4))[None, :], stream, seed)
    if KIND == 2:
        a, b = box_muller(to_uniform(a), to_uniform(b))
        if WIDTH > 2:
            c, d = box_muller(to_uniform(c), to_uniform(d))
        else:
            c, d = a, b
    numbers = _side_by_side(a, b, c, d, ROWS, WIDTH)
    if KIND == 0:
        return numbers.to(tl.int64)
    elif KIND == 1:
        return to_uniform(numbers)
    else:
        return numbers


@triton.jit
def normal_at(index, column, stream, seed):
    """The normal in `column` (int32) of each draw `index`, of the shape that both broadcast to.

    Every element computes its whole block, which costs nothing where a thread holds neighboring columns (the compiler shares the block)
    and keeps the tile in the layout of its use: inside a loop around matrix products, every lane might compute `number_tile` again.
    """
    a, b, c, d = philox(index, column >> 2, stream, seed)
    second = (column & 2) != 0
    cosine, sine = box_muller(to_uniform(tl.where(second, c, a)), to_uniform(tl.where(second, d, b)))
    return tl.where((column & 1) != 0, sine, cosine)


@triton.jit
def row_noise(index, stream, seed, D: tl.constexpr, WIDTH: tl.constexpr):
    """D normals of each draw `index` [ROWS] in a tile [ROWS, WIDTH], whatever beyond; at most four take one block of a row, computed once."""
    columns = tl.arange(0, WIDTH)[None, :]
    if D > 4:
        return normal_at(index[:, None], columns, stream, seed)
    else:
        a, b, c, d = philox(index, 0, stream, seed)
        first, second = box_muller(to_uniform(a), to_uniform(b))
        tile = tl.where(columns == 0, first[:, None], second[:, None])
        if D > 2:
            first, second = box_muller(to_uniform(c), to_uniform(d))
            tile = tl.where(columns < 2, tile, tl.where(columns == 2, first[:, None], second[:, None]))
        return tile


@triton.jit
def step_noise(noise, state, index, place, inside, step, step_stride, WIDTH: tl.constexpr):
    """Noise [ROWS, WIDTH] of a step of the chain, zero outside: read, or drawn from stream `step` (those of the chain begin at 0)."""
    if noise is not None:
        return tl.load(noise + step * step_stride + place, inside, 0.0)
    else:
        return tl.where(inside, normal_at(index[:, None], tl.arange(0, WIDTH)[None, :], step, tl.load(state)), 0.0)
