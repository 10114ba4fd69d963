"""Backward pass of the sleep term's regression in Triton: each tile of rows is noised and run through the denoiser again, then backwards.

For a bounded number of rows at a time the kernel writes each layer's input and the gradient before each ReLU, from which
kernels/weight_gradient.py sums the weight gradients. Rows of one step are summed by products with the step's indicator, in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast._operands import Differentiable, SleepOperands
from ddvi_fast.kernels.chain_options import PRODUCTS, SCRATCH_BYTES, Sizes, one_step_options, variants
from ddvi_fast.kernels.common import Compilation, architecture, launch, recorded, splits_of, tile_rows
from ddvi_fast.kernels.network import hidden_product, run_backward, run_forward
from ddvi_fast.kernels.sleep_common import constexprs, context_tile, noised, penalty, slope
from ddvi_fast.kernels.weight_gradient import WeightGradient, group_entries


@triton.jit(do_not_specialize=["offset", "groups", "rows", "rows_per_sample", "steps", "row_begin", "rows_here"])
def sleep_bwd_kernel(
    x0,  # [G, R, D]
    t,  # [G, R]
    context,  # [G, R, C] or None
    first, hidden, last, last_bias, time_table,  # [G, H, D + C], [G, 3, H, H], [G, D, H], [G, D], [G, T, 4, H]
    table,  # [T, 5]
    noise,  # [G, R, D] or None
    order, starts,  # [R] and [G + 1], or None; with an index the arrays of rows and entries have no axis G
    state,  # [2] or None
    upstream,  # [G, R]
    d_x0,  # [G, R, D] or None
    d_context,  # [G, R, C] or None
    d_noise, states,  # [G, R, D] or None
    low,  # [G, 7, E, H]
    wide,  # [G, 2, E, H]
    outputs,  # [G, E, D]
    d_rows,  # [G, E, 5] or None
    offset, groups, rows, rows_per_sample, steps, row_begin, rows_here,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr, LOSS: tl.constexpr,
):  # fmt: skip
    """Gradients of BN of the E = rows_here rows from `row_begin` on of each group.

    `low` gets the inputs of the three hidden matrices, the gradients before their ReLUs and the third activation, `wide` (float32) the
    fourth activation and the gradient before the first ReLU; `states` gets the noised latents, `outputs` the gradient of the network's
    output, and `d_rows` what each row adds to the gradient of its row of the table.
    """
    lane, tile = tl.program_id(1).to(tl.int64), tl.program_id(0)
    group, start, within, alive, row = tile_rows(order, starts, lane, groups, rows, row_begin, rows_here, tile, BN)
    if starts is not None:  # noqa: SIM102 - decided at compile time, unlike the next
        if tl.max(alive.to(tl.int32), axis=0) == 0:
            return
    first += group * H * (D + C)
    hidden += group * 3 * H * H
    last += group * D * H
    last_bias += group * D
    begin, plane = tl.cast(start, tl.int64) * H, tl.cast(rows_here, tl.int64) * H
    x1, x4 = low + (lane * 7 * plane + begin), wide + (lane * 2 * plane + begin)
    x2, summed, d2, d3, d4, x3, d1 = x1 + plane, x1 + 2 * plane, x1 + 3 * plane, x1 + 4 * plane, x1 + 5 * plane, x1 + 6 * plane, x4 + plane
    clean, eps, step, signal, deviation, c0, c1, weight, place, inside = noised(
        x0, t, table, noise, state, row, alive, offset, rows_per_sample, steps, D, D_PAD
    )
    bias = time_table + (group * steps + step[:, None]) * 4 * H
    y, target = signal * clean + deviation * eps, c0 * clean + c1 * eps
    if states is not None:
        tl.store(states + place, y, inside)
    c = context_tile(context, y, row, alive, C, C_PAD)
    output = run_forward(
        y, c, first, hidden, last, bias, x1, x2, x3, summed, x4, alive, D, C, D_PAD, C_PAD, H, BH, BK, RESIDUAL, PRODUCT,
    )  # fmt: skip
    output += tl.load(last_bias + tl.arange(0, D_PAD), tl.arange(0, D_PAD) < D, 0.0)[None, :]
    error = tl.where(inside, output - target, 0.0)
    above = tl.load(upstream + row, alive, 0.0)
    d_output = tl.where(inside, (above * weight)[:, None] * slope(error, LOSS), 0.0)
    to_outputs = outputs + (lane * rows_here + within)[:, None] * D + tl.arange(0, D_PAD)[None, :]
    tl.store(to_outputs, d_output, inside)
    if d_rows is not None:
        to_rows = d_rows + (lane * rows_here + within) * 5
        tl.store(to_rows + 4, above * tl.sum(penalty(error, LOSS), axis=1), alive)
    d_y, d_c = run_backward(
        d_output, first, hidden, last, x1, x2, x3, x4, d1, d2, d3, d4, None, alive,
        D, C, D_PAD, C_PAD, H, BH, BK, RESIDUAL, d_context is not None, PRODUCT,
    )  # fmt: skip
    if d_context is not None:
        across = tl.arange(0, C_PAD)
        tl.store(d_context + row[:, None] * C + across[None, :], d_c, alive[:, None] & (across < C)[None, :])
    # Computed again: kept all the way, latents and noise would take registers from the network.
    tl.debug_barrier()
    if starts is not None:
        _, _, within, alive, row = tile_rows(order, starts, lane, groups, rows, row_begin, rows_here, tile, BN)
    clean, eps, step, signal, deviation, c0, c1, weight, place, inside = noised(
        x0, t, table, noise, state, row, alive, offset, rows_per_sample, steps, D, D_PAD
    )
    if starts is not None:
        to_outputs = outputs + (lane * rows_here + within)[:, None] * D + tl.arange(0, D_PAD)[None, :]
        to_rows = d_rows + (lane * rows_here + within) * 5 if d_rows is not None else None
    d_output = tl.load(to_outputs, inside, 0.0)
    if d_x0 is not None:
        tl.store(d_x0 + place, signal * d_y - c0 * d_output, inside)
    if d_noise is not None:
        tl.store(d_noise + place, deviation * d_y - c1 * d_output, inside)
    if d_rows is not None:
        tl.store(to_rows, tl.sum(d_y * clean, axis=1), alive)
        tl.store(to_rows + 1, tl.sum(d_y * eps, axis=1), alive)
        tl.store(to_rows + 2, -tl.sum(d_output * clean, axis=1), alive)
        tl.store(to_rows + 3, -tl.sum(d_output * eps, axis=1), alive)


@triton.jit(do_not_specialize=["rows", "row_begin", "entries", "slice_size", "steps", "group_stride", "layers"])
def sleep_bwd_kernel_step_sums(
    values,  # [G, P, E, WIDTH]
    t,  # [G, R]
    order, starts,  # [R] and [G + 1], or None; with an index `values` and `t` have no axis G
    partial,  # [slices, G, T, layers, WIDTH]
    rows, row_begin, entries, slice_size, steps, group_stride, layers,
    WIDTH: tl.constexpr, BM: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """`partial` += the sum over each step's rows of planes [E, WIDTH] of `values`, whose groups are `group_stride` apart.

    The first program axis counts blocks of columns, then of steps, then planes: plane p goes to layer p of `partial`.
    """
    COLUMN_BLOCKS: tl.constexpr = (WIDTH + BM - 1) // BM
    which, part, group = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    step_blocks = tl.cdiv(steps, BT)
    plane = which // COLUMN_BLOCKS // step_blocks
    at = which // COLUMN_BLOCKS % step_blocks * BT + tl.arange(0, BT)
    across = which % COLUMN_BLOCKS * BM + tl.arange(0, BM)
    lane = group if starts is None else 0
    values += lane * group_stride + tl.cast(plane, tl.int64) * entries * WIDTH
    begin, end, offset, _ = group_entries(starts, group, row_begin, entries, entries, slice_size, part, tl.num_programs(1))
    total = tl.zeros((BT, BM), tl.float32)
    for start in range(begin, end, BK):
        there = start + tl.arange(0, BK) < end
        entry = offset + start + tl.arange(0, BK)
        row = lane * rows + row_begin + entry
        if starts is not None:
            row = tl.load(order + row, there, 0)
        step = tl.load(t + row, there, -1)
        x = tl.load(values + entry[:, None] * WIDTH + across[None, :], there[:, None] & (across < WIDTH)[None, :], 0.0)
        total = hidden_product(tl.where(at[:, None] == step[None, :], 1.0, 0.0).to(x.dtype), x, total, PRODUCT)
    out = partial + (((part * tl.num_programs(2) + group) * steps + at[:, None]) * layers + plane) * WIDTH + across[None, :]
    mask = (at < steps)[:, None] & (across < WIDTH)[None, :]
    tl.store(out, tl.load(out, mask, 0.0) + total, mask)


BY_STEP = {"BT": 64, "BK": 32, "num_warps": 4, "num_stages": 2}


class RowSums:
    """Sums of one backward pass over all rows (gradients of the weights) and over the rows of each step (gradient of the time table)."""

    def __init__(self, sizes: Sizes, precision: str, t: Tensor, like: Tensor, order: Tensor | None, starts: Tensor | None) -> None:
        # To these products it is a chain of one step, without sums of tiles.
        self.products = WeightGradient(replace(sizes, steps=1), precision, like, order, starts, 0)
        self.sizes, self.by_step = sizes, (t, order, starts)
        self.states = like.new_empty((sizes.lanes, sizes.rows, sizes.latent))
        self.table = like.new_zeros((self.products.slices, sizes.groups, sizes.steps, 4, sizes.hidden))

    def add(self, context: Tensor | None, row_begin: int, rows: int, low: Tensor, wide: Tensor, outputs: Tensor) -> None:
        """Add what the kernel wrote for some rows."""
        self.products.add(self.states, context, row_begin, rows, 0, 1, (low, wide, outputs, None))
        width = self.sizes.hidden
        sum_by_step(low[:, 3:6], *self.by_step, self.table[..., 1:, :], self.sizes, row_begin, rows, width, self.products.product)
        sum_by_step(wide[:, 1:], *self.by_step, self.table, self.sizes, row_begin, rows, width, "tf32x3")

    def result(self, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gradients of first, hidden, last, last_bias and time_table, in the shapes of these five, `like`."""
        self.products.table = self.table.sum(0)
        return self.products.result(like)


def sum_by_step(
    values: Tensor,
    t: Tensor,
    order: Tensor | None,
    starts: Tensor | None,
    partial: Tensor,
    sizes: Sizes,
    row_begin: int,
    rows: int,
    width: int,
    product: str,
) -> None:
    """Add planes `values` [G, P, E, W], or with an index [1, P, E, W], to the first P layers of `partial` [slices, G, T, layers, W].

    Both may be parts of wider tensors.
    """
    slices, steps = partial.shape[0], sizes.steps
    columns = min(64, max(16, triton.next_power_of_2(width)))
    grid = (triton.cdiv(width, columns) * triton.cdiv(steps, BY_STEP["BT"]) * values.shape[1], slices, sizes.groups)
    places = (sizes.rows, row_begin, rows, triton.cdiv(rows, slices), steps, values.stride(0), partial.stride(2) // width)
    launch(sleep_bwd_kernel_step_sums, grid, values, t, order, starts, partial, *places, WIDTH=width, BM=columns, PRODUCT=product, **BY_STEP)


def piece_rows(sizes: Sizes, low_type: torch.dtype, tile: int) -> int:
    """Number of rows of each group, a multiple of the tile, whose planes fit into `SCRATCH_BYTES`."""
    row = sizes.lanes * sizes.hidden * (7 * low_type.itemsize + 8)
    return max(tile, SCRATCH_BYTES // row // tile * tile)


def backward(operands: SleepOperands, upstream: Tensor, needed: Differentiable) -> Differentiable:
    """The gradients that are `needed` under `upstream` [.., R], the same bits every time.

    Memory beyond the results is `chain_options.SCRATCH_BYTES`, R (D + 5) floats, and partial sums.
    """
    x0, t, context, first, hidden, last, last_bias, time_table, table, noise, order, starts, _, offset, each, loss, residual, precision = operands
    sources = operands.differentiable
    needed = Differentiable(*(need and source is not None for need, source in zip(needed, sources, strict=True)))
    if t.numel() == 0:
        return Differentiable(*(torch.zeros_like(source) if need else None for need, source in zip(needed, sources, strict=True)))
    sizes = Sizes.of(x0, context, first, table, starts)
    d_x0 = sizes.empty(x0, *x0.shape) if needed.latents else None
    d_context = sizes.empty(context, *context.shape) if needed.context else None
    d_noise = sizes.empty(noise, *noise.shape) if needed.noise else None
    sums = RowSums(sizes, precision, t, x0, order, starts) if any(needed.weights) else None
    table_sums = x0.new_zeros((1, sizes.groups, sizes.steps, 1, 5)) if needed.table else None
    options = one_step_options(architecture(x0.device), precision)
    hidden = hidden.to(PRODUCTS[precision][0])
    for row_begin, rows_here in splits_of(sizes.rows, piece_rows(sizes, hidden.dtype, options["BN"])):
        low = hidden.new_empty((sizes.lanes, 7, rows_here, sizes.hidden))
        wide = x0.new_empty((sizes.lanes, 2, rows_here, sizes.hidden))
        outputs = x0.new_empty((sizes.lanes, rows_here, sizes.latent))
        d_rows = x0.new_empty((sizes.lanes, 1, rows_here, 5)) if needed.table else None
        launch(
            sleep_bwd_kernel, (sizes.tiles(rows_here, options["BN"]), sizes.lanes),
            x0, t, context, first, hidden, last, last_bias, time_table, table, noise, order, starts, operands.drawn_from, upstream,
            d_x0, d_context, d_noise, None if sums is None else sums.states, low, wide, outputs, d_rows,
            offset, sizes.groups, sizes.rows, max(1, each), sizes.steps, row_begin, rows_here,
            **constexprs(sizes, residual, precision, loss), **options,
        )  # fmt: skip
        if sums is not None:
            sums.add(context, row_begin, rows_here, low, wide, outputs)
        if d_rows is not None:
            sum_by_step(d_rows, t, order, starts, table_sums, sizes, row_begin, rows_here, 5, "tf32x3")
    weights = (None,) * 5 if sums is None else sums.result(sources.weights)
    d_table = None if table_sums is None else table_sums.sum((0, 1)).view(table.shape)
    return Differentiable(d_x0, d_context, *weights, d_table, d_noise).only(needed)


def compilations() -> Iterator[Compilation]:
    """Representative variants for ahead-of-time compilation: gradients of context, weights and table, as in training."""
    needed = Differentiable(False, *[True] * 7, False)
    for name, sizes, precision in variants():
        x0, *tensors, state = sizes.meta_tensors()
        t, upstream = state.new_empty(sizes.rows), x0.new_empty(sizes.rows)
        operands = SleepOperands(x0, t, *tensors, None, *sizes.meta_index(), state, 0, sizes.rows, "huber", True, precision)
        yield from recorded(name, backward, operands, upstream, needed)
