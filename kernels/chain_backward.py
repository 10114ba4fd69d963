"""Backward pass of the denoising chain in Triton, for a bounded number of steps and rows at a time.

One kernel recomputes the activations of all these steps from the trajectory, each row of each step by itself; a second carries the
state's gradient from `z` up to the start, step after step. Both write each layer's input and the gradient before each ReLU, whose
products summed over rows and steps are the weight gradients (kernels/weight_gradient.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast._operands import ChainOperands, Differentiable
from ddvi_fast.kernels.chain_options import PRODUCTS, Sizes, backward_options, one_step_options, variants
from ddvi_fast.kernels.common import Compilation, architecture, launch, recorded, splits_of, tile_rows
from ddvi_fast.kernels.network import run_backward, run_forward
from ddvi_fast.kernels.rng import draw_index, step_noise
from ddvi_fast.kernels.weight_gradient import WeightGradient


@triton.jit(do_not_specialize=["groups", "rows", "row_begin", "rows_here", "steps", "step_begin"])
def chain_bwd_kernel_recompute(
    context,  # [G, R, C] or None
    first, hidden, last, last_bias, time_table,  # [G, H, D + C], [G, 3, H, H], [G, D, H] or None, [G, D], [G, T, 4, H]
    trajectory,  # [T + 1, G, R, D]
    order, starts,  # [R] and [G + 1], or None; with an index the arrays of rows and entries have no axis G
    low,  # [G, 7, E, H]
    wide,  # [G, 2, E, H]
    outputs,  # [G, E, D] or None
    groups, rows, row_begin, rows_here, steps, step_begin,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BN: tl.constexpr,
    BH: tl.constexpr, BK: tl.constexpr, RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Recompute the activations of BN of the `rows_here` rows from `row_begin` on of a group, at a step from `step_begin` on.

    A group has E entries, one row at one step each. `low` gets the inputs of the three hidden matrices and, last, the third activation,
    `wide` (float32) the fourth; `outputs` gets the network's output, unless it and `last` are None.
    """
    tile, i, lane = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    group, start, within, present, row = tile_rows(order, starts, lane, groups, rows, row_begin, rows_here, tile, BN)
    if starts is not None:  # noqa: SIM102 - decided at compile time, unlike the next
        if tl.max(present.to(tl.int32), axis=0) == 0:
            return
    columns = tl.arange(0, D_PAD)
    inside = present[:, None] & (columns < D)[None, :]
    step = step_begin + i
    lanes, entries = tl.num_programs(2), tl.num_programs(1).to(tl.int64) * rows_here
    y = tl.load(trajectory + ((steps - 1 - step) * lanes * rows + row)[:, None] * D + columns[None, :], inside, 0.0)
    c = y
    if C > 0:
        across = tl.arange(0, C_PAD)
        c = tl.load(context + row[:, None] * C + across[None, :], present[:, None] & (across < C)[None, :], 0.0)
    if last is not None:
        last += group * D * H
    entry = i * rows_here + start
    plane = entries * H
    x1 = low + (lane * 7 * entries + entry) * H
    output = run_forward(
        y, c, first + group * H * (D + C), hidden + group * 3 * H * H, last, time_table + (group * steps + step) * 4 * H,
        x1, x1 + plane, x1 + 6 * plane, x1 + 2 * plane, wide + (lane * 2 * entries + entry) * H, present,
        D, C, D_PAD, C_PAD, H, BH, BK, RESIDUAL, PRODUCT,
    )  # fmt: skip
    if outputs is not None:
        output += tl.load(last_bias + group * D + columns, columns < D, 0.0)[None, :]
        tl.store(outputs + (lane * entries + i * rows_here + within)[:, None] * D + columns[None, :], output, inside)


@triton.jit(do_not_specialize=["offset", "groups", "rows", "rows_per_sample", "steps", "row_begin", "rows_here", "step_begin", "steps_here"])
def chain_bwd_kernel(
    first, hidden, last,  # [G, H, D + C], [G, 3, H, H], [G, D, H]
    coefficients,  # [T, 5]
    noise,  # [T, G, R, D] or None
    order, starts,  # [R] and [G + 1], or None; with an index the arrays of rows, entries and tiles have no axis G
    state,  # [2] or None
    trajectory,  # [T + 1, G, R, D]
    d_path,  # [G, R] or None
    d_trajectory,  # [T + 1, G, R, D] or None
    carried,  # [G, R, D]
    d_context,  # [G, R, C] or None
    d_noise,  # [T, G, R, D] or None
    low,  # [G, 7, E, H]
    wide,  # [G, 2, E, H]
    outputs, d_outputs,  # [G, E, D]; outputs or None
    table_sums,  # [tiles, G, steps_here, 4, H]
    coefficient_sums,  # [tiles, G, steps_here, 5] or None
    offset, groups, rows, rows_per_sample, steps, row_begin, rows_here, step_begin, steps_here,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BN: tl.constexpr,
    BH: tl.constexpr, BK: tl.constexpr, NOISY: tl.constexpr, RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Take gradients through the `steps_here` steps from `step_begin` on, for the `rows_here` rows from `row_begin` on of each group.

    It runs after `chain_bwd_kernel_recompute`. `carried` holds the gradient of the state below these steps and gets that of the state
    above them; `d_context` is added to. Planes 3 to 5 of `low` get the gradients before the ReLUs of the hidden matrices, plane 1 of
    `wide` (float32) that before the first ReLU, `d_outputs` the gradient of the network's output; `table_sums` and `coefficient_sums`
    (None together with `outputs`) get sums over the tile.
    """
    lane, lanes, tile = tl.program_id(1).to(tl.int64), tl.num_programs(1), tl.program_id(0)
    group, start, within, present, row = tile_rows(order, starts, lane, groups, rows, row_begin, rows_here, tile, BN)
    if starts is not None:  # noqa: SIM102 - decided at compile time, unlike the next
        if tl.max(present.to(tl.int32), axis=0) == 0:
            return
    columns = tl.arange(0, D_PAD)
    inside = present[:, None] & (columns < D)[None, :]
    place = row[:, None] * D + columns[None, :]
    step_stride = lanes.to(tl.int64) * rows * D
    entries = tl.cast(steps_here, tl.int64) * rows_here
    plane = entries * H
    first += group * H * (D + C)
    hidden += group * 3 * H * H
    last += group * D * H

    u = tl.load(carried + place, inside, 0.0)
    following = tl.load(trajectory + (steps - step_begin) * step_stride + place, inside, 0.0)
    if d_path is not None:
        p = tl.load(d_path + row, present, 0.0)[:, None]
    if d_context is not None:
        across = tl.arange(0, C_PAD)
        context_place = row[:, None] * C + across[None, :]
        in_context = present[:, None] & (across < C)[None, :]
        d_c = tl.load(d_context + context_place, in_context, 0.0)
    index = row
    if state is not None:
        index = draw_index(state, offset, row, rows_per_sample)
    for i in tl.range(steps_here, disable_licm=True):
        step = step_begin + i
        k = coefficients + 5 * step
        if d_trajectory is not None:
            u += tl.load(d_trajectory + (steps - step) * step_stride + place, inside, 0.0)
        y = tl.load(trajectory + (steps - step - 1) * step_stride + place, inside, 0.0)

        # With e = y - a y', a step's log-ratio is (|xi|^2 + 2 D log s - |e|^2 / beta - D log beta) / 2.
        if d_path is not None:
            scale, inverse_beta = tl.load(k + 3), 1.0 / tl.load(k + 4)
            away = (y - scale * following) * inverse_beta
            u += p * scale * away
            direct = tl.load(k) * u - p * away
        else:
            direct = tl.load(k) * u
        d_output = tl.load(k + 1) * u
        if NOISY:
            deviation = tl.load(k + 2)
            if d_noise is not None or coefficient_sums is not None:
                xi = step_noise(noise, state, index, place, inside, step, step_stride, D_PAD)
            if d_noise is not None:
                d_xi = deviation * u
                if d_path is not None:
                    d_xi += p * xi
                tl.store(d_noise + step * step_stride + place, d_xi, inside)

        entry = tl.cast(i, tl.int64) * rows_here + start
        entry_place = (lane * entries + tl.cast(i, tl.int64) * rows_here + within)[:, None] * D + columns[None, :]
        if coefficient_sums is not None:
            d_deviation = tl.sum(u * xi) if NOISY else 0.0
            d_scale, d_beta = 0.0, 0.0
            if d_path is not None:
                d_deviation += D * tl.sum(p) / deviation
                d_scale = tl.sum(p * away * following)
                d_beta = 0.5 * (tl.sum(p * away * away) - D * tl.sum(p) * inverse_beta)
            coefficient = coefficient_sums + ((tile * lanes + lane) * steps_here + i) * 5
            tl.store(coefficient, tl.sum(u * y))
            tl.store(coefficient + 1, tl.sum(u * tl.load(outputs + entry_place, inside, 0.0)))
            tl.store(coefficient + 2, d_deviation)
            tl.store(coefficient + 3, d_scale)
            tl.store(coefficient + 4, d_beta)
        tl.store(d_outputs + entry_place, d_output, inside)
        x1 = low + (lane * 7 * entries + entry) * H
        x4 = wide + (lane * 2 * entries + entry) * H
        d_y, d_more = run_backward(
            d_output, first, hidden, last, x1, x1 + plane, x1 + 6 * plane, x4, x4 + plane, x1 + 3 * plane, x1 + 4 * plane, x1 + 5 * plane,
            table_sums + ((tile * lanes + lane) * steps_here + i) * 4 * H, present,
            D, C, D_PAD, C_PAD, H, BH, BK, RESIDUAL, d_context is not None, PRODUCT,
        )  # fmt: skip
        if d_context is not None:
            d_c += d_more
        u = direct + d_y
        following = y
    if d_trajectory is not None:  # noqa: SIM102 - decided at compile time, unlike the next
        if step_begin + steps_here == steps:
            u += tl.load(d_trajectory + place, inside, 0.0)
    tl.store(carried + place, u, inside)
    if d_context is not None:
        tl.store(d_context + context_place, d_c, in_context)


def backward(
    operands: ChainOperands, trajectory: Tensor, d_z: Tensor | None, d_path: Tensor | None, d_trajectory: Tensor | None, needed: Differentiable
) -> Differentiable:
    """The gradients that are `needed`, from those of the three results of `forward`.

    Memory beyond the results is `chain_options.SCRATCH_BYTES` and partial sums, whatever T and R are.
    """
    y_T, context, first, hidden, last, last_bias, time_table, coefficients, noise, order, starts, _, offset, each, residual, precision = operands
    sizes, state = Sizes.of(y_T, context, first, coefficients, starts), operands.drawn_from
    carried = y_T.new_zeros(y_T.shape) if d_z is None else d_z.clone()
    d_context = context.new_zeros(context.shape) if needed.context and context is not None else None
    d_noise = sizes.empty(noise, *noise.shape) if needed.noise and noise is not None else None
    d_coefficients = coefficients.new_zeros(coefficients.shape) if needed.table else None
    once, options = one_step_options(architecture(y_T.device), precision), backward_options(precision)
    sums, of_weights = WeightGradient(sizes, precision, y_T, order, starts, options["BN"]), any(needed.weights)
    fixed = sizes.constexprs(residual, precision, dots=True)
    hidden = hidden.to(PRODUCTS[precision][0])
    row_size, step_size = sums.piece_sizes(options["BN"])
    for row_begin, rows_here in splits_of(sizes.rows, row_size):
        tiles = sizes.tiles(rows_here, options["BN"])
        for step_begin, steps_here in splits_of(sizes.steps, step_size):
            written = low, wide, d_outputs, table_sums = sums.scratch(tiles, rows_here, steps_here)
            outputs = torch.empty_like(d_outputs) if needed.table else None
            parts = y_T.new_zeros((tiles, sizes.lanes, steps_here, 5)) if needed.table else None
            launch(
                chain_bwd_kernel_recompute, (sizes.tiles(rows_here, once["BN"]), steps_here, sizes.lanes),
                context, first, hidden, last if needed.table else None, last_bias, time_table, trajectory, order, starts, low, wide,
                outputs, sizes.groups, sizes.rows, row_begin, rows_here, sizes.steps, step_begin, **fixed, **once,
            )  # fmt: skip
            launch(
                chain_bwd_kernel, (tiles, sizes.lanes),
                first, hidden, last, coefficients, noise, order, starts, state, trajectory,
                d_path, d_trajectory, carried, d_context, d_noise, low, wide, outputs, d_outputs, table_sums, parts,
                offset, sizes.groups, sizes.rows, max(1, each), sizes.steps, row_begin, rows_here, step_begin, steps_here,
                NOISY=noise is not None or state is not None, **fixed, **options,
            )  # fmt: skip
            if of_weights:
                sums.add(trajectory, context, row_begin, rows_here, step_begin, steps_here, written)
            if parts is not None:
                d_coefficients[step_begin : step_begin + steps_here] += parts.sum((0, 1))
    weights = sums.result(operands.differentiable.weights) if of_weights else (None,) * 5
    return Differentiable(carried, d_context, *weights, d_coefficients, d_noise).only(needed)


def compilations() -> Iterator[Compilation]:
    """Representative variants for ahead-of-time compilation: gradients of everything but noise."""
    needed = Differentiable(*[True] * 8, False)
    for name, sizes, precision in variants():
        *tensors, state = sizes.meta_tensors()
        operands = ChainOperands(*tensors, None, *sizes.meta_index(), state, 0, sizes.rows, True, precision)
        trajectory, d_path = operands.y_T.new_empty((sizes.steps + 1, *operands.y_T.shape)), operands.y_T.new_empty(sizes.rows)
        yield from recorded(name, backward, operands, trajectory, None, d_path, None, needed)
