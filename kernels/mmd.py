"""Maximum mean discrepancy in Triton: tiles of products that never reach memory, each pair of rows once.

Both sets form one matrix `v` of L = N + M rows with weights `w`, 1 / N for the first set and -1 / M for the second. The squared
discrepancy is then the symmetric quadratic form `sum_ij w_i w_j k(v_i, v_j)`, for which the upper triangle of tiles is enough.
Sums are float64, as three nearly equal ones cancel. Products are true float32 ("ieee"): they cancel against the norms.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.common import Compilation, launch, recorded, splits_of, unusable

_MOST_WIDTHS = 64
_WORKSPACE = 1 << 24  # elements of the pair coefficients that backward holds at a time: 64 MiB


def forward(x: Tensor, y: Tensor, sigmas: Tensor) -> Tensor:
    """Root of the biased estimate between `x` [N, P] and `y` [M, P], kernel `sum_s exp(-d / (2 s))`; 0 where rounding takes it below 0."""
    if len(x) == 0 or len(y) == 0:
        return x.new_full((), float("nan"))
    options = sum_options(len(sigmas))
    tiles = triton.cdiv(len(x) + len(y), options["TILE"])
    partial = x.new_empty(triton.cdiv(tiles, 2) * (tiles + 1), dtype=torch.float64)
    rows, norms = _joined(x, y)
    launch(mmd_fwd_kernel, (len(partial),), rows, norms, sigmas, partial, len(x), len(rows), x.shape[1], tiles, **options)
    return partial.sum().clamp(min=0).sqrt().to(torch.float32)


def backward(x: Tensor, y: Tensor, sigmas: Tensor, value: Tensor, upstream: Tensor, needed: list[bool]) -> list[Tensor | None]:
    """The gradients to `x` and `y` that are `needed`; 0 where `value`, the result of `forward`, is 0."""
    gradients = [torch.zeros_like(part) if need else None for part, need in zip((x, y), needed, strict=True)]
    if len(x) == 0 or len(y) == 0:
        return gradients
    rows, norms = _joined(x, y)
    for gradient, first in zip(gradients, (0, len(x)), strict=True):
        if gradient is not None:
            _differentiate(rows, norms, sigmas, value, upstream, len(x), first, gradient)
    return gradients


def unsupported(*, x: Tensor, y: Tensor, sigmas: Tensor) -> str | None:
    """The reason why the kernels cannot compute this discrepancy, or None if they can."""
    if sigmas.requires_grad and torch.is_grad_enabled():
        return "sigmas: the Triton discrepancy has no gradient to them"
    if len(sigmas) > _MOST_WIDTHS:
        return f"sigmas: the Triton discrepancy takes up to {_MOST_WIDTHS} widths, got {len(sigmas)}"
    return unusable(mmd_fwd_kernel, x=x, y=y, sigmas=sigmas)


def sum_options(widths: int) -> dict[str, int]:
    """Meta-parameters of kernels over pairs: square tiles, so that the triangle of tiles is one of pairs; a slice of features at a time."""
    return {"WIDTHS": widths, "TILE": 64, "DEPTH": 16, "PRODUCT": "ieee", "num_warps": 4, "num_stages": 2}


def gradient_options() -> dict[str, int]:
    """Meta-parameters of the gradient: a tile of rows and features, and the rows it is paired with at a time; four warps would spill on sm_80."""
    return {"TILE": 64, "FEATURES": 64, "DEPTH": 16, "PRODUCT": "ieee", "num_warps": 8, "num_stages": 2}


def compilations() -> Iterator[Compilation]:
    """Images and six widths, the number that the paper's metric has."""
    x, sigmas, one = (torch.empty(shape, device="meta") for shape in ((128, 784), (6,), ()))
    yield from recorded("P 784, S 6", forward, x, x, sigmas)
    yield from recorded("P 784, S 6", backward, x, x, sigmas, one, one, [True, False])


def _norm_options(width: int) -> dict[str, int]:
    block = min(triton.next_power_of_2(width), 1024)
    return {"ROWS": 1024 // block, "BLOCK": block, "num_warps": 4, "num_stages": 3}


def _joined(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets as one matrix, and the squared norms of its rows."""
    rows = torch.cat((x, y))
    norms = rows.new_empty(len(rows))
    options = _norm_options(max(1, rows.shape[1]))
    launch(mmd_fwd_kernel_norms, (triton.cdiv(len(rows), options["ROWS"]),), rows, norms, len(rows), rows.shape[1], **options)
    return rows, norms


def _differentiate(rows: Tensor, norms: Tensor, sigmas: Tensor, value: Tensor, upstream: Tensor, split: int, first: int, gradient: Tensor) -> None:
    """Fill the gradient to the rows from `first` on: pair coefficients of some rows with all, then their product with the rows."""
    (count, width), pairs, products = rows.shape, sum_options(len(sigmas)), gradient_options()
    tiles = triton.cdiv(count, pairs["TILE"])
    columns = tiles * pairs["TILE"]
    most = max(1, _WORKSPACE // columns // pairs["TILE"]) * pairs["TILE"]
    coefficients = rows.new_empty((min(most, triton.cdiv(len(gradient), pairs["TILE"]) * pairs["TILE"]), columns))
    for start, length in splits_of(len(gradient), most):
        blocks = triton.cdiv(length, pairs["TILE"])
        call = (rows, norms, sigmas, coefficients, split, count, width, first + start, tiles)
        launch(mmd_bwd_kernel_coefficients, (blocks * tiles,), *call, **pairs)
        call = (rows, coefficients, value, upstream, gradient[start : start + length], split, count, width, first + start, length, columns)
        launch(mmd_bwd_kernel, (triton.cdiv(width, products["FEATURES"]), blocks), *call, **products)


@triton.jit
def mmd_fwd_kernel_norms(
    rows,  # [L, P]
    norms,  # [L]
    count, width, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lanes = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, width, BLOCK):
        feature = start + tl.arange(0, BLOCK)
        mask = (row < count)[:, None] & (feature < width)[None, :]
        value = tl.load(rows + row[:, None] * width + feature[None, :], mask=mask, other=0.0)
        lanes += value * value
    tl.store(norms + row, tl.sum(lanes, axis=1), mask=row < count)


@triton.jit
def _distances(rows, norms, row, other, count, width, TILE: tl.constexpr, DEPTH: tl.constexpr, PRODUCT: tl.constexpr):
    """Squared distances [TILE, TILE] between rows `row` and `other` (int64); a row is at 0 from itself."""
    products = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, width, DEPTH):
        feature = start + tl.arange(0, DEPTH)
        here = (feature < width)[None, :]
        first = tl.load(rows + row[:, None] * width + feature[None, :], mask=(row < count)[:, None] & here, other=0.0)
        second = tl.load(rows + other[:, None] * width + feature[None, :], mask=(other < count)[:, None] & here, other=0.0)
        products = tl.dot(first, tl.trans(second), products, input_precision=PRODUCT)
    row_norm = tl.load(norms + row, mask=row < count, other=0.0)[:, None]
    other_norm = tl.load(norms + other, mask=other < count, other=0.0)[None, :]
    squared = row_norm + other_norm - 2.0 * products
    # Comparisons, not a maximum, so that a NaN stays one; so does a row that is not finite, at its distance from itself.
    return tl.where(row[:, None] == other[None, :], row_norm - other_norm, tl.where(squared < 0, 0.0, squared))


@triton.jit
def _weight(row, split, count):
    """1 / N for the first set, -1 / M for the second, 0 beyond both: float64."""
    first = 1.0 / tl.cast(split, tl.float64)
    second = -1.0 / tl.cast(count - split, tl.float64)
    return tl.where(row < split, first, tl.where(row < count, second, 0.0))


@triton.jit
def mmd_fwd_kernel(
    rows,  # [L, P]
    norms,  # [L]
    sigmas,  # [S]
    partial,  # [programs]
    split, count, width, tiles, WIDTHS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
    PRODUCT: tl.constexpr,
):  # fmt: skip
    """One tile of the upper triangle a program: line r of the grid has the tiles of line r of the triangle, then of the r-th line from below."""
    line = tl.program_id(0) // (tiles + 1)
    place = tl.program_id(0) % (tiles + 1)
    below = tiles - 1 - line
    in_line = place < tiles - line
    i = tl.where(in_line, line, below)
    j = tl.where(in_line, line + place, below + place - (tiles - line))
    # The middle line of an odd number is its own counterpart: it would come twice.
    if in_line or below != line:
        row = i.to(tl.int64) * TILE + tl.arange(0, TILE)
        other = j.to(tl.int64) * TILE + tl.arange(0, TILE)
        squared = _distances(rows, norms, row, other, count, width, TILE, DEPTH, PRODUCT)
        kernel = tl.zeros((TILE, TILE), tl.float32)
        for s in tl.static_range(WIDTHS):
            kernel += tl.exp2(squared * (-0.7213475204444817 / tl.load(sigmas + s)))
        weighted = tl.sum(kernel.to(tl.float64) * _weight(other, split, count)[None, :], axis=1) * _weight(row, split, count)
        tl.store(partial + tl.program_id(0), tl.sum(weighted, axis=0) * tl.where(i == j, 1.0, 2.0))
    else:
        tl.store(partial + tl.program_id(0), 0.0)


@triton.jit
def mmd_bwd_kernel_coefficients(
    rows,  # [L, P]
    norms,  # [L]
    sigmas,  # [S]
    coefficients,  # [rows of a piece, tiles * TILE]
    split, count, width, first, tiles, WIDTHS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr,
    PRODUCT: tl.constexpr,
):  # fmt: skip
    """`w_j sum_s exp(-d_ij / (2 s)) / s` for rows i from `first` on and all j; 0 for a row with itself and in the padding."""
    local = (tl.program_id(0) // tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    row = first + local
    other = (tl.program_id(0) % tiles).to(tl.int64) * TILE + tl.arange(0, TILE)
    squared = _distances(rows, norms, row, other, count, width, TILE, DEPTH, PRODUCT)
    total = tl.zeros((TILE, TILE), tl.float32)
    for s in tl.static_range(WIDTHS):
        inverse = 1.0 / tl.load(sigmas + s)
        total += inverse * tl.exp2(squared * (-0.7213475204444817 * inverse))
    # A row has no gradient from itself; left in, its terms would cancel only up to rounding.
    weight = _weight(other, split, count).to(tl.float32)[None, :]
    pull = tl.where(row[:, None] == other[None, :], 0.0, total * weight)
    tl.store(coefficients + local[:, None] * (tl.cast(tiles, tl.int64) * TILE) + other[None, :], pull)


@triton.jit
def mmd_bwd_kernel(
    rows,  # [L, P]
    coefficients,  # [rows of a piece, columns]
    value, upstream,  # []
    gradient,  # [length, P]
    split, count, width, first, length, columns,
    TILE: tl.constexpr, FEATURES: tl.constexpr, DEPTH: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """`w_i / value sum_j c_ij (v_j - v_i)` for rows i from `first` on."""
    local = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    here = (feature < width)[None, :]
    total = tl.zeros((TILE, FEATURES), tl.float32)
    lanes = tl.zeros((TILE, DEPTH), tl.float32)
    for start in range(0, columns, DEPTH):
        other = start + tl.arange(0, DEPTH)
        pull = tl.load(coefficients + local[:, None] * columns + other[None, :])
        others = tl.load(rows + other.to(tl.int64)[:, None] * width + feature[None, :], mask=(other < count)[:, None] & here, other=0.0)
        total = tl.dot(pull, others, total, input_precision=PRODUCT)
        lanes += pull
    inside = (local < length)[:, None] & here
    own = tl.load(rows + (first + local)[:, None] * width + feature[None, :], mask=inside, other=0.0)
    distance = tl.load(value)
    scale = tl.where(distance == 0, 0.0, tl.load(upstream) / tl.where(distance == 0, 1.0, distance))  # NaN where the distance is
    weight = _weight(first + local, split, count).to(tl.float32) * scale
    result = weight[:, None] * (total - tl.sum(lanes, axis=1)[:, None] * own)
    tl.store(gradient + local[:, None] * width + feature[None, :], result, mask=inside)
