"""Forward kernel of the denoising chain in Triton: all steps of a tile of rows, with activations and, where they fit, weights on chip.

For a backward pass it writes the states and the ReLUs' signs, from which kernels/chain_backward.py goes back without any activation.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast._operands import ChainOperands
from ddvi_fast.kernels.chain_options import Prepared, Sizes, chain_options
from ddvi_fast.kernels.common import architecture, interpreted, launch, tile_rows
from ddvi_fast.kernels.layers import (
    UP,
    bias_rows,
    end_weights,
    kept_matrices,
)
from ddvi_fast.kernels.network import run_forward
from ddvi_fast.kernels.rng import draw_index, row_noise


@triton.jit(do_not_specialize=["offset", "groups", "rows", "rows_per_sample", "steps", "step_begin", "steps_here"])
def chain_fwd_kernel(
    start,  # [G, R, D]
    context,  # [G, R, C] or None
    first, matrices, last, last_bias, table,  # [G, H, D + C], [G, planes, 3, H, H], [G, D, H], [G, D], [G, T, 16, H]
    coefficients,  # [T, 5]
    noise,  # [T, G, R, D] or None
    order, starts,  # [R] and [G + 1], or None; with an index the arrays of rows have no axis G
    state,  # [2] or None
    z,  # [G, R, D] or None
    path,  # [G, R] or None
    trajectory,  # [T + 1, G, R, D] or None
    signs,  # [steps_here, G, R, 4, H / 32] or None, in the order of the trajectory
    outputs,  # [steps_here, G, R, D] or None, in the order of the trajectory
    offset, groups, rows, rows_per_sample, steps, step_begin, steps_here,
    D: tl.constexpr, C: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, H: tl.constexpr, B: tl.constexpr, BN: tl.constexpr,
    NOISY: tl.constexpr, RESIDUAL: tl.constexpr, EXACT: tl.constexpr, KEEP: tl.constexpr, HALVES: tl.constexpr,
    TENSOR_MEMORY: tl.constexpr,
):  # fmt: skip
    """Run the `steps_here` steps from `step_begin` on, downwards from the states `start`, for at most BN rows of a network.

    States are tiles of P columns; Q = 0 says that contexts stand in theirs, after the D of the state.
    """
    LOW: tl.constexpr = matrices.dtype.element_ty
    JOINED: tl.constexpr = C > 0 and Q == 0
    lane, tile = tl.program_id(1).to(tl.int64), tl.program_id(0)
    group, _, _, present, row = tile_rows(order, starts, lane, groups, rows, 0, rows, tile, BN)
    if starts is not None:  # noqa: SIM102 - decided at compile time, unlike the next
        if tl.max(present.to(tl.int32), axis=0) == 0:
            return
    columns = tl.arange(0, P)[None, :]
    inside = present[:, None] & (columns < D)
    place = row[:, None] * D + columns
    row_stride = tl.num_programs(1).to(tl.int64) * rows
    first += group * H * (D + C)
    last += group * D * H
    table += group * steps * 16 * H
    kept = kept_matrices(matrices + group * (6 if EXACT else 3) * H * H, H, EXACT, KEEP)
    first_weights = end_weights(first, D + C, 1, D + C if JOINED else D, P, H, B, LOW, EXACT, False)
    last_weights = end_weights(last, 1, H, D, P, H, B, LOW, EXACT, True)
    shift = tl.load(last_bias + group * D + columns, columns < D, 0.0)

    y = tl.load(start + place, inside, 0.0)
    if trajectory is not None:
        tl.store(trajectory + place, y, inside)
    if JOINED:
        y += tl.load(context + row[:, None] * C + (columns - D), present[:, None] & (columns >= D) & (columns < D + C), 0.0)
    c, context_weights = None, None
    if Q > 0:
        across = tl.arange(0, Q)[None, :]
        c = tl.load(context + row[:, None] * C + across, present[:, None] & (across < C), 0.0)
        if EXACT:
            c *= UP
        context_weights = end_weights(first + D, D + C, 1, C, Q, H, B, LOW, EXACT, False)
    ratio, constant = tl.zeros((BN, P), tl.float32), 0.0
    if path is not None:  # the part of the log-ratio that is the same for all rows
        for begin in range(0, steps_here, 128):
            at = begin + tl.arange(0, 128)
            k = coefficients + 5 * (step_begin + at)
            terms = 2.0 * tl.log(tl.load(k + 2, at < steps_here, 1.0)) - tl.log(tl.load(k + 4, at < steps_here, 1.0))
            constant += D * tl.sum(terms, axis=0)
    index = row
    if state is not None:
        index = draw_index(state, offset, row, rows_per_sample)
    for i in tl.range(steps_here, disable_licm=not KEEP):
        if not TENSOR_MEMORY or i >= 0:  # always: see `in_tensor_memory`
            step = step_begin + steps_here - 1 - i
            k = coefficients + 5 * step
            weight_state, weight_output = tl.load(k), tl.load(k + 1)
            biases = bias_rows(table + step * 16 * H, H, B)
            entry = i * row_stride + row
            to_signs = None
            if signs is not None:
                to_signs = signs + entry[:, None] * (4 * (H // 32))
            output = run_forward(
                y, c, first_weights, context_weights, kept, last_weights, biases, to_signs, present,
                P, Q, H, B, BN, LOW, RESIDUAL, EXACT, KEEP, HALVES,
            )  # fmt: skip
            output += shift
            following = weight_state * y + weight_output * output
            if outputs is not None:
                tl.store(outputs + entry[:, None] * D + columns, output, inside)
            if NOISY:
                deviation = tl.load(k + 2)
                if noise is not None:
                    xi = tl.load(noise + step * row_stride * D + place, inside, 0.0)
                else:
                    xi = tl.where(inside, row_noise(index, step, tl.load(state), D, P), 0.0)
                following += deviation * xi
                if path is not None:
                    away = y - tl.load(k + 3) * following
                    ratio += xi * xi - away * away * (1.0 / tl.load(k + 4))
            if JOINED:
                y = tl.where(columns < D, following, y)
            else:
                y = following
            if trajectory is not None:
                tl.store(trajectory + (i + 1) * row_stride * D + place, y, inside)
    if z is not None:
        tl.store(z + place, y, inside)
    if path is not None:
        tl.store(path + row, 0.5 * (tl.sum(tl.where(columns < D, ratio, 0.0), axis=1) + constant), present)


def run(
    operands: ChainOperands,
    sizes: Sizes,
    weights: Prepared,
    start: Tensor,
    z: Tensor | None,
    path: Tensor | None,
    trajectory: Tensor | None,
    signs: Tensor | None,
    outputs: Tensor | None,
    step_begin: int,
    steps_here: int,
) -> None:
    """Run some steps of the chain, downwards from the states `start`."""
    y_T, context, first, _, last, last_bias, _, coefficients, noise, order, starts, _, offset, each, residual, _ = operands
    arch = architecture(y_T.device)
    options = chain_options(arch, sizes, weights.two)
    launch(
        chain_fwd_kernel, (sizes.tiles(sizes.rows, options["BN"]), sizes.lanes),
        start, context, first, weights.matrices, last, last_bias, weights.table, coefficients, noise, order, starts, operands.drawn_from,
        z, path, trajectory, signs, outputs,
        offset, sizes.groups, sizes.rows, max(1, each), sizes.steps, step_begin, steps_here,
        NOISY=operands.noisy, RESIDUAL=residual, EXACT=weights.two, HALVES=arch >= 90 and not interpreted(chain_fwd_kernel), **options,
    )  # fmt: skip
