"""Maximum mean discrepancy in Triton: tiles of products that never reach memory, each pair of rows once.

With weights `w`, 1 / N for the first set and -1 / M for the second, the squared discrepancy is the symmetric quadratic form
`sum_ij w_i w_j k(v_i, v_j)` over the rows of both sets, for which the upper triangle of tiles is enough. Sums over rows are float64, as three
nearly equal ones cancel.

Inner products are those of tensor cores on numbers of fp16. Each row is split once into its rounded value and the rounded rest, 22 bits,
after a factor that takes its largest element near the end of fp16's range; the product of the rests is left out. The cores add up `DEPTH`
features at a time, because they cut off what they add, and the sums of these are float32. Squared lengths are made by the same
instructions as products: equal rows, however long, are at the distance 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.common import Compilation, cdiv, launch, next_power_of_2, recorded, splits_of, unusable
from ddvi_fast.kernels.layers import power, product, rest, rounded

_MOST_WIDTHS = 64
_SIDE = 18  # most tiles in a side of the square of pairs whose coefficients backward holds at a time
TILE, _FEATURES = 128, 128  # rows and features of a tile


class _Planes(NamedTuple):
    """Both sets as split rows. Either is filled with zeros to whole tiles, and rows to whole tiles of features."""

    high: Tensor  # fp16 [L, stride]
    low: Tensor  # fp16 [L, stride]
    units: Tensor  # powers of two by which the split rows are to be multiplied, [L]
    norms: Tensor  # squared lengths, [L]
    tiles: tuple[int, int]  # of each set
    counts: tuple[int, int]  # rows of each set
    depth: int  # features, in whole turns of a product

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tiles of the first set, rows of both, and features, as the kernels take them."""
        return self.tiles[0], *self.counts, self.depth

    @property
    def options(self) -> dict[str, int]:
        """Meta-parameters of the kernels with products."""
        return {"STRIDE": self.high.shape[1], **product_options()}


def forward(x: Tensor, y: Tensor, sigmas: Tensor) -> Tensor:
    """Root of the biased estimate between `x` [N, P] and `y` [M, P], kernel `sum_s exp(-d / (2 s))`; 0 where rounding takes it below 0."""
    if x.shape[0] == 0 or y.shape[0] == 0:
        return x.new_full((), float("nan"))
    planes, tiles = _planes(x, y), sum(_tiles(x, y))
    programs = cdiv(tiles, 2) * (tiles + 1)
    partial = x.new_empty(programs, dtype=torch.float64)
    launch(mmd_fwd_kernel, (programs,), *planes[:4], sigmas, partial, *planes.sizes, tiles, WIDTHS=sigmas.shape[0], **planes.options)
    return partial.sum().clamp(min=0).sqrt().to(torch.float32)


def backward(x: Tensor, y: Tensor, sigmas: Tensor, value: Tensor, upstream: Tensor, needed: list[bool]) -> list[Tensor | None]:
    """The gradients to `x` and `y` that are `needed`; 0 where `value`, the result of `forward`, is 0.

    That to row i is `w_i / value sum_j w_j c_ij (v_j - v_i)` with `c_ij = sum_s exp(-d_ij / (2 s)) / s`. The coefficients of a square of pairs
    are made at a time, and multiply the rows of one side and, turned, those of the other.
    """
    gradients = [torch.zeros_like(part) if need else None for part, need in zip((x, y), needed, strict=True)]
    if len(x) == 0 or len(y) == 0 or x.shape[1] == 0 or not any(needed):
        return gradients
    planes = _planes(x, y)
    sums, masses = _sums(planes, sigmas, needed)
    scale = torch.where(value == 0, 0.0, upstream / torch.where(value == 0, 1.0, value))  # NaN where the value is
    for number, rows in enumerate((x, y)):
        begin, weight = number * planes.tiles[0] * TILE, (1 / len(x), -1 / len(y))[number]
        own = slice(begin, begin + len(rows))
        if needed[number]:
            gradients[number] = torch.addcmul(sums[own, : rows.shape[1]], masses[own, None], rows, value=-1).mul_(scale * weight)
    return gradients


def unsupported(*, x: Tensor, y: Tensor, sigmas: Tensor) -> str | None:
    """The reason why the kernels cannot compute this discrepancy, or None if they can."""
    if sigmas.requires_grad and torch.is_grad_enabled():
        return "sigmas: the Triton discrepancy has no gradient to them"
    if sigmas.shape[0] > _MOST_WIDTHS:
        return f"sigmas: the Triton discrepancy takes up to {_MOST_WIDTHS} widths, got {sigmas.shape[0]}"
    return unusable(mmd_fwd_kernel, x=x, y=y, sigmas=sigmas)


def product_options() -> dict[str, int]:
    """Meta-parameters of the kernels with products: square tiles, and the features that are loaded at a time, some turns ahead."""
    return {"TILE": TILE, "DEPTH": 32, "STAGES": 3, "num_warps": 8}


def compilations() -> Iterator[Compilation]:
    """Images and six widths, the number that the paper's metric has."""
    x, sigmas, one = (torch.empty(shape, device="meta") for shape in ((2 * _SIDE * TILE, 784), (6,), ()))
    yield from recorded("P 784, S 6", forward, x, x, sigmas)
    yield from recorded("P 784, S 6", backward, x, x, sigmas, one, one, [True, False])


def _tiles(*sets: Tensor) -> tuple[int, ...]:
    return tuple([cdiv(rows.shape[0], TILE) for rows in sets])  # `len` of a tensor takes as long as all the rest


def _planes(x: Tensor, y: Tensor) -> _Planes:
    """Split rows of both sets."""
    (count_x, width), count_y, tiles = x.shape, y.shape[0], _tiles(x, y)
    depth, stride = (cdiv(max(1, width), size) * size for size in (product_options()["DEPTH"], _FEATURES))
    length = sum(tiles) * TILE
    high, low = (x.new_empty((length, stride), dtype=torch.float16) for _ in range(2))
    planes = _Planes(high, low, x.new_empty(length), x.new_empty(length), tiles, (count_x, count_y), depth)
    block = min(next_power_of_2(stride), 1024)
    rows = 1024 // block
    split = {"TILE": TILE, "ROWS": rows, "BLOCK": block, "num_warps": 4}
    launch(mmd_fwd_kernel_split, (length // rows,), x, y, *planes[:3], tiles[0], count_x, count_y, width, stride, **split)
    launch(mmd_fwd_kernel_norms, (sum(tiles),), *planes[:4], depth, **planes.options)
    return planes


def _sums(planes: _Planes, sigmas: Tensor, needed: list[bool]) -> tuple[Tensor, Tensor]:
    """`sum_j w_j c_ij v_j` [L, stride] and `sum_j w_j c_ij` [L] for the rows i of the sets that are `needed`, in one order of additions."""
    length, stride = planes.high.shape
    options, new = planes.options, planes.norms.new_empty
    blocks = [(sum(planes.tiles[:number]) + first, count, needed[number]) for number in range(2) for first, count in _blocks(planes.tiles[number])]
    sums, masses = new((length, stride)), planes.norms.new_zeros((sum(planes.tiles), length))
    side = TILE * max(count for _, count, _ in blocks)
    pulls, scales = new((2, side * side), dtype=torch.float16), new((2, (side // TILE) ** 2))
    for (a, of_a, to_a), (b, of_b, to_b) in itertools.combinations_with_replacement(blocks, 2):
        if to_a or to_b:
            call = (*planes[:4], sigmas, *pulls, *scales, masses, *planes.sizes, a, b, of_b, length)
            launch(mmd_bwd_kernel_coefficients, (of_a * of_b,), *call, WIDTHS=len(sigmas), **options)
        for turned, wanted, (first, tiles), (others, count) in ((False, to_a, (a, of_a), (b, of_b)), (True, to_b and a < b, (b, of_b), (a, of_a))):
            if wanted:
                call = (*planes[:3], *pulls, scales[int(turned)], sums, first, others, count, of_b)
                grid = (stride // _FEATURES, tiles)
                launch(mmd_bwd_kernel, grid, *call, TURNED=turned, ADDED=a > 0 or (b > 0 and not turned), FEATURES=_FEATURES, **options)
    return sums, masses.sum(0)


def _blocks(tiles: int) -> Iterator[tuple[int, int]]:
    """Parts `(first, count)` of the tiles of a set, of nearly the same size."""
    return splits_of(tiles, cdiv(tiles, cdiv(tiles, _SIDE)))


@triton.jit
def _factor(largest):
    """The exponent of two that takes `largest`, which has the exponent `biased - 127`, to [2^14, 2^15), near the end of fp16's range."""
    biased = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    return tl.minimum(141 - biased, 100)


@triton.jit
def mmd_fwd_kernel_split(
    x, y,  # [N, P], [M, P]
    high, low,  # [L, stride]
    units,  # [L]
    split, first_rows, second_rows, width, stride, TILE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Planes of the rows of both sets; the second begins at tile `split`."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    second = row - split.to(tl.int64) * TILE
    in_first, in_second = row < first_rows, (second >= 0) & (second < second_rows)
    largest = tl.zeros((ROWS,), tl.float32)
    for start in range(0, width, BLOCK):
        value = _rows(x, y, row, second, in_first, in_second, start, width, BLOCK)
        largest = tl.maximum(largest, tl.max(tl.abs(value), axis=1))
    exponent = _factor(largest)
    tl.store(units + row, power(-exponent))
    for start in range(0, stride, BLOCK):
        value = _rows(x, y, row, second, in_first, in_second, start, width, BLOCK) * power(exponent)[:, None]
        rounded_value = rounded(value, tl.float16)
        feature = start + tl.arange(0, BLOCK)
        place, inside = row[:, None] * stride + feature[None, :], (row >= 0)[:, None] & (feature < stride)[None, :]
        tl.store(high + place, rounded_value, inside)
        tl.store(low + place, rest(value, rounded_value, tl.float16), inside)


@triton.jit
def _rows(x, y, row, second, in_first, in_second, start, width, BLOCK: tl.constexpr):
    """A block of features of rows that are in the first set, in the second, or in none."""
    feature = start + tl.arange(0, BLOCK)
    here = (feature < width)[None, :]
    value = tl.load(x + row[:, None] * width + feature[None, :], in_first[:, None] & here, 0.0)
    return value + tl.load(y + second[:, None] * width + feature[None, :], in_second[:, None] & here, 0.0)


@triton.jit
def _products(high, low, row, other, depth, STRIDE: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr):
    """Inner products [TILE, TILE] of split rows `row` and `other` (int64), without their units."""
    total = tl.zeros((TILE, TILE), tl.float32)
    first, second = row[:, None] * STRIDE, other[None, :] * STRIDE
    for start in tl.range(0, depth, DEPTH, num_stages=STAGES):
        feature = start + tl.arange(0, DEPTH)
        ours = tl.load(high + first + feature[None, :]), tl.load(low + first + feature[None, :])
        theirs = tl.load(high + second + feature[:, None]), tl.load(low + second + feature[:, None])
        total += product(ours, theirs, tl.zeros((TILE, TILE), tl.float32), True)
    return total


@triton.jit
def mmd_fwd_kernel_norms(
    high, low,  # [L, stride]
    units, norms,  # [L]
    depth, STRIDE: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Squared lengths of a tile of rows, from the diagonal of their products."""
    across = tl.arange(0, TILE)
    row = tl.program_id(0).to(tl.int64) * TILE + across
    products = _products(high, low, row, row, depth, STRIDE, TILE, DEPTH, STAGES)
    unit = tl.load(units + row)
    tl.store(norms + row, tl.sum(tl.where(across[:, None] == across[None, :], products, 0.0), axis=1) * unit * unit)


@triton.jit
def _distances(
    high, low, units, norms, row, other, depth, STRIDE: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    """Squared distances [TILE, TILE] between rows `row` and `other`; a row is at 0 from itself, and at NaN if it is not finite."""
    products = _products(high, low, row, other, depth, STRIDE, TILE, DEPTH, STAGES)
    products = products * tl.load(units + row)[:, None] * tl.load(units + other)[None, :]
    row_norm, other_norm = tl.load(norms + row)[:, None], tl.load(norms + other)[None, :]
    squared = row_norm + other_norm - 2.0 * products
    # Comparisons, not a maximum, so that a NaN stays one; so does a row that is not finite, at its distance from itself.
    return tl.where(row[:, None] == other[None, :], row_norm - other_norm, tl.where(squared < 0, 0.0, squared))


@triton.jit
def _of_tile(tile, split, first_rows, second_rows, TILE: tl.constexpr):
    """Which rows of a tile are there, and their weight: float64."""
    present = tl.where(tile < split, first_rows - tile * TILE, second_rows - (tile - split) * TILE)
    weight = tl.where(tile < split, 1.0 / tl.cast(first_rows, tl.float64), -1.0 / tl.cast(second_rows, tl.float64))
    return tl.arange(0, TILE) < present, weight


@triton.jit
def mmd_fwd_kernel(
    high, low,  # [L, stride]
    units, norms,  # [L]
    sigmas,  # [S]
    partial,  # [programs]
    split, first_rows, second_rows, depth, tiles,
    WIDTHS: tl.constexpr, STRIDE: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of the upper triangle a program: line r of the grid has the tiles of line r of the triangle, then of the r-th line from below."""
    line = tl.program_id(0) // (tiles + 1)
    place = tl.program_id(0) % (tiles + 1)
    below = tiles - 1 - line
    in_line = place < tiles - line
    i = tl.where(in_line, line, below)
    j = tl.where(in_line, line + place, below + place - (tiles - line))
    row = i.to(tl.int64) * TILE + tl.arange(0, TILE)
    other = j.to(tl.int64) * TILE + tl.arange(0, TILE)
    squared = _distances(high, low, units, norms, row, other, depth, STRIDE, TILE, DEPTH, STAGES)
    kernel = tl.zeros((TILE, TILE), tl.float32)
    for s in tl.static_range(WIDTHS):
        kernel += tl.exp2(squared * (-0.7213475204444817 / tl.load(sigmas + s)))
    here, weight = _of_tile(i, split, first_rows, second_rows, TILE)
    there, other_weight = _of_tile(j, split, first_rows, second_rows, TILE)
    of_rows = tl.sum(tl.where(here[:, None] & there[None, :], kernel, 0.0), axis=1)
    total = tl.sum(of_rows.to(tl.float64), axis=0) * weight * other_weight * tl.where(i == j, 1.0, 2.0)
    # The middle line of an odd number is its own counterpart: it would come twice.
    tl.store(partial + tl.program_id(0), tl.where(in_line | (below != line), total, 0.0))


@triton.jit
def _relative(units, row):
    """Units of the rows of a tile relative to the largest of them, and that one."""
    unit = tl.load(units + row)
    largest = tl.max(unit, axis=0)
    return tl.maximum(unit / largest, 2.0**-100), largest


@triton.jit
def mmd_bwd_kernel_coefficients(
    high, low,  # [L, stride]
    units, norms,  # [L]
    sigmas,  # [S]
    pulls_high, pulls_low,  # [tiles, TILE, tiles_b, TILE]
    scales, turned_scales,  # [tiles, tiles_b]
    masses,  # [L / TILE, L]
    split, first_rows, second_rows, depth, a, b, tiles_b, length,
    WIDTHS: tl.constexpr, STRIDE: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Planes of the coefficients between the tiles from `a` and from `b` on, times the rows' relative units; 0 for a row with itself.

    A tile of them times its scale times split rows, over the rows' own relative unit, is `w_j c_ij v_j`. `masses` gets `w_j c_ij` summed over
    the rows of a tile.
    """
    i, j = tl.program_id(0) // tiles_b, tl.program_id(0) % tiles_b
    across = tl.arange(0, TILE)
    row, other = (a + i).to(tl.int64) * TILE + across, (b + j).to(tl.int64) * TILE + across
    squared = _distances(high, low, units, norms, row, other, depth, STRIDE, TILE, DEPTH, STAGES)
    total = tl.zeros((TILE, TILE), tl.float32)
    for s in tl.static_range(WIDTHS):
        inverse = 1.0 / tl.load(sigmas + s)
        total += inverse * tl.exp2(squared * (-0.7213475204444817 * inverse))
    here, weight = _of_tile(a + i, split, first_rows, second_rows, TILE)
    there, other_weight = _of_tile(b + j, split, first_rows, second_rows, TILE)
    weight, other_weight = weight.to(tl.float32), other_weight.to(tl.float32)
    # A row has no gradient from itself; left in, its terms would cancel only up to rounding.
    total = tl.where(here[:, None] & there[None, :] & (row[:, None] != other[None, :]), total, 0.0)
    tl.store(masses + (b + j).to(tl.int64) * length + row, tl.sum(total, axis=1) * other_weight)
    tl.store(masses + (a + i).to(tl.int64) * length + other, tl.sum(total, axis=0) * weight, (across >= 0) & (a < b))
    relative, unit = _relative(units, row)
    other_relative, other_unit = _relative(units, other)
    total *= relative[:, None] * other_relative[None, :]
    exponent = _factor(tl.max(tl.max(total, axis=1), axis=0))
    total *= power(exponent)
    rounded_total = rounded(total, tl.float16)
    place = (i * TILE + across).to(tl.int64)[:, None] * (tiles_b * TILE) + (j * TILE + across)[None, :]
    tl.store(pulls_high + place, rounded_total)
    tl.store(pulls_low + place, rest(total, rounded_total, tl.float16))
    tl.store(scales + i * tiles_b + j, power(-exponent) * other_unit * other_weight)
    tl.store(turned_scales + i * tiles_b + j, power(-exponent) * unit * weight)


@triton.jit
def mmd_bwd_kernel(
    high, low,  # [L, stride]
    units,  # [L]
    pulls_high, pulls_low,  # [tiles, TILE, tiles_b, TILE]
    scales,  # [tiles, tiles_b]
    sums,  # [L, stride]
    first, others, count, tiles_b,
    TURNED: tl.constexpr, ADDED: tl.constexpr, FEATURES: tl.constexpr,
    STRIDE: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`sum_j w_j c_ij v_j` over the rows of `count` tiles from `others` on, for a tile of rows and features, those of tile `first` and later.

    TURNED says that the first axis of the coefficients is that of the rows j.
    """
    tile, feature = tl.program_id(1), tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    across, within = tl.arange(0, TILE), tl.arange(0, DEPTH)
    columns = tiles_b.to(tl.int64) * TILE
    total = tl.zeros((TILE, FEATURES), tl.float32)
    for start in tl.range(0, count * TILE, DEPTH, num_stages=STAGES):
        if TURNED:
            place = (start + within)[:, None] * columns + (tile * TILE + across)[None, :]
            pulls = tl.trans(tl.load(pulls_high + place)), tl.trans(tl.load(pulls_low + place))
            scale = tl.load(scales + start // TILE * tiles_b + tile)
        else:
            place = (tile * TILE + across).to(tl.int64)[:, None] * columns + (start + within)[None, :]
            pulls = tl.load(pulls_high + place), tl.load(pulls_low + place)
            scale = tl.load(scales + tile * tiles_b + start // TILE)
        place = (others.to(tl.int64) * TILE + start + within)[:, None] * STRIDE + feature[None, :]
        rows = tl.load(high + place), tl.load(low + place)
        total += scale * product(pulls, rows, tl.zeros((TILE, FEATURES), tl.float32), True)
    row = (first + tile).to(tl.int64) * TILE + across
    relative, _ = _relative(units, row)
    out = sums + row[:, None] * STRIDE + feature[None, :]
    total = total / relative[:, None]
    if ADDED:
        total += tl.load(out)
    tl.store(out, total)
