"""The pinwheel prior in Triton: samples (class, noise and map in one launch), the map of given noise, and its gradient."""

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

Constants = tuple[float, float, float, float, float]


def sample(
    state: Tensor, offset: int, shape: tuple[int, int], arms: int, constants: Constants, parts: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Samples [S, n, 2] of the prior, set `s` beginning at importance sample `s`, with their noise [S, n, 2] and arms [S, n] if asked for.

    Args:
        state: Seed and first draw index, int64 [2] on the device.
        offset: Number added to the first draw index.
        shape: Number of sets S and of samples n.
        arms: Number of arms.
        constants: Standard deviations along and across an arm, rate of the winding, radius of the core and outer radius.
        parts: Whether noise and arms are written too (bool, default False).
    """
    out, rows = torch.empty((*shape, 2), dtype=torch.float32, device=state.device), math.prod(shape)
    noise, labels = (torch.empty_like(out), torch.empty(shape, dtype=torch.int64, device=state.device)) if parts else (None, None)
    if rows:
        streams = {"LABELS": rng.PRIOR, "NOISE": rng.PRIOR + 1}
        launch(
            pinwheel_fwd_kernel, (cdiv(rows, _ROWS),), state, out, noise, labels, offset, rows, shape[1], arms, **_named(constants), **streams,
            ROWS=_ROWS, num_warps=4,
        )  # fmt: skip
    return out, noise, labels


def forward(noise: Tensor, labels: Tensor, arms: int, constants: Constants) -> Tensor:
    """Latents [.., 2] of noise [.., 2] and arms, int64 [..]; all are contiguous."""
    out, rows = torch.empty_like(noise), labels.numel()
    if rows:
        launch(pinwheel_fwd_kernel_push, (cdiv(rows, _ROWS),), noise, labels, out, rows, arms, **_named(constants), ROWS=_ROWS, num_warps=4)
    return out


def backward(upstream: Tensor, noise: Tensor, labels: Tensor, arms: int, constants: Constants) -> Tensor:
    """Gradient of the noise [.., 2] from that of the latents; arguments as in `forward`."""
    out, rows = torch.empty_like(noise), labels.numel()
    if rows:
        launch(pinwheel_bwd_kernel, (cdiv(rows, _ROWS),), upstream, noise, labels, out, rows, arms, **_named(constants), ROWS=_ROWS, num_warps=4)
    return out


def _named(constants: Constants) -> dict[str, float]:
    # In float64, as the specification: an argument of a launch would be rounded to float32.
    return dict(zip(("RADIAL", "TANGENTIAL", "RATE", "CORE", "OUTER"), constants, strict=True))


def compilations() -> Iterator[Compilation]:
    """The default pinwheel."""
    state, noise = torch.empty(2, dtype=torch.int64, device="meta"), torch.empty(4, 128, 2, device="meta")
    labels, constants = torch.empty(4, 128, dtype=torch.int64, device="meta"), (0.15, 0.005, 0.25, 1.6, 2.5)
    yield from recorded("10 arms", sample, state, 0, (3, 128), 10, constants)
    yield from recorded("10 arms with parts", sample, state, 0, (1, 512), 10, constants, True)
    yield from recorded("10 arms", forward, noise, labels, 10, constants)
    yield from recorded("10 arms", backward, noise, noise, labels, 10, constants)


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


@triton.jit
def _turned(along, across, arm, arms, RATE: tl.constexpr, CORE: tl.constexpr, OUTER: tl.constexpr):
    """Cosine and sine of the angle by which points in the frame of their arm are turned, with their radius and `exp` of both windings.

    The winding is that of the first coordinate in the core, and beyond that of the radius.
    """
    radius = tl.sqrt(along * along + across * across)
    inner = tl.exp(along * tl.minimum(_exact(CORE) / radius, _exact(1.0)))
    outer = tl.exp(tl.minimum(tl.maximum(radius, _exact(CORE)), _exact(OUTER)))
    of_arm = 6.283185307179586 * arm.to(tl.float32) / arms.to(tl.float32)  # rounded, as the specification's
    c, s = _cosine_and_sine(_exact(RATE) * (inner + outer - tl.exp(_exact(CORE))) + of_arm.to(tl.float64))
    return c, s, radius, inner, outer


@triton.jit
def _point(noise, row, there, RADIAL: tl.constexpr, TANGENTIAL: tl.constexpr):
    """Points of given noise in the frame of their arm."""
    first, second = tl.load(noise + 2 * row, there, 0.0), tl.load(noise + 2 * row + 1, there, 0.0)
    return _exact(1.0) + _exact(RADIAL) * first.to(tl.float64), _exact(TANGENTIAL) * second.to(tl.float64)


@triton.jit(do_not_specialize=["offset", "rows", "rows_per_sample", "arms"])
def pinwheel_fwd_kernel(
    state,  # [2]
    out, noise,  # [S n, 2]
    labels,  # [S n]
    offset, rows, rows_per_sample, arms,
    RADIAL: tl.constexpr, TANGENTIAL: tl.constexpr, RATE: tl.constexpr, CORE: tl.constexpr, OUTER: tl.constexpr,
    LABELS: tl.constexpr, NOISE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    index, seed, mask = draw_index(state, offset, row, rows_per_sample), tl.load(state), row < rows
    word, _, _, _ = philox(index, 0, LABELS, seed)
    arm = tl.minimum((to_uniform(word) * arms).to(tl.int32), arms - 1)
    a, b, _, _ = philox(index, 0, NOISE, seed)
    first, second = box_muller(to_uniform(a), to_uniform(b))
    if noise is not None:
        tl.store(noise + 2 * row, first, mask)
        tl.store(noise + 2 * row + 1, second, mask)
        tl.store(labels + row, arm.to(tl.int64), mask)
    along = _exact(1.0) + _exact(RADIAL) * first.to(tl.float64)
    across = _exact(TANGENTIAL) * second.to(tl.float64)
    c, s, _, _, _ = _turned(along, across, arm, arms, RATE, CORE, OUTER)
    tl.store(out + 2 * row, (along * c + across * s).to(tl.float32), mask)
    tl.store(out + 2 * row + 1, (across * c - along * s).to(tl.float32), mask)


@triton.jit(do_not_specialize=["rows", "arms"])
def pinwheel_fwd_kernel_push(
    noise,  # [R, 2]
    labels,  # [R]
    out,  # [R, 2]
    rows, arms,
    RADIAL: tl.constexpr, TANGENTIAL: tl.constexpr, RATE: tl.constexpr, CORE: tl.constexpr, OUTER: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    along, across = _point(noise, row, there, RADIAL, TANGENTIAL)
    c, s, _, _, _ = _turned(along, across, tl.load(labels + row, there, 0), arms, RATE, CORE, OUTER)
    tl.store(out + 2 * row, (along * c + across * s).to(tl.float32), there)
    tl.store(out + 2 * row + 1, (across * c - along * s).to(tl.float32), there)


@triton.jit(do_not_specialize=["rows", "arms"])
def pinwheel_bwd_kernel(
    upstream, noise,  # [R, 2]
    labels,  # [R]
    out,  # [R, 2]
    rows, arms,
    RADIAL: tl.constexpr, TANGENTIAL: tl.constexpr, RATE: tl.constexpr, CORE: tl.constexpr, OUTER: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The turn of a point moves it across its radius; its own derivative is that of the winding."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    along, across = _point(noise, row, there, RADIAL, TANGENTIAL)
    c, s, radius, inner, outer = _turned(along, across, tl.load(labels + row, there, 0), arms, RATE, CORE, OUTER)
    up_0 = tl.load(upstream + 2 * row, there, 0.0).to(tl.float64)
    up_1 = tl.load(upstream + 2 * row + 1, there, 0.0).to(tl.float64)
    to_turn = _exact(RATE) * (up_0 * (across * c - along * s) - up_1 * (along * c + across * s))
    cubed, beyond = radius * radius * radius, radius > _exact(CORE)
    slope_along = tl.where(beyond, inner * _exact(CORE) * across * across / cubed, inner)
    slope_across = tl.where(beyond, -inner * _exact(CORE) * along * across / cubed, _exact(0.0))
    straight = tl.where(beyond & (radius < _exact(OUTER)), outer / radius, _exact(0.0))
    to_along = up_0 * c - up_1 * s + to_turn * (slope_along + straight * along)
    to_across = up_0 * s + up_1 * c + to_turn * (slope_across + straight * across)
    tl.store(out + 2 * row, (_exact(RADIAL) * to_along).to(tl.float32), there)
    tl.store(out + 2 * row + 1, (_exact(TANGENTIAL) * to_across).to(tl.float32), there)
