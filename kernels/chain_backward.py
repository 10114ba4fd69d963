"""Backward pass of the denoising chain in Triton, on the states and the ReLUs' signs that the forward pass kept.

One kernel carries the state's gradient from `z` up to the start, step after step, without any activation, and writes the gradient of the
network's output at each step. From these, rows and steps are independent, and kernels/weight_gradient.py sums the weight gradients.

A chain whose signs would take too much memory keeps its states alone. Its signs are made again by the forward kernel, for some steps at a
time, each time from the state above them: the same code on the same numbers gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast import _operands
from ddvi_fast._operands import ChainOperands, Differentiable
from ddvi_fast.kernels.chain_forward import run
from ddvi_fast.kernels.chain_options import Prepared, Sizes, chain_options, prepared, variants
from ddvi_fast.kernels.common import Compilation, architecture, cdiv, launch, next_power_of_2, recorded, splits_of, tile_rows
from ddvi_fast.kernels.layers import (
    DOWN,
    backward_layer,
    end_weights,
    kept_matrices,
    load_signs,
    masked,
    narrow,
    zeros,
)
from ddvi_fast.kernels.network import through_last, unscaled
from ddvi_fast.kernels.rng import draw_index, row_noise
from ddvi_fast.kernels.weight_gradient import WeightSums


@triton.jit(do_not_specialize=["groups", "rows", "steps", "step_begin", "steps_here"])
def chain_bwd_kernel(
    first, matrices, last,  # [G, H, D + C], [G, planes, 3, H, H], [G, D, H]
    coefficients,  # [T, 5]
    order, starts,  # [R] and [G + 1], or None; with an index the arrays of rows have no axis G
    trajectory,  # [T + 1, G, R, D]
    signs,  # [steps_here, G, R, 4, H / 32], in the order of the trajectory
    d_path,  # [G, R] or None
    d_trajectory,  # [T + 1, G, R, D] or None
    carried,  # [G, R, D]
    d_context,  # [G, R, C] or None
    d_outputs,  # [T, G, R, D], in the order of the trajectory
    d_states,  # [T, G, R, D] or None, in the order of the trajectory
    groups, rows, steps, step_begin, steps_here,
    D: tl.constexpr, C: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, H: tl.constexpr, B: tl.constexpr, BN: tl.constexpr,
    RESIDUAL: tl.constexpr, EXACT: tl.constexpr, KEEP: tl.constexpr, TENSOR_MEMORY: tl.constexpr,
):  # fmt: skip
    """Take gradients through the `steps_here` steps from `step_begin` on, for at most BN rows of a network.

    `carried` holds the gradient of the state below these steps and gets that of the state above them; `d_context` is added to. `d_outputs`
    gets the gradient of the network's output at each step, `d_states` that of the state below the step.
    """
    LOW: tl.constexpr = matrices.dtype.element_ty
    BLOCKS: tl.constexpr = H // B
    JOINED: tl.constexpr = C > 0 and Q == 0
    lane, lanes, tile = tl.program_id(1).to(tl.int64), tl.num_programs(1), tl.program_id(0)
    group, _, _, present, row = tile_rows(order, starts, lane, groups, rows, 0, rows, tile, BN)
    if starts is not None:  # noqa: SIM102 - decided at compile time, unlike the next
        if tl.max(present.to(tl.int32), axis=0) == 0:
            return
    columns = tl.arange(0, P)[None, :]
    inside = present[:, None] & (columns < D)
    place = row[:, None] * D + columns
    row_stride = lanes.to(tl.int64) * rows
    first += group * H * (D + C)
    kept = kept_matrices(matrices + group * (6 if EXACT else 3) * H * H, H, EXACT, KEEP)
    last_weights = end_weights(last + group * D * H, 1, H, D, P, H, B, LOW, EXACT, False)
    first_weights = end_weights(first, D + C, 1, D + C if JOINED else D, P, H, B, LOW, EXACT, True)

    u = tl.load(carried + place, inside, 0.0)
    following = tl.load(trajectory + (steps - step_begin) * row_stride * D + place, inside, 0.0)
    if d_path is not None:
        p = tl.load(d_path + row, present, 0.0)[:, None]
    if d_context is not None:
        if JOINED:  # the context's gradient stands in the columns after those of the state
            in_context = present[:, None] & (columns >= D) & (columns < D + C)
            context_place = row[:, None] * C + (columns - D)
            u += tl.load(d_context + context_place, in_context, 0.0)
        else:
            across = tl.arange(0, Q)[None, :]
            in_context = present[:, None] & (across < C)
            context_place = row[:, None] * C + across
            context_weights = end_weights(first + D, D + C, 1, C, Q, H, B, LOW, EXACT, True)
            d_c = tl.load(d_context + context_place, in_context, 0.0)
    for i in tl.range(steps_here, disable_licm=not KEEP):
        if not TENSOR_MEMORY or i >= 0:  # always: see `in_tensor_memory`
            step = step_begin + i
            k = coefficients + 5 * step
            entry = (steps_here - 1 - i) * row_stride + row
            from_signs = signs + entry[:, None] * (4 * (H // 32))
            s1, s2 = load_signs(from_signs, present, 0, H, B), load_signs(from_signs, present, 1, H, B)
            s3, s4 = load_signs(from_signs, present, 2, H, B), load_signs(from_signs, present, 3, H, B)
            if d_trajectory is not None:
                u += tl.load(d_trajectory + (steps - step) * row_stride * D + place, inside, 0.0)
            y = tl.load(trajectory + (steps - step - 1) * row_stride * D + place, inside, 0.0)

            # With e = y - a y', a step's log-ratio is (|xi|^2 + 2 D log s - |e|^2 / beta - D log beta) / 2.
            weight_state, weight_output = tl.load(k), tl.load(k + 1)
            if d_path is not None:
                scale, inverse_beta = tl.load(k + 3), 1.0 / tl.load(k + 4)
                away = (y - scale * following) * inverse_beta
                u += p * scale * away
                direct = weight_state * u - p * away
            else:
                direct = weight_state * u
            d_output = weight_output * u
            if JOINED:
                direct = tl.where(columns < D, direct, u)
                d_output = tl.where(columns < D, d_output, 0.0)
            if d_states is not None:
                tl.store(d_states + (steps - step - 1) * row_stride * D + place, u, inside)
            tl.store(d_outputs + (steps - step - 1) * row_stride * D + place, d_output, inside)

            totals, factor, exponent, more = through_last(d_output, last_weights, P, BLOCKS, B, BN, LOW, EXACT)
            d = masked(totals, s4, factor, BLOCKS, BN, B, LOW, EXACT)
            of_summed = backward_layer(d, kept, zeros(BN, H, B), 2, H, B, EXACT, KEEP)
            d = masked(of_summed, s3, DOWN, BLOCKS, BN, B, LOW, EXACT)
            d = masked(backward_layer(d, kept, zeros(BN, H, B), 1, H, B, EXACT, KEEP), s2, DOWN, BLOCKS, BN, B, LOW, EXACT)
            of_first = of_summed if RESIDUAL else zeros(BN, H, B)
            d = masked(backward_layer(d, kept, of_first, 0, H, B, EXACT, KEEP), s1, DOWN, BLOCKS, BN, B, LOW, EXACT)
            d_y = unscaled(narrow(d, first_weights, BN, P, BLOCKS, EXACT), exponent, more, EXACT)
            if d_context is not None and Q > 0:
                d_c += unscaled(narrow(d, context_weights, BN, Q, BLOCKS, EXACT), exponent, more, EXACT)
            u = direct + d_y
            following = y
    if d_trajectory is not None:  # noqa: SIM102 - decided at compile time, unlike the next
        if step_begin + steps_here == steps:
            u += tl.load(d_trajectory + place, inside, 0.0)
    tl.store(carried + place, u, inside)
    if d_context is not None:
        tl.store(d_context + context_place, u if JOINED else d_c, in_context)


@triton.jit(do_not_specialize=["offset", "groups", "rows", "rows_per_sample", "steps", "step_begin", "steps_here"])
def chain_bwd_kernel_elements(
    coefficients,  # [T, 5]
    noise,  # [T, rows, D] or None
    order, starts,  # [rows] and [G + 1], or None
    state,  # [2] or None
    trajectory,  # [T + 1, rows, D]
    outputs,  # [steps_here, rows, D] or None, in the order of the trajectory
    d_path,  # [rows] or None
    d_states,  # [T, rows, D], in the order of the trajectory
    d_noise,  # [T, rows, D] or None
    sums,  # [tiles, steps_here, 5] or None, in the order of the trajectory
    offset, groups, rows, rows_per_sample, steps, step_begin, steps_here,
    D: tl.constexpr, WIDTH: tl.constexpr, BN: tl.constexpr, NOISY: tl.constexpr,
):  # fmt: skip
    """Gradients of the noise and, summed over BN rows, of the coefficients of one of the `steps_here` steps from `step_begin` on."""
    tile, i = tl.program_id(0), tl.program_id(1).to(tl.int64)
    step = step_begin + steps_here - 1 - i
    row = tl.cast(tile, tl.int64) * BN + tl.arange(0, BN)
    present = row < rows
    if starts is not None:  # only rows whose group exists
        present = (row >= tl.load(starts)) & (row < tl.load(starts + groups))
        row = tl.load(order + row, present, 0)
    columns = tl.arange(0, WIDTH)[None, :]
    inside = present[:, None] & (columns < D)
    place = row[:, None] * D + columns
    plane = tl.cast(rows, tl.int64) * D
    at = (steps - 1 - step) * plane + place
    u = tl.load(d_states + at, inside, 0.0)
    if NOISY:
        if noise is not None:
            xi = tl.load(noise + step * plane + place, inside, 0.0)
        else:
            xi = tl.where(inside, row_noise(draw_index(state, offset, row, rows_per_sample), step, tl.load(state), D, WIDTH), 0.0)
    k = coefficients + 5 * step
    if d_path is not None:
        p = tl.load(d_path + row, present, 0.0)[:, None]
    if d_noise is not None:
        d_xi = tl.load(k + 2) * u
        if d_path is not None:
            d_xi += p * xi
        tl.store(d_noise + step * plane + place, d_xi, inside)
    if sums is not None:
        y = tl.load(trajectory + at, inside, 0.0)
        d_deviation = tl.sum(u * xi) if NOISY else 0.0
        d_scale, d_beta = 0.0, 0.0
        if d_path is not None:
            following = tl.load(trajectory + at + plane, inside, 0.0)
            inverse_beta, total_p = 1.0 / tl.load(k + 4), D * tl.sum(p)
            away = (y - tl.load(k + 3) * following) * inverse_beta
            d_deviation += total_p / tl.load(k + 2)
            d_scale = tl.sum(p * away * following)
            d_beta = 0.5 * (tl.sum(p * away * away) - total_p * inverse_beta)
        to_sums = sums + (tile * steps_here + i) * 5
        tl.store(to_sums, tl.sum(u * y))
        tl.store(to_sums + 1, tl.sum(u * tl.load(outputs + i * plane + place, inside, 0.0)))
        tl.store(to_sums + 2, d_deviation)
        tl.store(to_sums + 3, d_scale)
        tl.store(to_sums + 4, d_beta)


def backward(
    operands: ChainOperands,
    trajectory: Tensor,
    signs: Tensor | None,
    outputs: Tensor | None,
    d_z: Tensor | None,
    d_path: Tensor | None,
    d_trajectory: Tensor | None,
    needed: Differentiable,
) -> Differentiable:
    """The gradients that are `needed`, from those of the first three results of `forward` and what it kept.

    Args:
        operands: Those of `forward`.
        trajectory: The states that `forward` kept.
        signs: The signs that it kept, or None: then they are made again in pieces of at most `_operands.SIGN_BYTES`.
        outputs: The network's outputs, needed with `signs` for the gradient of the coefficients.
        d_z: Upstream gradient of `z`, or None.
        d_path: Upstream gradient of the path log-ratio, or None.
        d_trajectory: Upstream gradient of the trajectory, or None.
        needed: Which gradients to compute.
    """
    y_T, context, noise, coefficients = operands.y_T, operands.context, operands.noise, operands.coefficients
    sizes = Sizes.of(y_T, context, operands.first, coefficients, operands.starts)
    weights = prepared(operands.hidden, operands.time_table, operands.precision)
    carried = y_T.new_zeros(y_T.shape) if d_z is None else d_z.clone()
    d_context = context.new_zeros(context.shape) if needed.context and context is not None else None
    d_noise = sizes.empty(noise, *noise.shape) if needed.noise and noise is not None else None
    d_coefficients = coefficients.new_zeros(coefficients.shape) if needed.table else None
    d_outputs = sizes.empty(y_T, sizes.steps, *y_T.shape)
    d_states = torch.empty_like(d_outputs) if d_noise is not None or d_coefficients is not None else None
    sums = WeightSums(operands.weights, sizes, weights, operands.residual, operands.order, operands.starts) if any(needed.weights) else None
    options = chain_options(architecture(y_T.device), sizes, weights.two)
    tiles = sizes.tiles(sizes.rows, options["BN"])
    for begin, count in splits_of(sizes.steps, sizes.steps if signs is not None else _piece_steps(sizes)) if y_T.numel() else ():
        if signs is None:
            signs_here, outputs_here = _made_again(operands, sizes, weights, trajectory, begin, count, needed.table)
        else:
            signs_here, outputs_here = signs, outputs if needed.table else None
        launch(
            chain_bwd_kernel, (tiles, sizes.lanes),
            operands.first, weights.matrices, operands.last, coefficients, operands.order, operands.starts, trajectory, signs_here,
            d_path, d_trajectory, carried, d_context, d_outputs, d_states, sizes.groups, sizes.rows, sizes.steps, begin, count,
            RESIDUAL=operands.residual, EXACT=weights.two, **options,
        )  # fmt: skip
        if d_states is not None:
            found = _elements(operands, sizes, trajectory, outputs_here, d_path, d_states, d_noise, begin, count)
            if d_coefficients is not None:
                d_coefficients[begin : begin + count] = found
        if sums is not None:
            sums.add(trajectory, context, signs_here, d_outputs, begin, count)
    of_weights = (None,) * 5 if sums is None else sums.result()
    return Differentiable(carried, d_context, *of_weights, d_coefficients, d_noise).only(needed)


def _elements(
    operands: ChainOperands,
    sizes: Sizes,
    trajectory: Tensor,
    outputs: Tensor | None,
    d_path: Tensor | None,
    d_states: Tensor,
    d_noise: Tensor | None,
    begin: int,
    count: int,
) -> Tensor | None:
    """Write the gradient of the noise of some steps and return that of their coefficients [count, 5], if there are `outputs`."""
    rows, width = sizes.lanes * sizes.rows, next_power_of_2(sizes.latent)
    tiles = cdiv(rows, _ELEMENTS["BN"])
    sums = None if outputs is None else d_states.new_empty((tiles, count, 5))
    launch(
        chain_bwd_kernel_elements, (tiles, count),
        operands.coefficients, operands.noise, operands.order, operands.starts, operands.drawn_from, trajectory, outputs, d_path, d_states,
        d_noise, sums, operands.offset, sizes.groups, rows, max(1, operands.rows_per_sample), sizes.steps, begin, count,
        D=sizes.latent, WIDTH=width, NOISY=operands.noisy, **_ELEMENTS,
    )  # fmt: skip
    return None if sums is None else sums.sum(0).flip(0)


_ELEMENTS = {"BN": 128, "num_warps": 4}


def _piece_steps(sizes: Sizes) -> int:
    """Number of steps whose signs fit into the bound."""
    return max(1, _operands.SIGN_BYTES // (sizes.lanes * sizes.rows * sizes.hidden // 2))


def _made_again(
    operands: ChainOperands, sizes: Sizes, weights: Prepared, trajectory: Tensor, begin: int, count: int, with_outputs: bool
) -> tuple[Tensor, Tensor | None]:
    """Signs, and outputs if asked for, of some steps."""
    y_T = operands.y_T
    signs = y_T.new_empty((count, *y_T.shape[:-1], 4, sizes.hidden // 32), dtype=torch.int32)
    outputs = sizes.empty(y_T, count, *y_T.shape) if with_outputs else None
    run(operands, sizes, weights, trajectory[sizes.steps - begin - count], None, None, None, signs, outputs, begin, count)
    return signs, outputs


def compilations() -> Iterator[Compilation]:
    """Representative variants for ahead-of-time compilation: gradients of everything but noise and coefficients, or but noise."""
    for variant in variants():
        sizes = variant.sizes
        *tensors, state = sizes.meta_tensors()
        operands = ChainOperands(*tensors, None, *sizes.meta_index(), state, 0, sizes.rows, True, variant.precision)
        new, rows = operands.y_T.new_empty, operands.y_T.shape
        signs = new((sizes.steps, sizes.rows, 4, sizes.hidden // 32), dtype=torch.int32)
        kept = new((sizes.steps + 1, *rows)), signs, new((sizes.steps, *rows))
        needed = Differentiable(*[True] * 7, variant.learned, False)
        call = backward, operands, *kept, None, new(sizes.rows), None, needed
        yield from filter(variant.of_interest, recorded(variant.name, *call, architectures=variant.architectures))
