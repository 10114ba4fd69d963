"""The denoising chain in Triton: one launch runs all steps of every tile of rows, and the backward pass recomputes them."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast._operands import ChainOperands
from ddvi_fast.kernels.chain_backward import backward
from ddvi_fast.kernels.chain_options import PRODUCTS, Sizes, forward_options, unusable_denoiser, variants
from ddvi_fast.kernels.common import Compilation, architecture, launch, recorded, tile_rows
from ddvi_fast.kernels.network import bias_relu, hidden_product, load_matrix, narrow, run_forward, widen
from ddvi_fast.kernels.rng import draw_index, step_noise

__all__ = ["backward", "compilations", "forward", "unsupported"]


@triton.jit
def _network_on_chip(
    x1, w0, w1, w2, last, bias, H: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr
):
    """The output [BN, D_PAD] without its bias, from the first activation [BN, H] and hidden matrices [H, H] that stay on chip."""
    start = tl.zeros((x1.shape[0], H), tl.float32)
    x2 = bias_relu(hidden_product(x1, tl.trans(w0), start, PRODUCT), bias + H, H).to(x1.dtype)
    x3 = bias_relu(hidden_product(x2, tl.trans(w1), start, PRODUCT), bias + 2 * H, H)
    if RESIDUAL:
        x3 += x1.to(tl.float32)
    x4 = bias_relu(hidden_product(x3.to(x1.dtype), tl.trans(w2), start, PRODUCT), bias + 3 * H, H)
    return narrow(x4, last, 1, H, D, D_PAD, H)


@triton.jit(do_not_specialize=["offset", "groups", "rows", "rows_per_sample", "steps", "zero"])
def chain_fwd_kernel(
    y_T,  # [G, R, D]
    context,  # [G, R, C] or None
    first, hidden, last, last_bias, time_table,  # [G, H, D + C], [G, 3, H, H], [G, D, H], [G, D], [G, T, 4, H]
    coefficients,  # [T, 5]
    noise,  # [T, G, R, D] or None
    order, starts,  # [R] and [G + 1], or None; with an index the arrays of rows have no axis G
    state,  # [2] or None
    z,  # [G, R, D]
    path,  # [G, R] or None
    trajectory,  # [T + 1, G, R, D] or None
    scratch,  # [G, tiles, 2, BN, H] or None
    offset, groups, rows, rows_per_sample, steps, zero,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BN: tl.constexpr,
    BH: tl.constexpr, BK: tl.constexpr, RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Run all steps of at most BN rows of a network. Without `scratch` the hidden matrices are loaded once and stay on chip.

    `zero` is 0; it keeps the loads of the small layers inside the loop, because moved out of it they would fill the registers.
    """
    lane, tile = tl.program_id(1).to(tl.int64), tl.program_id(0)
    group, _, _, present, row = tile_rows(order, starts, lane, groups, rows, 0, rows, tile, BN)
    if starts is not None:  # noqa: SIM102 - decided at compile time, unlike the next
        if tl.max(present.to(tl.int32), axis=0) == 0:
            return
    columns = tl.arange(0, D_PAD)
    inside = present[:, None] & (columns < D)[None, :]
    place = row[:, None] * D + columns[None, :]
    step_stride = tl.num_programs(1).to(tl.int64) * rows * D
    first += group * H * (D + C)
    hidden += group * 3 * H * H
    last += group * D * H
    last_bias += group * D
    time_table += group * steps * 4 * H

    y = tl.load(y_T + place, inside, 0.0)
    c = y
    if trajectory is not None:
        tl.store(trajectory + place, y, inside)
    if C > 0:
        across = tl.arange(0, C_PAD)
        c = tl.load(context + row[:, None] * C + across[None, :], present[:, None] & (across < C)[None, :], 0.0)
    index = row
    log_ratio = tl.zeros((BN,), tl.float32)
    if state is not None:
        index = draw_index(state, offset, row, rows_per_sample)
    if scratch is None:
        w0, w1, w2 = load_matrix(hidden, H), load_matrix(hidden + H * H, H), load_matrix(hidden + 2 * H * H, H)
    else:
        mine = scratch + (lane * tl.num_programs(0) + tile) * 2 * BN * H
    for i in range(steps):
        step = steps - 1 - i
        k = coefficients + 5 * step
        here = tl.multiple_of(step * zero, 16)
        if scratch is None:
            x1 = widen(y, first + here, D + C, 1, D, D_PAD, H)
            if C > 0:
                x1 += widen(c, first + D + here, D + C, 1, C, C_PAD, H)
            x1 = bias_relu(x1, time_table + step * 4 * H, H).to(hidden.dtype.element_ty)
            output = _network_on_chip(x1, w0, w1, w2, last + here, time_table + step * 4 * H, H, D, D_PAD, RESIDUAL, PRODUCT)
        else:
            output = run_forward(
                y, c, first, hidden, last, time_table + step * 4 * H, mine, mine + BN * H, None, mine, None, present,
                D, C, D_PAD, C_PAD, H, BH, BK, RESIDUAL, PRODUCT,
            )  # fmt: skip
        output += tl.load(last_bias + columns, columns < D, 0.0)[None, :]
        following = tl.load(k) * y + tl.load(k + 1) * output
        if path is not None:
            deviation, beta = tl.load(k + 2), tl.load(k + 4)
            xi = step_noise(noise, state, index, place, inside, step, step_stride, D_PAD)
            following += deviation * xi
            away = y - tl.load(k + 3) * following
            log_ratio += 0.5 * (tl.sum(xi * xi - away * away / beta, axis=1) + D * (2.0 * tl.log(deviation) - tl.log(beta)))
        y = following
        if trajectory is not None:
            tl.store(trajectory + (i + 1) * step_stride + place, y, inside)
    tl.store(z + place, y, inside)
    if path is not None:
        tl.store(path + row, log_ratio, present)


def unsupported(precision: str = "float32", **tensors: Tensor | None) -> str | None:
    """The reason why the kernels cannot run this chain, or None if they can; `tensors` are its float32 operands by name."""
    return unusable_denoiser(chain_fwd_kernel, "chain", precision, **tensors)


def forward(operands: ChainOperands, keep_trajectory: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run the chain from `y_T` down to `z`.

    Returns:
        `z` [.., R, D]; the path log-ratio [.., R] in nats, None for a deterministic chain; and, where it is kept, the trajectory
        [T + 1, .., R, D], start first.
    """
    y_T, context, first, hidden, last, last_bias, time_table, coefficients, noise, order, starts, _, offset, each, residual, precision = operands
    sizes, state = Sizes.of(y_T, context, first, coefficients, starts), operands.drawn_from
    z = sizes.empty(y_T, *y_T.shape)
    path = None if noise is None and state is None else sizes.empty(y_T, *y_T.shape[:-1])
    trajectory = sizes.empty(y_T, sizes.steps + 1, *y_T.shape) if keep_trajectory else None
    if z.numel() == 0:
        return z, path, trajectory
    options = forward_options(architecture(y_T.device), sizes.hidden, sizes.latent, precision)
    grid = (sizes.tiles(sizes.rows, options["BN"]), sizes.lanes)
    keep = options.pop("KEEP")
    hidden = hidden.to(PRODUCTS[precision][0])
    scratch = None if keep else hidden.new_empty((sizes.lanes, grid[0], 2, options["BN"], sizes.hidden))
    launch(
        chain_fwd_kernel, grid,
        y_T, context, first, hidden, last, last_bias, time_table, coefficients, noise, order, starts, state, z, path, trajectory, scratch,
        offset, sizes.groups, sizes.rows, max(1, each), sizes.steps, 0, **sizes.constexprs(residual, precision, dots=not keep), **options,
    )  # fmt: skip
    return z, path, trajectory


def compilations() -> Iterator[Compilation]:
    """Representative variants for ahead-of-time compilation: drawn noise, with a trajectory."""
    for name, sizes, precision in variants():
        *tensors, state = sizes.meta_tensors()
        operands = ChainOperands(*tensors, None, *sizes.meta_index(), state, 0, sizes.rows, True, precision)
        yield from recorded(name, forward, operands, True)
