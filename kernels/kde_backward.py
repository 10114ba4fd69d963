"""Backward pass of the kernel density in Triton: gradients to z and to the points, each in one pass of distances for all bandwidths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.common import cdiv, launch, next_power_of_2
from ddvi_fast.kernels.kde_common import (
    clip_value,
    coded,
    coordinate_away,
    exponent_rate,
    launch_options,
    log_constant,
    padded_columns,
    power_of,
    split_tiles,
    squared_distances,
)


def backward(
    z: Tensor, points: Tensor, bandwidths: Tensor, each: Tensor, upstream: Tensor, clamp: float, needed: list[bool], powers: Sequence[int] = ()
) -> list[Tensor | None]:
    """The gradients to `z` and `points` that are `needed`, from `upstream` [N]; `each` [N, S] is the second result of `forward`."""
    rows, width = z.shape
    if rows == 0:
        return [torch.zeros_like(value) if need else None for value, need in zip((z, points), needed, strict=True)]
    count, block = len(bandwidths), launch_options(rows, width, len(bandwidths))["POINTS"]
    padded = cdiv(rows, block) * block
    weights, nearest = z.new_empty((2, count, padded)), z.new_empty(padded)
    options = weights_options(width, count)
    call = (each, upstream, bandwidths, weights, nearest, rows, padded, clamp, log_constant(points))
    launch(kde_bwd_kernel_weights, (cdiv(padded, options["ROWS"]),), *call, **options)
    # The pass for z also computes the rows' masses, which normalize both gradients.
    mass = z.new_ones(padded) if needed[1] else z.new_empty(padded)
    of_rows = weights, nearest, mass, coded(powers, count)
    d_z = _pull(z, points, bandwidths, *of_rows, own=True)
    if needed[1]:
        weights[0].div_(mass)
    return [d_z if needed[0] else None, _pull(points, z, bandwidths, *of_rows, own=False) if needed[1] else None]


def weights_options(width: int, bandwidths: int) -> dict[str, int]:
    """Meta-parameters of the kernel of the weights: up to eight values a thread."""
    padded = next_power_of_2(bandwidths)
    return {"WIDTH": width, "COUNT": bandwidths, "PADDED": padded, "ROWS": 1024 // max(8, padded), "num_warps": 4}


def pull_options(rows: int, width: int, bandwidths: int, own: bool) -> dict[str, int]:
    """Meta-parameters of the pass over pairs.

    It takes fewer points at a time than forward where coordinates, factors and sums of a row fill the registers, and up to 16 coordinates.
    """
    options = launch_options(rows, width, bandwidths)
    points = 8 if width > 8 or bandwidths > 8 else 32 if own else 16
    return {**options, "POINTS": points, "PADDED": min(next_power_of_2(width), 16), "OWN": own}


def gather_options(shares: int, width: int, own: bool) -> dict[str, int]:
    """Meta-parameters of the kernel that adds the shares."""
    return {"WIDTH": width, "ROWS": 8, "SHARES": next_power_of_2(shares), "OWN": own, "num_warps": 4}


def _pull(
    own_rows: Tensor, other: Tensor, bandwidths: Tensor, weights: Tensor, nearest: Tensor, mass: Tensor, powers: dict[str, int], own: bool
) -> Tensor:
    """Gradient to `own_rows` [N, D] from pairs with `other` [M, D]; `own` says that the weights are those of `own_rows`, whose `mass` it writes."""
    rows, width = own_rows.shape
    options = pull_options(rows, width, len(bandwidths), own)
    columns, tiles = padded_columns(other, options["POINTS"])
    shares, share = split_tiles(rows, tiles, options)
    partial, gradient = own_rows.new_empty((shares, width + own, rows)), torch.empty_like(own_rows)
    gather = gather_options(shares, width, own)
    grid = (cdiv(rows, options["ROWS"]), shares, cdiv(width, options["PADDED"]))
    call = (own_rows, columns, bandwidths, weights, nearest, partial, rows, tiles, share, weights.shape[2])
    launch(kde_bwd_kernel, grid, *call, **powers, **options)
    launch(kde_bwd_kernel_gather, (cdiv(rows, gather["ROWS"]),), partial, gradient, mass, rows, shares, **gather)
    return gradient


@triton.jit
def kde_bwd_kernel_weights(
    each,  # [N, S]
    upstream,  # [N]
    bandwidths,  # [S]
    weights,  # [2, S, padded]
    nearest,  # [padded]
    rows, padded, clamp, constant,
    WIDTH: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write for each bandwidth and row the factor of its kernels in the gradient and its part of the row, both over the sum of the kernels.

    Kernels and sum are relative to a squared distance close to that of the nearest point and no larger, which `nearest` gets; the log-density of
    each bandwidth gives one. A value outside the clamp has no gradient; rows beyond the last have the factor 0.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    s = tl.arange(0, PADDED)
    present = (s < COUNT)[:, None] & (row < rows)[None, :]
    h = tl.load(bandwidths + s, mask=s < COUNT, other=1.0)
    value = tl.load(each + row.to(tl.int64)[None, :] * COUNT + s[:, None], mask=present, other=0.0)
    clipped = tl.where((s < COUNT)[:, None], clip_value(value, clamp), -float("inf"))
    part = tl.exp(clipped - tl.max(clipped, axis=0)[None, :])
    part = part / tl.sum(part, axis=0)[None, :]
    part = tl.where(tl.abs(value) > clamp, 0.0, part)
    given = tl.load(upstream + row, mask=row < rows, other=0.0)[None, :]
    log_sum = (value.to(tl.float64) + (tl.log(h).to(tl.float64) * WIDTH + constant)[:, None]) * 1.4426950408889634
    rate = (-0.7213475204444817 / (h * h)).to(tl.float64)[:, None]
    finite = present & (tl.abs(value) < float("inf"))
    closest = tl.maximum(tl.max(tl.where(finite, log_sum / rate, 0.0), axis=0), 0.0).to(tl.float32)
    over = tl.where(finite, tl.exp2((closest.to(tl.float64)[None, :] * rate - log_sum).to(tl.float32)), 0.0)
    of_all = tl.sum(part, axis=0)[None, :]
    plane = tl.cast(padded, tl.int64) * COUNT
    place = weights + s[:, None].to(tl.int64) * padded + row[None, :]
    mask = (s < COUNT)[:, None] & (row < padded)[None, :]
    tl.store(place, given * part / (h * h)[:, None] * over, mask=mask)
    tl.store(place + plane, part / tl.where(of_all == 0, 1.0, of_all) * over, mask=mask)
    tl.store(nearest + row, closest, mask=row < padded)


@triton.jit
def kde_bwd_kernel(
    own,  # [N, D]
    columns,  # [D, tiles * POINTS]
    bandwidths,  # [S]
    weights,  # [2, S, padded]
    nearest,  # [padded]
    partial,  # [shares, D (+ 1), N]
    rows, tiles, share, padded, BASES: tl.constexpr, POWERS: tl.constexpr, OWN: tl.constexpr,
    WIDTH: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr, POINTS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """`sum_j sum_s factor_s k_s (other_j - own_i)` with `k_s = 2^(rate_s (d_ij - nearest))` for every row i.

    OWN says that the factors are those of i, else of j. With its own factors a row also sums `part_s k_s`, its mass: 1 except for the
    rounding of the log-density, which at 1000 nats costs two digits, and which the division by the mass corrects.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    first = tl.program_id(1) * share
    stride = tl.cast(tiles, tl.int64) * POINTS
    plane = tl.cast(padded, tl.int64) * COUNT
    start = tl.program_id(2) * PADDED
    dimension = tl.arange(0, PADDED)[:, None]
    total = tl.zeros((PADDED, ROWS), tl.float32)
    whole = tl.zeros((ROWS,), tl.float32)
    for tile in range(first, tl.minimum(first + share, tiles)):
        column = tile * POINTS + tl.arange(0, POINTS)
        # Unrolled, the differences would be kept for the gradient below: more registers than there are.
        squared = squared_distances(own, columns, row.to(tl.int64), inside, column, stride, 8, WIDTH, ROWS, POINTS)
        pull = tl.zeros((POINTS, ROWS), tl.float32)
        masses = tl.zeros((POINTS, ROWS), tl.float32)
        if OWN:
            squared -= tl.load(nearest + row, mask=inside, other=0.0)[None, :]
        else:
            squared -= tl.load(nearest + column)[:, None]
        for base in tl.static_range(COUNT):
            if (BASES >> (5 * base)) & 31 == base:
                of_base = tl.exp2(squared * exponent_rate(bandwidths, base))
                for s in tl.static_range(COUNT):
                    if (BASES >> (5 * s)) & 31 == base:
                        kernel = power_of(of_base, s, POWERS)
                        factors = weights + s * tl.cast(padded, tl.int64)
                        if OWN:
                            pull += tl.load(factors + row, mask=inside, other=0.0)[None, :] * kernel
                            masses += tl.load(factors + plane + row, mask=inside, other=0.0)[None, :] * kernel
                        else:
                            pull += tl.load(factors + column)[:, None] * kernel
        for d in tl.static_range(PADDED):
            # Beyond the last coordinate it is the last again, which is not stored.
            away = coordinate_away(own, columns, row.to(tl.int64), inside, column, stride, tl.minimum(start + d, WIDTH - 1), WIDTH)
            total = tl.where(dimension == d, total + tl.sum(pull * away, axis=0)[None, :], total)
        if OWN:
            whole += tl.sum(masses, axis=0)
    place = partial + tl.program_id(1).to(tl.int64) * (WIDTH + OWN) * rows + row
    tl.store(place[None, :] + (start + dimension).to(tl.int64) * rows, total, mask=(start + dimension < WIDTH) & inside[None, :])
    if OWN:
        tl.store(place + WIDTH * tl.cast(rows, tl.int64), whole, mask=inside & (start == 0))


@triton.jit
def kde_bwd_kernel_gather(
    partial,  # [shares, D (+ 1), N]
    gradient,  # [N, D]
    mass,  # [padded]
    rows, shares, OWN: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """Add the parts of the shares, and divide by the mass where there is one."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    share = tl.arange(0, SHARES).to(tl.int64)[:, None]
    mask = (share < shares) & (row < rows)[None, :]
    place = partial + share * (WIDTH + OWN) * rows + row[None, :]
    whole = tl.full((ROWS,), 1.0, tl.float32)
    if OWN:
        whole = tl.sum(tl.load(place + WIDTH * tl.cast(rows, tl.int64), mask=mask, other=0.0), axis=0)
        # A row whose values are all clipped has no mass.
        whole = tl.where(whole == 0, 1.0, whole)
        tl.store(mass + row, whole, mask=row < rows)
    for d in range(WIDTH):
        summed = tl.sum(tl.load(place + d * tl.cast(rows, tl.int64), mask=mask, other=0.0), axis=0)
        tl.store(gradient + row.to(tl.int64) * WIDTH + d, summed / whole, mask=row < rows)
