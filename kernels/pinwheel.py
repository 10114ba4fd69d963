"""Samples of the pinwheel prior in Triton: class, noise and map in one launch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast import rng
from ddvi_fast.kernels.common import Compilation, cdiv, launch, recorded
from ddvi_fast.kernels.rng import box_muller, draw_index, philox, to_uniform

_ROWS = 128


def sample(state: Tensor, offset: int, shape: tuple[int, int], arms: int, constants: tuple[float, float, float, float, float]) -> Tensor:
    """Samples [S, n, 2] of the prior, set `s` beginning at importance sample `s`.

    Args:
        state: Seed and first draw index, int64 [2] on the device.
        offset: Number added to the first draw index.
        shape: Number of sets S and of samples n.
        arms: Number of arms.
        constants: Standard deviations along and across an arm, rate of the winding, radius of the core and outer radius.
    """
    out = torch.empty((*shape, 2), dtype=torch.float32, device=state.device)
    rows, streams = math.prod(shape), {"LABELS": rng.PRIOR, "NOISE": rng.PRIOR + 1}
    if rows:
        # In float64, as the specification: an argument of a launch would be rounded to float32.
        parts = {name: value for name, value in zip(("RADIAL", "TANGENTIAL", "RATE", "CORE", "OUTER"), constants, strict=True)}
        grid = (cdiv(rows, _ROWS),)
        launch(pinwheel_fwd_kernel, grid, state, out, offset, rows, shape[1], arms, **parts, **streams, ROWS=_ROWS, num_warps=4)
    return out


def compilations() -> Iterator[Compilation]:
    """The default pinwheel."""
    state = torch.empty(2, dtype=torch.int64, device="meta")
    yield from recorded("10 arms", sample, state, 0, (3, 128), 10, (0.15, 0.005, 0.25, 1.6, 2.5))


@triton.jit
def _exact(number: tl.constexpr):
    """A number in float64: beside a tensor it would be rounded to float32."""
    return tl.full((1,), number, tl.float64)


@triton.jit
def _series(s, c0: tl.constexpr, c1: tl.constexpr, c2: tl.constexpr, c3: tl.constexpr, c4: tl.constexpr, c5: tl.constexpr, c6: tl.constexpr):
    """`1 + c0 s + .. + c6 s^7`."""
    total = s * _exact(c6) + _exact(c5)
    total = total * s + _exact(c4)
    total = total * s + _exact(c3)
    total = total * s + _exact(c2)
    total = total * s + _exact(c1)
    total = total * s + _exact(c0)
    return total * s + _exact(1.0)


@triton.jit
def _cosine_and_sine(angle):
    """In float64, to 1e-15: quarter turns are subtracted in two parts, and the rest has a Taylor series."""
    quarter = tl.floor(angle * _exact(0.6366197723675814) + _exact(0.5))
    x = (angle - quarter * _exact(1.5707963267948966)) - quarter * _exact(6.123233995736766e-17)
    s = x * x
    odd = x * _series(s, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800, 1 / 6227020800, -1 / 1307674368000)
    even = _series(s, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800, 1 / 479001600, -1 / 87178291200)
    turn = quarter.to(tl.int32)
    swapped = (turn & 1) != 0
    c, s = tl.where(swapped, odd, even), tl.where(swapped, even, odd)
    return tl.where(((turn + 1) & 2) != 0, -c, c), tl.where((turn & 2) != 0, -s, s)


@triton.jit(do_not_specialize=["offset", "rows", "rows_per_sample", "arms"])
def pinwheel_fwd_kernel(
    state, out, offset, rows, rows_per_sample, arms,
    RADIAL: tl.constexpr, TANGENTIAL: tl.constexpr, RATE: tl.constexpr, CORE: tl.constexpr, OUTER: tl.constexpr,
    LABELS: tl.constexpr, NOISE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The point `f` turned by the winding of its arm: that of its first coordinate in the core, and beyond that of its radius."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    index, seed = draw_index(state, offset, row, rows_per_sample), tl.load(state)
    word, _, _, _ = philox(index, 0, LABELS, seed)
    arm = tl.minimum((to_uniform(word) * arms).to(tl.int32), arms - 1)
    a, b, _, _ = philox(index, 0, NOISE, seed)
    first, second = box_muller(to_uniform(a), to_uniform(b))
    along = _exact(1.0) + _exact(RADIAL) * first.to(tl.float64)
    across = _exact(TANGENTIAL) * second.to(tl.float64)
    radius = tl.sqrt(along * along + across * across)
    inner = along * tl.minimum(_exact(CORE) / radius, _exact(1.0))
    outer = tl.exp(tl.minimum(tl.maximum(radius, _exact(CORE)), _exact(OUTER)))
    turn = _exact(RATE) * (tl.exp(inner) + outer - tl.exp(_exact(CORE)))
    of_arm = 6.283185307179586 * arm.to(tl.float32) / arms.to(tl.float32)  # rounded, as the specification's
    c, s = _cosine_and_sine(turn + of_arm.to(tl.float64))
    mask = row < rows
    tl.store(out + 2 * row, (along * c + across * s).to(tl.float32), mask)
    tl.store(out + 2 * row + 1, (across * c - along * s).to(tl.float32), mask)
