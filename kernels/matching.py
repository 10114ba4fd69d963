"""Mean matching of the released code along a deterministic chain in Triton, whose states are the means of its steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.common import Compilation, cdiv, launch, next_power_of_2, recorded


def forward(trajectory: Tensor, t: Tensor, weights: Tensor) -> Tensor:
    """Huber errors [N], averaged over dimensions, between the noising process's mean and the chain's.

    Args:
        trajectory: States [T + 1, N, D], `y_T` first.
        t: 0-based timesteps, int64 [N].
        weights: Weights of `z` and of `y_t` in the noising process's mean, [T, 2].
    """
    states, rows, width = trajectory.shape
    out = trajectory.new_empty(rows)
    if rows:
        options = _options(width)
        launch(matching_fwd_kernel, (cdiv(rows, options["ROWS"]),), trajectory, t, weights, out, states - 1, rows, D=width, **options)
    return out


def backward(upstream: Tensor, trajectory: Tensor, t: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the trajectory [T + 1, N, D] from that of the errors [N]."""
    states, rows, width = trajectory.shape
    out = torch.empty_like(trajectory)
    if rows:
        options = _options(width)
        call = upstream, trajectory, t, weights, out, states - 1, rows
        launch(matching_bwd_kernel, (cdiv(rows, options["ROWS"]), states), *call, D=width, **options)
    return out


def compilations() -> Iterator[Compilation]:
    """The released code's chain."""
    trajectory, t, weights = (torch.empty(shape, device="meta") for shape in ((41, 128, 2), 128, (40, 2)))
    yield from recorded("D 2", forward, trajectory, t.long(), weights)
    yield from recorded("D 2", backward, t, trajectory, t.long(), weights)


def _options(width: int) -> dict[str, int]:
    padded = next_power_of_2(width)
    return {"ROWS": max(1, 256 // padded), "PADDED": padded, "num_warps": 4}


@triton.jit
def _difference(trajectory, t, weights, row, present, steps, rows, D: tl.constexpr, PADDED: tl.constexpr):
    """Target less prediction [ROWS, D] of each row, its step and the weights of `z` and `y_t` in the target."""
    columns = tl.arange(0, PADDED)[None, :]
    inside = present[:, None] & (columns < D)
    step = tl.load(t + row, present, 0)
    weight_z, weight_y = tl.load(weights + 2 * step)[:, None], tl.load(weights + 2 * step + 1)[:, None]
    state = trajectory + ((steps - 1 - step) * rows + row)[:, None] * D + columns
    z = tl.load(trajectory + (tl.cast(steps, tl.int64) * rows + row)[:, None] * D + columns, inside, 0.0)
    target = weight_z * z + weight_y * tl.load(state, inside, 0.0)
    return target - tl.load(state + tl.cast(rows, tl.int64) * D, inside, 0.0), step, weight_z, weight_y, inside


@triton.jit(do_not_specialize=["steps", "rows"])
def matching_fwd_kernel(trajectory, t, weights, out, steps, rows, D: tl.constexpr, ROWS: tl.constexpr, PADDED: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    error, _, _, _, inside = _difference(trajectory, t, weights, row, row < rows, steps, rows, D, PADDED)
    size = tl.abs(error)
    lost = tl.where(size < 1, 0.5 * error * error, size - 0.5)
    tl.store(out + row, tl.sum(tl.where(inside, lost, 0.0), axis=1) / D, row < rows)


@triton.jit(do_not_specialize=["steps", "rows"])
def matching_bwd_kernel(upstream, trajectory, t, weights, out, steps, rows, D: tl.constexpr, ROWS: tl.constexpr, PADDED: tl.constexpr):
    """The gradient of one state, which may be `z`, the state at a row's step, and the one after it."""
    row, here = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.program_id(1).to(tl.int64)
    error, step, weight_z, weight_y, inside = _difference(trajectory, t, weights, row, row < rows, steps, rows, D, PADDED)
    slope = tl.where(tl.abs(error) < 1, error, tl.where(error > 0, 1.0, tl.where(error < 0, -1.0, error)))
    factor = tl.where(here == steps, weight_z, 0.0)
    factor += tl.where((here == steps - 1 - step)[:, None], weight_y, 0.0) - tl.where((here == steps - step)[:, None], 1.0, 0.0)
    gradient = tl.load(upstream + row, row < rows, 0.0)[:, None] * slope * factor / D
    tl.store(out + (here * rows + row)[:, None] * D + tl.arange(0, PADDED)[None, :], gradient, inside)
