"""Kernel density in Triton: an online log-sum-exp over points, every bandwidth in one pass of distances.

Every thread owns a row and walks over points that all threads of its program read at once: sums stay in its registers, nothing is
exchanged between threads, and the work is almost wholly exponentials. All bandwidths measure from the nearest point so far. Few
rows and many points are spread by giving each program a share of the points; shares are combined in a fixed order.
Distances are sums of squared differences in float32: nothing cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from ddvi_fast.kernels.common import Compilation, compilation, on_device, unusable

_MOST_BANDWIDTHS, _MOST_DIMENSIONS = 32, 64
_FINISHED_AT_ONCE = 8
_MOST_SHARES = 256
_WARPS = 4224  # 32 on each of an H200's 132 multiprocessors keep its exponential units busy
_FAR = 1e18  # a coordinate of the points behind the last: its square is finite, its kernel is 0


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
    columns, tiles = _columns(points, options["POINTS"])
    shares, share = _shares(rows, tiles, options)
    # With many bandwidths the results are more than a thread should hold besides its sums.
    split = shares > 1 or count > _FINISHED_AT_ONCE
    nearest, sums = (z.new_empty((shares, rows)), z.new_empty((shares, count, rows))) if split else (None, None)
    finish = (bandwidths, log_density, each, rows, clamp, _constant(points))
    with on_device(z):
        grid = (triton.cdiv(rows, options["ROWS"]), shares)
        forward_kernel[grid](z, columns, *finish, nearest, sums, tiles, share, SPLIT=split, **options)
        if split:
            combined = combine_options(shares, width, count)
            combine_kernel[(triton.cdiv(rows, combined["ROWS"]),)](nearest, sums, *finish, shares, **combined)
    return log_density, each


def backward(z: Tensor, points: Tensor, bandwidths: Tensor, each: Tensor, upstream: Tensor, clamp: float, needed: list[bool]) -> list[Tensor | None]:
    """Gradients to `z` and `points` from `upstream` [N], those that are `needed`; `each` [N, S] is forward's."""
    rows, width = z.shape
    if rows == 0:
        return [torch.zeros_like(value) if need else None for value, need in zip((z, points), needed, strict=True)]
    count, block = len(bandwidths), launch_options(rows, width, len(bandwidths))["POINTS"]
    padded = triton.cdiv(rows, block) * block
    weights = z.new_empty((3, count, padded))
    options = weights_options(width, count)
    with on_device(z):
        grid = (triton.cdiv(padded, options["ROWS"]),)
        weights_kernel[grid](each, upstream, bandwidths, weights, rows, padded, clamp, _constant(points), **options)
    # The rows' masses, which normalise both gradients, come with that to z.
    mass = z.new_ones(padded)
    d_z = _pull(z, points, bandwidths, weights, mass, own=True)
    if needed[1]:
        weights[0].div_(mass)
    return [d_z if needed[0] else None, _pull(points, z, bandwidths, weights, mass, own=False) if needed[1] else None]


def unsupported(*, z: Tensor, points: Tensor, bandwidths: Tensor) -> str | None:
    """Why the kernels cannot compute this density, or None."""
    if bandwidths.requires_grad and torch.is_grad_enabled():
        return "bandwidths: the Triton density has no gradient to them"
    if len(bandwidths) > _MOST_BANDWIDTHS or z.shape[-1] > _MOST_DIMENSIONS:
        return f"bandwidths, z: the Triton density takes up to {_MOST_BANDWIDTHS} bandwidths and {_MOST_DIMENSIONS} dimensions"
    return unusable(forward_kernel, z=z, points=points, bandwidths=bandwidths)


def launch_options(rows: int, width: int, bandwidths: int) -> dict[str, int]:
    """A thread per row, one warp where rows are few; as many points at a time as registers hold."""
    block = 128 if rows > 64 else 32
    points = 32 if width <= 16 else 16
    return dict(WIDTH=width, COUNT=bandwidths, PADDED=triton.next_power_of_2(bandwidths), ROWS=block, POINTS=points, num_warps=block // 32)


def combine_options(shares: int, width: int, bandwidths: int) -> dict[str, int]:
    """All shares of a few rows at a time."""
    padded = triton.next_power_of_2(shares)
    return {"WIDTH": width, "COUNT": bandwidths, "PADDED": triton.next_power_of_2(bandwidths), "ROWS": 8, "SHARES": padded, "num_warps": 4}


def weights_options(width: int, bandwidths: int) -> dict[str, int]:
    """Up to eight values a thread."""
    padded = triton.next_power_of_2(bandwidths)
    return {"WIDTH": width, "COUNT": bandwidths, "PADDED": padded, "ROWS": 1024 // max(8, padded), "num_warps": 4}


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
            yield listed(f"pull to {to}, {shape}", pull_kernel, _pull_options(rows, width, count, own))
    for width, count in ((2, 5), (64, 32)):
        yield listed(f"combine, D {width}, S {count}", combine_kernel, combine_options(_MOST_SHARES, width, count))
        yield listed(f"weights, D {width}, S {count}", weights_kernel, weights_options(width, count))
        yield listed(f"gather, D {width}", gather_kernel, _gather_options(_MOST_SHARES, width, True))


def _pull_options(rows: int, width: int, bandwidths: int, own: bool) -> dict[str, int]:
    """Fewer points at a time than forward takes where coordinates, factors and sums of a row fill the registers; up to 16 coordinates a program."""
    options = launch_options(rows, width, bandwidths)
    points = 8 if width > 8 or bandwidths > 8 else 32 if own else 16
    return {**options, "POINTS": points, "PADDED": min(triton.next_power_of_2(width), 16), "OWN": own}


def _gather_options(shares: int, width: int, own: bool) -> dict[str, int]:
    return {"WIDTH": width, "ROWS": 8, "SHARES": triton.next_power_of_2(shares), "OWN": own, "num_warps": 4}


def _pull(own_rows: Tensor, other: Tensor, bandwidths: Tensor, weights: Tensor, mass: Tensor, own: bool) -> Tensor:
    """Gradient to `own_rows` [N, D], drawn by those of `other` [M, D]; with weights of their `own` it writes their `mass`."""
    rows, width = own_rows.shape
    options = _pull_options(rows, width, len(bandwidths), own)
    columns, tiles = _columns(other, options["POINTS"])
    shares, share = _shares(rows, tiles, options)
    partial, gradient = own_rows.new_empty((shares, width + own, rows)), torch.empty_like(own_rows)
    gather = _gather_options(shares, width, own)
    with on_device(own_rows):
        grid = (triton.cdiv(rows, options["ROWS"]), shares, triton.cdiv(width, options["PADDED"]))
        pull_kernel[grid](own_rows, columns, bandwidths, weights, partial, rows, tiles, share, weights.shape[2], **options)
        gather_kernel[(triton.cdiv(rows, gather["ROWS"]),)](partial, gradient, mass, rows, shares, **gather)
    return gradient


def _columns(points: Tensor, block: int) -> tuple[Tensor, int]:
    """Points as [D, M], M rounded up to whole tiles with points too far away to count, so that loops need no mask; and the tiles."""
    tiles = triton.cdiv(len(points), block)
    return pad(points.mT, (0, tiles * block - len(points)), value=_FAR).contiguous(), tiles


def _shares(rows: int, tiles: int, options: dict[str, int]) -> tuple[int, int]:
    """In how many shares the tiles are split, and tiles in each: a function of the shapes alone, as the order of sums hangs on it."""
    programs = triton.cdiv(rows, options["ROWS"])
    wanted = min(triton.cdiv(_WARPS, options["num_warps"] * programs), _MOST_SHARES, max(1, tiles // 2))
    share = triton.cdiv(tiles, wanted)
    return triton.cdiv(tiles, share), share


def _constant(points: Tensor) -> float:
    return math.log(len(points)) + 0.5 * points.shape[1] * math.log(2 * math.pi)


@triton.jit
def _away(own, columns, row, inside, column, stride, d, WIDTH: tl.constexpr):
    """Coordinate `d` of points less that of rows: [POINTS, ROWS]."""
    return tl.load(columns + d * stride + column)[:, None] - tl.load(own + row * WIDTH + d, mask=inside, other=0.0)[None, :]


@triton.jit
def _squared(own, columns, row, inside, column, stride, UNROLL: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, POINTS: tl.constexpr):
    """Squared distances [POINTS, ROWS], unrolled up to UNROLL coordinates."""
    total = tl.zeros((POINTS, ROWS), tl.float32)
    # Rows of few coordinates stay in registers from tile to tile; longer ones are read again.
    if WIDTH <= UNROLL:
        for d in tl.static_range(WIDTH):
            away = _away(own, columns, row, inside, column, stride, d, WIDTH)
            total += away * away
    else:
        for d in range(WIDTH):
            away = _away(own, columns, row, inside, column, stride, d, WIDTH)
            total += away * away
    return total


@triton.jit
def _rate(bandwidths, s):
    """`exp(-d / 2 h^2)` is 2 to the power of `rate d`."""
    h = tl.load(bandwidths + s)
    return -0.7213475204444817 / (h * h)


@triton.jit
def _clipped(each, clamp):
    """Comparisons, not minimum and maximum, so that a NaN stays one."""
    return tl.where(each > clamp, clamp, tl.where(each < -clamp, -clamp, each))


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
    clipped = tl.where(present, _clipped(value, clamp), -float("inf"))
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
        squared = _squared(z, columns, row.to(tl.int64), row < rows, column, tl.cast(tiles, tl.int64) * POINTS, 16, WIDTH, ROWS, POINTS)
        closer = tl.minimum(closest, tl.min(squared, axis=0))
        # Nothing to measure from where every distance is infinite: their kernels are 0 then, not NaN.
        reference = tl.where(closer == float("inf"), 0.0, closer)
        squared -= reference[None, :]
        for s in tl.static_range(COUNT):
            rate = _rate(bandwidths, s)
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
        summed = tl.sum(part * tl.exp2(away * _rate(bandwidths, s)), axis=0)
        total = tl.where(s_index == s, summed[None, :], total)
    _finish(closest, total, bandwidths, log_density, each, row, rows, clamp, constant, WIDTH, COUNT, PADDED)


@triton.jit
def weights_kernel(
    each, upstream, bandwidths, weights, rows, padded, clamp, constant,
    WIDTH: tl.constexpr, COUNT: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Per bandwidth and row [3, COUNT, padded]: the factor of its kernels in the gradient, the log base 2 of their sum, its part of a row.

    A value outside of the clamp has no gradient; rows behind the last pull on nothing.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    s = tl.arange(0, PADDED)
    present = (s < COUNT)[:, None] & (row < rows)[None, :]
    h = tl.load(bandwidths + s, mask=s < COUNT, other=1.0)
    value = tl.load(each + row.to(tl.int64)[None, :] * COUNT + s[:, None], mask=present, other=0.0)
    clipped = tl.where((s < COUNT)[:, None], _clipped(value, clamp), -float("inf"))
    part = tl.exp(clipped - tl.max(clipped, axis=0)[None, :])
    part = part / tl.sum(part, axis=0)[None, :]
    part = tl.where(tl.abs(value) > clamp, 0.0, part)
    given = tl.load(upstream + row, mask=row < rows, other=0.0)[None, :]
    log_sum = ((value.to(tl.float64) + (tl.log(h).to(tl.float64) * WIDTH + constant)[:, None]) * 1.4426950408889634).to(tl.float32)
    of_all = tl.sum(part, axis=0)[None, :]
    plane = tl.cast(padded, tl.int64) * COUNT
    place = weights + s[:, None].to(tl.int64) * padded + row[None, :]
    mask = (s < COUNT)[:, None] & (row < padded)[None, :]
    tl.store(place, given * part / (h * h)[:, None], mask=mask)
    tl.store(place + plane, tl.where(present, log_sum, 0.0), mask=mask)
    tl.store(place + 2 * plane, part / tl.where(of_all == 0, 1.0, of_all), mask=mask)


@triton.jit
def pull_kernel(
    own, columns, bandwidths, weights, partial, rows, tiles, share, padded, OWN: tl.constexpr,
    WIDTH: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr, POINTS: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """`sum_j sum_s factor_s k_s (other_j - own_i)` with `k_s = 2^(rate_s d_ij - log_sum_s)` for every row i; OWN: factors are those of i, else of j.

    With its own factors a row also sums up `part_s k_s`, its mass: 1 but for the rounding of `log_sum`, which at 1000 nats is worth
    two digits, and which dividing by the mass takes back.
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
        squared = _squared(own, columns, row.to(tl.int64), inside, column, stride, 8, WIDTH, ROWS, POINTS)
        pull = tl.zeros((POINTS, ROWS), tl.float32)
        masses = tl.zeros((POINTS, ROWS), tl.float32)
        for s in tl.static_range(COUNT):
            factors = weights + s * tl.cast(padded, tl.int64)
            if OWN:
                factor = tl.load(factors + row, mask=inside, other=0.0)[None, :]
                log_sum = tl.load(factors + plane + row, mask=inside, other=0.0)[None, :]
            else:
                factor = tl.load(factors + column)[:, None]
                log_sum = tl.load(factors + plane + column)[:, None]
            kernel = tl.exp2(squared * _rate(bandwidths, s) - log_sum)
            pull += factor * kernel
            if OWN:
                masses += tl.load(factors + 2 * plane + row, mask=inside, other=0.0)[None, :] * kernel
        for d in tl.static_range(PADDED):
            # Behind the last coordinate comes the last again, which is not stored.
            away = _away(own, columns, row.to(tl.int64), inside, column, stride, tl.minimum(start + d, WIDTH - 1), WIDTH)
            total = tl.where(dimension == d, total + tl.sum(pull * away, axis=0)[None, :], total)
        if OWN:
            whole += tl.sum(masses, axis=0)
    place = partial + tl.program_id(1).to(tl.int64) * (WIDTH + OWN) * rows + row
    tl.store(place[None, :] + (start + dimension).to(tl.int64) * rows, total, mask=(start + dimension < WIDTH) & inside[None, :])
    if OWN:
        tl.store(place + WIDTH * tl.cast(rows, tl.int64), whole, mask=inside & (start == 0))


@triton.jit
def gather_kernel(partial, gradient, mass, rows, shares, OWN: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, SHARES: tl.constexpr):
    """Sum of the shares' parts [shares, WIDTH (+ mass), rows], divided by the mass where there is one."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    share = tl.arange(0, SHARES).to(tl.int64)[:, None]
    mask = (share < shares) & (row < rows)[None, :]
    place = partial + share * (WIDTH + OWN) * rows + row[None, :]
    whole = tl.full((ROWS,), 1.0, tl.float32)
    if OWN:
        whole = tl.sum(tl.load(place + WIDTH * tl.cast(rows, tl.int64), mask=mask, other=0.0), axis=0)
        # Nothing pulls on a row whose every value is clipped.
        whole = tl.where(whole == 0, 1.0, whole)
        tl.store(mass + row, whole, mask=row < rows)
    for d in range(WIDTH):
        summed = tl.sum(tl.load(place + d * tl.cast(rows, tl.int64), mask=mask, other=0.0), axis=0)
        tl.store(gradient + row.to(tl.int64) * WIDTH + d, summed / whole, mask=row < rows)
