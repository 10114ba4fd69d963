"""Kernel density in Triton: an online log-sum-exp over points, every bandwidth in one pass of distances.

Every thread owns a row and loops over points that all threads of its program read at once: sums stay in its registers, threads exchange
nothing, and almost all the work is exponentials. A bandwidth whose kernel is a whole power of a wider one's takes products instead: three
exponentials are enough for the five bandwidths of the paper. Distances are sums of squared differences in float32, which do not cancel;
exponents of all bandwidths are relative to the nearest point so far. With few rows and many points each program takes a share of the points;
shares are combined in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast._operands import kernel_powers
from ddvi_fast.kernels.common import ARCHITECTURES, MODELED, Compilation, cdiv, launch, next_power_of_2, recorded, unusable
from ddvi_fast.kernels.kde_backward import backward
from ddvi_fast.kernels.kde_common import (
    FARTHEST,
    clip_value,
    coded,
    exponent_rate,
    launch_options,
    log_constant,
    padded_columns,
    power_of,
    split_tiles,
    squared_distances,
)

__all__ = ["backward", "compilations", "forward", "unsupported"]

_MOST_BANDWIDTHS, _MOST_DIMENSIONS = 32, 64
_FINISHED_AT_ONCE = 8
RELEASED = (0.005, 0.008, 0.01, 0.03, 0.05)  # the paper's bandwidths


def forward(z: Tensor, points: Tensor, bandwidths: Tensor, clamp: float, powers: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Log-density at `z` [N, D] under kernels on `points` [M, D], in nats.

    Args:
        z: Positions, float32 [N, D], D up to 64.
        points: Centers of the kernels, float32 [M, D].
        bandwidths: Standard deviations of the kernels, float32 [S], S up to 32.
        clamp: Limit to which each bandwidth's value is clipped first; infinite for none.
        powers: Which kernels are powers of others, as in `kde_common.coded`. Their logarithms are off by as many times the error of an
            exponential, about 4e-6 nats for the power 36.

    Returns:
        The mean over bandwidths in probability [N], and each bandwidth's value before clipping [N, S].
    """
    (rows, width), count = z.shape, bandwidths.shape[0]
    log_density, each = z.new_empty(rows), z.new_empty((rows, count))
    if rows == 0:
        return log_density, each
    options = launch_options(rows, width, count)
    columns, tiles = padded_columns(points, options["POINTS"])
    shares, share = split_tiles(rows, tiles, options)
    # With many bandwidths a thread cannot hold the results besides its sums.
    split = shares > 1 or count > _FINISHED_AT_ONCE
    nearest, sums = (z.new_empty((shares, rows)), z.new_empty((shares, count, rows))) if split else (None, None)
    finish = (bandwidths, log_density, each, rows, clamp, log_constant(points))
    grid = (cdiv(rows, options["ROWS"]), shares)
    launch(kde_fwd_kernel, grid, z, columns, *finish, nearest, sums, tiles, share, SPLIT=split, **coded(powers, count), **options)
    if split:
        combined = combine_options(shares, width, count)
        launch(kde_fwd_kernel_combine, (cdiv(rows, combined["ROWS"]),), nearest, sums, *finish, shares, **combined)
    return log_density, each


def unsupported(*, z: Tensor, points: Tensor, bandwidths: Tensor) -> str | None:
    """The reason why the kernels cannot compute this density, or None if they can."""
    if bandwidths.requires_grad and torch.is_grad_enabled():
        return "bandwidths: the Triton density has no gradient to them"
    if bandwidths.shape[0] > _MOST_BANDWIDTHS or z.shape[-1] > _MOST_DIMENSIONS:
        return f"bandwidths, z: the Triton density takes up to {_MOST_BANDWIDTHS} bandwidths and {_MOST_DIMENSIONS} dimensions"
    return unusable(kde_fwd_kernel, z=z, points=points, bandwidths=bandwidths)


def combine_options(shares: int, width: int, bandwidths: int) -> dict[str, int]:
    """Meta-parameters of the kernel that combines all shares of a few rows at a time."""
    padded = next_power_of_2(shares)
    return {"WIDTH": width, "COUNT": bandwidths, "PADDED": next_power_of_2(bandwidths), "ROWS": 8, "SHARES": padded, "num_warps": 4}


def compilations() -> Iterator[Compilation]:
    """Small and large latents, the released five bandwidths and one, few rows and many; the released sizes on every architecture."""
    many, few = (65536, 4096), (64, 4096)
    for (rows, count), width, widths, architectures in ((many, 2, 5, ARCHITECTURES), (few, 2, 5, MODELED), (many, 64, 1, MODELED)):
        z, points, bandwidths = (torch.empty(shape, device="meta") for shape in ((rows, width), (count, width), (widths,)))
        name = f"{rows} rows, {count} points, D {width}, S {widths}"
        powers = kernel_powers(RELEASED) if widths == len(RELEASED) else ()
        yield from recorded(name, forward, z, points, bandwidths, 1000.0, powers, architectures=architectures)
        each, upstream = z.new_empty(rows, widths), z.new_empty(rows)
        call = z, points, bandwidths, each, upstream, 1000.0, [True, True], powers
        yield from recorded(name, backward, *call, architectures=architectures)


@triton.jit
def _finish(nearest, sums, bandwidths, log_density, each, row, rows, clamp, constant, WIDTH: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr):
    """Store the results, from the nearest squared distance [ROWS] and the sums [PADDED, ROWS] relative to it."""
    s = tl.arange(0, PADDED)
    present = (s < COUNT)[:, None]
    h = tl.load(bandwidths + s, mask=s < COUNT, other=1.0)
    # A row that the points behind the last are nearest to has no point at a finite distance.
    nearest = tl.where(nearest >= FARTHEST, float("inf"), nearest)
    # Large numbers nearly cancel here; float64 costs nothing once a row.
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
def kde_fwd_kernel(
    z,  # [N, D]
    columns,  # [D, tiles * POINTS]
    bandwidths,  # [S]
    log_density,  # [N]
    each,  # [N, S]
    rows, clamp, constant,
    nearest,  # [shares, N] or None
    sums,  # [shares, S, N] or None
    tiles, share, SPLIT: tl.constexpr, BASES: tl.constexpr, POWERS: tl.constexpr,
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
        # Relative to 0 where every distance is infinite: the kernels are 0 then, not NaN.
        reference = tl.where(closer == float("inf"), 0.0, closer)
        squared -= reference[None, :]
        for base in tl.static_range(COUNT):
            if (BASES >> (5 * base)) & 31 == base:
                kernel = tl.exp2(squared * exponent_rate(bandwidths, base))
                for s in tl.static_range(COUNT):
                    if (BASES >> (5 * s)) & 31 == base:
                        before = tl.exp2((closest - reference) * exponent_rate(bandwidths, s))
                        grown = total * before[None, :] + tl.sum(power_of(kernel, s, POWERS), axis=0)[None, :]
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
def kde_fwd_kernel_combine(
    nearest,  # [shares, N]
    sums,  # [shares, S, N]
    bandwidths,  # [S]
    log_density,  # [N]
    each,  # [N, S]
    rows, clamp, constant, shares,
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
