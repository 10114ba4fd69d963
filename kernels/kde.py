"""Kernel density in Triton: an online log-sum-exp over points, every bandwidth in one pass of distances.

Every thread owns a row and walks over points that all threads of its program read at once: sums stay in its registers, nothing is
exchanged between threads, and the work is almost wholly exponentials. All bandwidths measure from the nearest point so far. Few
rows and many points are spread by giving each program a share of the points; shares are combined in a fixed order.
Distances are sums of squared differences in float32: nothing cancels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.common import Compilation, compilation, on_device, unusable
from ddvi_fast.kernels.kde_backward import backward, gather_kernel, gather_options, pull_kernel, pull_options, weights_kernel, weights_options
from ddvi_fast.kernels.kde_common import (
    MOST_SHARES,
    clip_value,
    exponent_rate,
    launch_options,
    log_constant,
    padded_columns,
    split_tiles,
    squared_distances,
)

__all__ = ["backward", "compilations", "forward", "unsupported"]

_MOST_BANDWIDTHS, _MOST_DIMENSIONS = 32, 64
_FINISHED_AT_ONCE = 8


def forward(z: Tensor, points: Tensor, bandwidths: Tensor, clamp: float) -> tuple[Tensor, Tensor]:
    """Log-density at `z` [N, D] under kernels on `points` [M, D], in nats.

    Args:
        z, points, bandwidths: float32 [N, D], [M, D] and [S]; S up to 32, D up to 64.
        clamp: each bandwidth's value is clipped to [-clamp, clamp] first; infinite for none.

    Returns:
        the mean over bandwidths in probability [N], and each bandwidth's value before clipping [N, S].
    """
    (rows, width), count = z.shape, len(bandwidths)
    log_density, each = z.new_empty(rows), z.new_empty((rows, count))
    if rows == 0:
        return log_density, each
    options = launch_options(rows, width, count)
    columns, tiles = padded_columns(points, options["POINTS"])
    shares, share = split_tiles(rows, tiles, options)
    # With many bandwidths the results are more than a thread should hold besides its sums.
    split = shares > 1 or count > _FINISHED_AT_ONCE
    nearest, sums = (z.new_empty((shares, rows)), z.new_empty((shares, count, rows))) if split else (None, None)
    finish = (bandwidths, log_density, each, rows, clamp, log_constant(points))
    with on_device(z):
        grid = (triton.cdiv(rows, options["ROWS"]), shares)
        forward_kernel[grid](z, columns, *finish, nearest, sums, tiles, share, SPLIT=split, **options)
        if split:
            combined = combine_options(shares, width, count)
            combine_kernel[(triton.cdiv(rows, combined["ROWS"]),)](nearest, sums, *finish, shares, **combined)
    return log_density, each


def unsupported(*, z: Tensor, points: Tensor, bandwidths: Tensor) -> str | None:
    """Why the kernels cannot compute this density, or None."""
    if bandwidths.requires_grad and torch.is_grad_enabled():
        return "bandwidths: the Triton density has no gradient to them"
    if len(bandwidths) > _MOST_BANDWIDTHS or z.shape[-1] > _MOST_DIMENSIONS:
        return f"bandwidths, z: the Triton density takes up to {_MOST_BANDWIDTHS} bandwidths and {_MOST_DIMENSIONS} dimensions"
    return unusable(forward_kernel, z=z, points=points, bandwidths=bandwidths)


def combine_options(shares: int, width: int, bandwidths: int) -> dict[str, int]:
    """All shares of a few rows at a time."""
    padded = triton.next_power_of_2(shares)
    return {"WIDTH": width, "COUNT": bandwidths, "PADDED": triton.next_power_of_2(bandwidths), "ROWS": 8, "SHARES": padded, "num_warps": 4}


def compilations() -> Iterator[Compilation]:
    """Small and large latents, the released five bandwidths, few rows and many."""
    names = ("z", "columns", "bandwidths", "log_density", "each", "nearest", "sums", "upstream", "weights", "own", "mass", "partial", "gradient")
    types = {name: "*fp32" for name in names}
    types |= {name: "i32" for name in ("rows", "tiles", "share", "shares", "padded")} | {"clamp": "fp32", "constant": "fp32"}

    def listed(name, kernel, constants, **absent):
        warps = constants.pop("num_warps")
        present = {key: value for key, value in types.items() if key not in absent}
        return compilation(name, kernel, present, {**constants, **absent}, num_warps=warps, num_stages=3)

    for rows, width, count in ((65536, 2, 5), (64, 2, 5), (65536, 16, 5), (65536, 64, 1), (65536, 2, 32)):
        shape = f"{'many' if rows > 64 else 'few'} rows, D {width}, S {count}"
        options = launch_options(rows, width, count)
        yield listed(f"forward, {shape}", forward_kernel, {**options, "SPLIT": True})
        if count <= _FINISHED_AT_ONCE:
            yield listed(f"forward in one share, {shape}", forward_kernel, {**options, "SPLIT": False}, nearest=None, sums=None)
        for own, to in ((True, "z"), (False, "points")):
            yield listed(f"pull to {to}, {shape}", pull_kernel, pull_options(rows, width, count, own))
    for width, count in ((2, 5), (64, 32)):
        yield listed(f"combine, D {width}, S {count}", combine_kernel, combine_options(MOST_SHARES, width, count))
        yield listed(f"weights, D {width}, S {count}", weights_kernel, weights_options(width, count))
        yield listed(f"gather, D {width}", gather_kernel, gather_options(MOST_SHARES, width, True))


@triton.jit
def _finish(nearest, sums, bandwidths, log_density, each, row, rows, clamp, constant, WIDTH: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr):
    """From the nearest squared distance [ROWS] and the sums [PADDED, ROWS] measured from it to the results."""
    s = tl.arange(0, PADDED)
    present = (s < COUNT)[:, None]
    h = tl.load(bandwidths + s, mask=s < COUNT, other=1.0)
    # Far away large numbers nearly cancel here, which costs nothing once a row in float64.
    energy = nearest.to(tl.float64)[None, :] * (0.5 / (h.to(tl.float64) * h))[:, None]
    log_sums = tl.log(tl.where(present, sums, 1.0)).to(tl.float64)
    value = (log_sums - energy - (tl.log(h).to(tl.float64) * WIDTH + constant)[:, None]).to(tl.float32)
    tl.store(each + row.to(tl.int64)[None, :] * COUNT + s[:, None], value, mask=present & (row < rows)[None, :])
    clipped = tl.where(present, clip_value(value, clamp), -float("inf"))
    highest = tl.max(clipped, axis=0)
    highest = tl.where(highest == -float("inf"), 0.0, highest)
    mean = tl.sum(tl.exp(clipped - highest[None, :]), axis=0) / COUNT
    tl.store(log_density + row, highest + tl.log(mean), mask=row < rows)


@triton.jit
def forward_kernel(
    z, columns, bandwidths, log_density, each, rows, clamp, constant, nearest, sums, tiles, share, SPLIT: tl.constexpr,
    WIDTH: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * share
    s_index = tl.arange(0, PADDED)[:, None]
    closest = tl.full((ROWS,), float("inf"), tl.float32)
    total = tl.zeros((PADDED, ROWS), tl.float32)
    for tile in range(first, tl.minimum(first + share, tiles)):
        column = tile * POINTS + tl.arange(0, POINTS)
        squared = squared_distances(z, columns, row.to(tl.int64), row < rows, column, tl.cast(tiles, tl.int64) * POINTS, 16, WIDTH, ROWS, POINTS)
        closer = tl.minimum(closest, tl.min(squared, axis=0))
        # Nothing to measure from where every distance is infinite: their kernels are 0 then, not NaN.
        reference = tl.where(closer == float("inf"), 0.0, closer)
        squared -= reference[None, :]
        for s in tl.static_range(COUNT):
            rate = exponent_rate(bandwidths, s)
            grown = total * tl.exp2((closest - reference) * rate)[None, :] + tl.sum(tl.exp2(squared * rate), axis=0)[None, :]
            total = tl.where(s_index == s, grown, total)
        closest = closer
    if SPLIT:
        share_index = tl.program_id(1).to(tl.int64)
        tl.store(nearest + share_index * rows + row, closest, mask=row < rows)
        place = (share_index * COUNT + s_index) * rows + row[None, :]
        tl.store(sums + place, total, mask=(s_index < COUNT) & (row < rows)[None, :])
    else:
        _finish(closest, total, bandwidths, log_density, each, row, rows, clamp, constant, WIDTH, COUNT, PADDED)


@triton.jit
def combine_kernel(
    nearest, sums, bandwidths, log_density, each, rows, clamp, constant, shares,
    WIDTH: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    share = tl.arange(0, SHARES).to(tl.int64)[:, None]
    mask = (share < shares) & (row < rows)[None, :]
    distance = tl.load(nearest + share * rows + row[None, :], mask=mask, other=float("inf"))
    closest = tl.min(distance, axis=0)
    away = distance - tl.where(closest == float("inf"), 0.0, closest)[None, :]
    s_index = tl.arange(0, PADDED)[:, None]
    total = tl.zeros((PADDED, ROWS), tl.float32)
    for s in tl.static_range(COUNT):
        part = tl.load(sums + (share * COUNT + s) * rows + row[None, :], mask=mask, other=0.0)
        summed = tl.sum(part * tl.exp2(away * exponent_rate(bandwidths, s)), axis=0)
        total = tl.where(s_index == s, summed[None, :], total)
    _finish(closest, total, bandwidths, log_density, each, row, rows, clamp, constant, WIDTH, COUNT, PADDED)
