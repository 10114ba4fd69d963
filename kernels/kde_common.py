"""Helpers of the kernel density, for both passes: sizes of a launch, layout of the points, distances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from ddvi_fast.kernels.common import cdiv, next_power_of_2

MOST_SHARES = 256
_WARPS = 4224  # 32 on each of an H200's 132 multiprocessors keep its exponential units busy
_FAR = 1e18  # a coordinate of the points behind the last: its square is finite, its kernel is 0
FARTHEST = tl.constexpr(_FAR * _FAR / 4)  # squared distance that no other point may have


def launch_options(rows: int, width: int, bandwidths: int) -> dict[str, int]:
    """Meta-parameters of a pass: a thread per row, one warp where rows are few, and as many points at a time as registers hold."""
    block, points = 128 if rows > 64 else 32, 32 if width <= 16 else 16
    return dict(WIDTH=width, COUNT=bandwidths, PADDED=next_power_of_2(bandwidths), ROWS=block, POINTS=points, num_warps=block // 32)


def padded_columns(points: Tensor, block: int) -> tuple[Tensor, int]:
    """Points as [D, M] and the number of tiles; M is padded to whole tiles with points too far away to count, so that loops need no mask."""
    count = points.shape[0]
    tiles = cdiv(count, block)
    return pad(points.mT, (0, tiles * block - count), value=_FAR).contiguous(), tiles


def split_tiles(rows: int, tiles: int, options: dict[str, int]) -> tuple[int, int]:
    """Number of shares and of tiles in each: a function of the shapes alone, because the order of sums depends on it."""
    wanted = min(cdiv(_WARPS, options["num_warps"] * cdiv(rows, options["ROWS"])), MOST_SHARES, max(1, tiles // 2))
    share = cdiv(tiles, wanted)
    return cdiv(tiles, share), share


def log_constant(points: Tensor) -> float:
    """Logarithm of the mean's and the Gaussian's constants, without the bandwidth."""
    return math.log(points.shape[0]) + 0.5 * points.shape[1] * math.log(2 * math.pi)


@triton.jit
def coordinate_away(own, columns, row, inside, column, stride, d, WIDTH: tl.constexpr):
    """Coordinate `d` of points minus that of rows: [POINTS, ROWS]."""
    return tl.load(columns + d * stride + column)[:, None] - tl.load(own + row * WIDTH + d, mask=inside, other=0.0)[None, :]


@triton.jit
def squared_distances(own, columns, row, inside, column, stride, UNROLL: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, POINTS: tl.constexpr):
    """Squared distances [POINTS, ROWS], unrolled up to UNROLL coordinates."""
    total = tl.zeros((POINTS, ROWS), tl.float32)
    # Rows of few coordinates stay in registers from tile to tile; longer ones are read again.
    if WIDTH <= UNROLL:
        for d in tl.static_range(WIDTH):
            away = coordinate_away(own, columns, row, inside, column, stride, d, WIDTH)
            total += away * away
    else:
        for d in range(WIDTH):
            away = coordinate_away(own, columns, row, inside, column, stride, d, WIDTH)
            total += away * away
    return total


def coded(powers: Sequence[int], count: int) -> dict[str, int]:
    """`powers` as two numbers for the compiler, BASES and POWERS, with a field of bits for each bandwidth.

    Args:
        powers: For each of the `count` bandwidths the number of another, and the power of that one's kernel which is its own (1 for itself); empty
            if each has an exponential of its own. See `ddvi_fast._operands.kernel_powers`.
        count: Number of bandwidths.
    """
    pairs = list(zip(powers[::2], powers[1::2], strict=True)) or [(s, 1) for s in range(count)]
    return {
        "BASES": sum(base << 5 * s for s, (base, _) in enumerate(pairs)),
        "POWERS": sum(power << 6 * s for s, (_, power) in enumerate(pairs)),
    }


@triton.jit
def power_of(x, s: tl.constexpr, POWERS: tl.constexpr):
    """`x` to the power of bandwidth `s`, by squares: the relative error grows by that factor."""
    EXPONENT: tl.constexpr = (POWERS >> (6 * s)) & 63
    result, square = x, x
    for bit in tl.static_range(6):
        if (EXPONENT >> bit) & 1:
            if EXPONENT & ((1 << bit) - 1):
                result = result * square
            else:
                result = square
        square = square * square
    return result


@triton.jit
def exponent_rate(bandwidths, s):
    """`exp(-d / 2 h^2)` is 2 to the power of `rate d`."""
    h = tl.load(bandwidths + s)
    return -0.7213475204444817 / (h * h)


@triton.jit
def clip_value(each, clamp):
    """Comparisons, not minimum and maximum, so that a NaN stays one."""
    return tl.where(each > clamp, clamp, tl.where(each < -clamp, -clamp, each))
