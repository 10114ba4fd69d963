"""Weight gradients of the denoiser in Triton: products of layer inputs and gradients before the ReLUs, summed over steps and rows.

The backward passes of chain and sleep write the factors. Each program owns a slice of the entries and one part of the result, and adds to
what it wrote in the calls before, so that sums have one order; one launch adds the slices and the tiles.
"""

from __future__ import annotations

import itertools
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast._operands import ChainOperands
from ddvi_fast.kernels.chain_options import Prepared, Sizes, prepared
from ddvi_fast.kernels.common import architecture, cdiv, launch
from ddvi_fast.kernels.layers import (
    DOWN,
    UP,
    WEIGHT_EXPONENT,
    activations,
    backward_layer,
    bias,
    bias_rows,
    dot,
    end_weights,
    exponent_of,
    folded,
    forward_layer,
    kept_matrices,
    last_activations,
    load_signs,
    masked,
    pair,
    power,
    product,
    rest,
    rounded,
    summed,
    turned,
    widen,
    zeros,
)
from ddvi_fast.kernels.shared_memory import PAIRED, available, from_shared, in_tensor_memory, needed


@triton.jit
def tiles_of(starts, segment, BN: tl.constexpr):
    return tl.cdiv((tl.load(starts + segment + 1) - tl.load(starts + segment)).to(tl.int32), BN)


@triton.jit
def tiles_before(starts, count, BN: tl.constexpr):
    """Number of tiles of the first `count` segments, none of which shares a tile with another."""
    total = 0
    for begin in range(0, count, 256):
        segment = begin + tl.arange(0, 256)
        there = segment < count
        width = tl.load(starts + segment + 1, there, 0) - tl.load(starts + segment, there, 0)
        total += tl.sum(tl.cdiv(width.to(tl.int32), BN), axis=0)
    return total


@triton.jit
def _unscaled(x, exponent):
    """`x` divided by two to an exponent that may be out of range for one factor."""
    exponent = tl.minimum(tl.maximum(exponent, -252), 252)
    half = exponent >> 1
    return x * power(-half) * power(half - exponent)


@triton.jit
def _end_product(d, x, total, factor, ROWS: tl.constexpr, P: tl.constexpr, LOW: tl.constexpr, TWO: tl.constexpr, EXACT: tl.constexpr):
    """`total + d^T x`, [B, 16] or [B, P], for `d` [ROWS, B] of one plane or two and a narrow `x` [ROWS, P]; EXACT multiplies `x` by `factor`."""
    if P == 8:
        x = pair(x, ROWS)
    high = rounded(x, LOW)
    low = rest(x, high, LOW)
    if EXACT:
        high, low = high * factor, low * factor
    turned_d = tl.trans(d[0])
    if P == 8:
        both = tl.where(tl.arange(0, 16)[None, :] < 8, high, low)
        if TWO:
            total = dot(tl.trans(d[1]), both, total)
        return dot(turned_d, both, total)
    else:
        if TWO:
            total = dot(tl.trans(d[1]), high, total)
        return dot(turned_d, high, dot(turned_d, low, total))


@triton.jit
def _sum_block(
    states,  # [T + 1, G, R, D], start first; [R, D] if BY_STEP
    context,  # [G, R, C] or None
    first, matrices, last, table,  # [G, H, D + C], [G, planes, 3, H, H], [G, D, H], [G, T, 16, H]
    order, starts,  # [R] and [G + 1] or, if BY_STEP, [G T + 1]; or None. With them the arrays of rows have no axis G
    signs,  # [steps_here, G, R, 4, H / 32]; [R, 4, H / 32] if BY_STEP
    d_outputs,  # [T, G, R, D], like signs in the order of the trajectory; [R, D] if BY_STEP
    hidden_sums,  # [slices, G, 3, H, H]
    first_sums,  # [slices, G, H, D + C]
    last_sums,  # [slices, G, D, H]
    bias_sums,  # [slices, G, D]
    table_sums,  # [steps_here, tiles, 4, H]; one step if BY_STEP
    part, parts, rows, steps, step_begin, steps_here, tiles,
    D: tl.constexpr, C: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, H: tl.constexpr, B: tl.constexpr, BN: tl.constexpr,
    LAYER: tl.constexpr, M: tl.constexpr, N: tl.constexpr, RESIDUAL: tl.constexpr, EXACT: tl.constexpr, KEEP: tl.constexpr,
    BY_STEP: tl.constexpr, TENSOR_MEMORY: tl.constexpr,
):  # fmt: skip
    """Block (M, N) of the gradient of a hidden matrix, for one of the `parts` of a group's tiles, which are BN rows at one step each.

    A tile's activations and gradients are made again from states, signs and output gradients. Blocks with N = 0 also sum the gradient
    before a ReLU over each tile, and those of layers 0 and 2 the gradients of first and last layer. From the second piece of the
    steps on (`step_begin`), sums are added to what is there.
    """
    LOW: tl.constexpr = matrices.dtype.element_ty
    BLOCKS: tl.constexpr = H // B
    JOINED: tl.constexpr = C > 0 and Q == 0
    group, groups = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    columns, across = tl.arange(0, P)[None, :], tl.arange(0, BN)
    lanes_rows = tl.cast(rows, tl.int64)
    if starts is None:
        lanes_rows *= groups
    first += group * H * (D + C)
    table += group * steps * 16 * H
    kept = kept_matrices(matrices + group * (6 if EXACT else 3) * H * H, H, EXACT, KEEP)
    first_weights = end_weights(first, D + C, 1, D + C if JOINED else D, P, H, B, LOW, EXACT, False)
    last_weights = end_weights(last + group * D * H, 1, H, D, P, H, B, LOW, EXACT, False)
    if Q > 0:
        of_context = tl.arange(0, Q)[None, :]
        context_weights = end_weights(first + D, D + C, 1, C, Q, H, B, LOW, EXACT, False)

    segment, segment_begin, segment_end, tile_offset = group, 0, 0, 0
    if BY_STEP:
        segment = group * steps
        tile_offset = tiles_before(starts, (group * steps).to(tl.int32), BN)
        count = tiles_before(starts, (group * steps + steps).to(tl.int32), BN) - tile_offset
        segment_end = tiles_of(starts, segment, BN)
    elif starts is None:
        each = tl.cdiv(rows, BN)
        tile_offset = group.to(tl.int32) * each
        count = steps_here * each
    else:
        each = tl.maximum(tiles_of(starts, group, BN), 1)
        tile_offset = tiles_before(starts, group.to(tl.int32), BN)
        count = steps_here * tiles_of(starts, group, BN)
    share = tl.cdiv(count, parts)

    total = tl.zeros((B, B), tl.float32)
    end_total = tl.zeros((B, 16 if P == 8 else P), tl.float32)
    context_total = tl.zeros((B, 16 if Q <= 8 else Q), tl.float32)
    bias_total = tl.zeros((P,), tl.float32)
    ones = tl.full((BN, 16), 1.0, tl.float32).to(LOW)
    lowest, lowest_output = 1000, 1000
    for at in tl.range(part * share, tl.minimum(part * share + share, count), disable_licm=not KEEP):
        if not TENSOR_MEMORY or at >= 0:  # always: see `in_tensor_memory`
            if BY_STEP:
                while at >= segment_end:
                    segment += 1
                    segment_begin = segment_end
                    segment_end += tiles_of(starts, segment, BN)
                step, tile = (segment - group * steps).to(tl.int32), at
                begin = tl.load(starts + segment) + (at - segment_begin) * BN
                present = begin + across < tl.load(starts + segment + 1)
                row = tl.load(order + begin + across, present, 0)
                sign_row, state_row = row, row
            else:
                i, tile = at // each, at % each
                step = step_begin + steps_here - 1 - i
                if starts is None:
                    present = tile * BN + across < rows
                    row = group * rows + tile * BN + across
                else:
                    begin = tl.load(starts + group) + tile * BN
                    present = begin + across < tl.load(starts + group + 1)
                    row = tl.load(order + begin + across, present, 0)
                sign_row, state_row = i * lanes_rows + row, (steps - 1 - step) * lanes_rows + row
            inside = present[:, None] & (columns < D)
            y = tl.load(states + state_row[:, None] * D + columns, inside, 0.0)
            if JOINED:
                y += tl.load(context + row[:, None] * C + (columns - D), present[:, None] & (columns >= D) & (columns < D + C), 0.0)
            if EXACT:
                y *= UP
            d_output = tl.load(d_outputs + state_row[:, None] * D + columns, inside, 0.0)
            from_signs = signs + sign_row[:, None] * (4 * (H // 32))
            s4 = load_signs(from_signs, present, 3, H, B)
            biases = bias_rows(table + step * 16 * H, H, B)
            pin = tl.max(y, axis=1)[:, None] if P > 8 else pair(y, BN)

            totals = ()
            if Q > 0:
                c = tl.load(context + row[:, None] * C + of_context, present[:, None] & (of_context < C), 0.0)
                if EXACT:
                    c *= UP
            for m in tl.static_range(BLOCKS):
                sums = bias(biases, pin, 0, BN, BLOCKS, LOW, EXACT)[m]
                if Q > 0:
                    sums = widen(c, context_weights[m], sums, BN, Q, LOW)
                totals = totals + (widen(y, first_weights[m], sums, BN, P, LOW),)
            x1 = activations(totals, BLOCKS, LOW, EXACT)
            x = x1
            if LAYER > 0:
                x = activations(forward_layer(x1, kept, bias(biases, pin, 1, BN, BLOCKS, LOW, EXACT), 0, H, B, EXACT, KEEP), BLOCKS, LOW, EXACT)
            if LAYER == 2:
                sums = forward_layer(x, kept, bias(biases, pin, 2, BN, BLOCKS, LOW, EXACT), 1, H, B, EXACT, KEEP)
                x = activations(sums, BLOCKS, LOW, EXACT)
                if RESIDUAL:
                    x = summed(x, x1, BLOCKS, LOW, EXACT)

            exponent, more, factor = 0, 0, 1.0
            if LAYER == 2 and M == 0 and N == 0:
                bias_total += tl.sum(d_output, axis=0)
            if EXACT:
                exponent = exponent_of(tl.max(tl.abs(d_output)))
                d_output *= power(exponent)
            if LAYER == 2 and N == 0:
                sums = forward_layer(x, kept, bias(biases, pin, 3, BN, BLOCKS, LOW, EXACT), 2, H, B, EXACT, KEEP)
                if EXACT:
                    before = lowest_output
                    lowest_output = tl.minimum(before, exponent)
                    end_total *= power(tl.maximum(lowest_output - before, -126))
                    ratio = power(tl.maximum(lowest_output - exponent, -126)).to(LOW)
                else:
                    ratio = factor
                x4 = last_activations(sums, BLOCKS, LOW, EXACT)[M]
                end_total = _end_product(x4, d_output, end_total, ratio, BN, P, LOW, True, EXACT)
            d_totals = ()
            for m in tl.static_range(BLOCKS):
                d_totals = d_totals + (widen(d_output, last_weights[m], tl.zeros((BN, B), tl.float32), BN, P, LOW),)
            if EXACT:
                largest = tl.max(tl.abs(d_totals[0]))
                for m in tl.static_range(1, BLOCKS):
                    largest = tl.maximum(largest, tl.max(tl.abs(d_totals[m])))
                more = exponent_of(largest)
                factor = power(more)
                more += WEIGHT_EXPONENT  # of the last layer's weights
            d = masked(d_totals, s4, factor, BLOCKS, BN, B, LOW, EXACT)
            if LAYER < 2:
                of_summed = backward_layer(d, kept, zeros(BN, H, B), 2, H, B, EXACT, KEEP)
                d = masked(of_summed, load_signs(from_signs, present, 2, H, B), DOWN, BLOCKS, BN, B, LOW, EXACT)
            if LAYER == 0:
                s2 = load_signs(from_signs, present, 1, H, B)
                d = masked(backward_layer(d, kept, zeros(BN, H, B), 1, H, B, EXACT, KEEP), s2, DOWN, BLOCKS, BN, B, LOW, EXACT)

            inputs = x[N]
            if EXACT:
                before = lowest
                lowest = tl.minimum(before, exponent + more)
                total *= power(tl.maximum(lowest - before, -126))
                ratio = power(tl.maximum(lowest - exponent - more, -126)).to(LOW)
                inputs = (inputs[0] * ratio, inputs[1] * ratio)
            else:
                ratio = factor
            total = product(turned(d[M], EXACT), inputs, total, EXACT)
            if N == 0:
                in_table = (tl.cast(0 if BY_STEP else step - step_begin, tl.int64) * tiles + tile_offset + tile) * 4 * H + M * B
                to_sums = table_sums + in_table + tl.arange(0, B)
                _store_sums(to_sums + (LAYER + 1) * H, d[M], ones, exponent, more, B, EXACT)
                if LAYER == 0:
                    s1 = load_signs(from_signs, present, 0, H, B)
                    of_first = of_summed if RESIDUAL else zeros(BN, H, B)
                    d1 = masked(backward_layer(d, kept, of_first, 0, H, B, EXACT, KEEP), s1, DOWN, BLOCKS, BN, B, LOW, EXACT)[M]
                    _store_sums(to_sums, d1, ones, exponent, more, B, EXACT)
                    if EXACT:
                        end_total *= power(tl.maximum(lowest - before, -126))
                    end_total = _end_product(d1, y, end_total, ratio, BN, P, LOW, EXACT, EXACT)
                    if Q > 0:
                        if EXACT:
                            context_total *= power(tl.maximum(lowest - before, -126))
                        context_total = _end_product(d1, c, context_total, ratio, BN, Q, LOW, EXACT, EXACT)

    across_m, across_n = M * B + tl.arange(0, B), N * B + tl.arange(0, B)
    slot = part * groups + group
    if EXACT:
        total = _unscaled(total, lowest) / UP
        context_total = _unscaled(context_total, lowest) / UP
        end_total = _unscaled(end_total, lowest_output if LAYER == 2 else lowest) / UP
    added = step_begin > 0
    out = hidden_sums + ((slot * 3 + LAYER) * H + across_m[:, None]) * H + across_n[None, :]
    tl.store(out, tl.load(out, added & (across_m[:, None] >= 0), 0.0) + total)
    if N == 0:
        if LAYER == 0:
            out = first_sums + (slot * H + across_m[:, None]) * (D + C)
            mask = (columns < (D + C if JOINED else D)) & (across_m[:, None] >= 0)
            tl.store(out + columns, tl.load(out + columns, mask & added, 0.0) + folded(end_total, B, P), mask)
            if Q > 0:
                mask = (of_context < C) & (across_m[:, None] >= 0)
                tl.store(out + D + of_context, tl.load(out + D + of_context, mask & added, 0.0) + folded(context_total, B, Q), mask)
        elif LAYER == 2:
            out = last_sums + (slot * D + columns) * H + across_m[:, None]
            mask = (columns < D) & (across_m[:, None] >= 0)
            tl.store(out, tl.load(out, mask & added, 0.0) + folded(end_total, B, P), mask)
            if M == 0:
                one = tl.arange(0, P)
                out = bias_sums + slot * D + one
                tl.store(out, tl.load(out, (one < D) & added, 0.0) + bias_total, one < D)


@triton.jit(do_not_specialize=["parts_0", "parts_1", "parts_2", "rows", "steps", "step_begin", "steps_here", "tiles"])
def denoiser_bwd_kernel_weights(
    states, context, first, matrices, last, table, order, starts, signs, d_outputs,
    hidden_sums, first_sums, last_sums, bias_sums, table_sums,  # as in `_sum_block`
    parts_0, parts_1, parts_2, rows, steps, step_begin, steps_here, tiles,
    D: tl.constexpr, C: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, H: tl.constexpr, B: tl.constexpr, BN: tl.constexpr,
    LAYER: tl.constexpr, M: tl.constexpr, N: tl.constexpr, RESIDUAL: tl.constexpr, EXACT: tl.constexpr, KEEP: tl.constexpr,
    BY_STEP: tl.constexpr, TENSOR_MEMORY: tl.constexpr,
):  # fmt: skip
    """Block (M, N) of the gradient of one hidden matrix, whose programs take one part of the tiles each, or of all three: LAYER is 3.

    Then the first programs take parts of the first layer, and so on.
    """
    part = tl.program_id(0)
    if LAYER < 3:
        _sum_block(
            states, context, first, matrices, last, table, order, starts, signs, d_outputs,
            hidden_sums, first_sums, last_sums, bias_sums, table_sums, part, tl.num_programs(0), rows, steps, step_begin, steps_here, tiles,
            D, C, P, Q, H, B, BN, LAYER, M, N, RESIDUAL, EXACT, KEEP, BY_STEP, TENSOR_MEMORY,
        )  # fmt: skip
    elif part < parts_0:
        _sum_block(
            states, context, first, matrices, last, table, order, starts, signs, d_outputs,
            hidden_sums, first_sums, last_sums, bias_sums, table_sums, part, parts_0, rows, steps, step_begin, steps_here, tiles,
            D, C, P, Q, H, B, BN, 0, M, N, RESIDUAL, EXACT, KEEP, BY_STEP, TENSOR_MEMORY,
        )  # fmt: skip
    elif part < parts_0 + parts_1:
        _sum_block(
            states, context, first, matrices, last, table, order, starts, signs, d_outputs,
            hidden_sums, first_sums, last_sums, bias_sums, table_sums, part - parts_0, parts_1, rows, steps, step_begin, steps_here, tiles,
            D, C, P, Q, H, B, BN, 1, M, N, RESIDUAL, EXACT, KEEP, BY_STEP, TENSOR_MEMORY,
        )  # fmt: skip
    else:
        _sum_block(
            states, context, first, matrices, last, table, order, starts, signs, d_outputs,
            hidden_sums, first_sums, last_sums, bias_sums, table_sums, part - parts_0 - parts_1, parts_2, rows, steps, step_begin, steps_here, tiles,
            D, C, P, Q, H, B, BN, 2, M, N, RESIDUAL, EXACT, KEEP, BY_STEP, TENSOR_MEMORY,
        )  # fmt: skip


@triton.jit
def _store_sums(out, d, ones, exponent, more, B: tl.constexpr, EXACT: tl.constexpr):
    """Sums over a tile of gradients before a ReLU, by a product with ones."""
    sums = tl.zeros((B, 16), tl.float32)
    if EXACT:
        sums = dot(tl.trans(d[1]), ones, sums)
    sums = dot(tl.trans(d[0]), ones, sums)
    sums = tl.sum(tl.where(tl.arange(0, 16)[None, :] == 0, sums, 0.0), axis=1)
    tl.store(out, sums * power(-exponent) * power(-more) if EXACT else sums)


@triton.jit
def _sum_slices(partial, out, block, count, slices, SLICES: tl.constexpr, BLOCK: tl.constexpr):
    """A block of the sum [count] over slices [slices, count]."""
    across, place = tl.arange(0, SLICES)[:, None], block * BLOCK + tl.arange(0, BLOCK)
    found = tl.zeros((SLICES, BLOCK), tl.float32)
    for first in range(0, slices, SLICES):
        inside = (first + across < slices) & (place < count)[None, :]
        found += tl.load(partial + (first + across).to(tl.int64) * count + place[None, :], inside, 0.0)
    tl.store(out + place, tl.sum(found, axis=0), place < count)


@triton.jit(
    do_not_specialize=[
        "hidden_count",
        "first_count",
        "last_count",
        "bias_count",
        "matrix",
        "slices_0",
        "slices_1",
        "slices_2",
        "groups",
        "steps",
        "begin",
        "count",
        "tiles",
    ]
)
def denoiser_bwd_kernel_finish(
    hidden_sums, first_sums, last_sums, bias_sums,  # [slices, ..]
    table_sums,  # [count, tiles, 4 H]
    starts,  # as in `denoiser_bwd_kernel_weights`
    hidden, first, last, last_bias,  # [..]
    table,  # [G, T, 4 H]
    hidden_count, first_count, last_count, bias_count, matrix, slices_0, slices_1, slices_2, groups, steps, begin, count, tiles,
    WIDTH: tl.constexpr, BY_STEP: tl.constexpr, BN: tl.constexpr, SLICES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over the slices of each layer, in the first programs, and over the tiles of each group at each of the `count` steps from `begin` on.

    A hidden matrix has `matrix` elements.
    """
    block = tl.program_id(0)
    of_hidden, of_first = tl.cdiv(hidden_count, BLOCK), tl.cdiv(first_count, BLOCK)
    of_last, of_bias = tl.cdiv(last_count, BLOCK), tl.cdiv(bias_count, BLOCK)
    if block < of_hidden:
        layer = block * BLOCK // matrix % 3
        slices = tl.where(layer == 0, slices_0, tl.where(layer == 1, slices_1, slices_2))
        _sum_slices(hidden_sums, hidden, block, hidden_count, slices, SLICES, BLOCK)
    elif block < of_hidden + of_first:
        _sum_slices(first_sums, first, block - of_hidden, first_count, slices_0, SLICES, BLOCK)
    elif block < of_hidden + of_first + of_last:
        _sum_slices(last_sums, last, block - of_hidden - of_first, last_count, slices_2, SLICES, BLOCK)
    elif block < of_hidden + of_first + of_last + of_bias:
        _sum_slices(bias_sums, last_bias, block - of_hidden - of_first - of_last, bias_count, slices_2, SLICES, BLOCK)
    else:
        at = block - of_hidden - of_first - of_last - of_bias
        row, place = at // tl.cdiv(WIDTH, BLOCK), at % tl.cdiv(WIDTH, BLOCK) * BLOCK + tl.arange(0, BLOCK)
        if BY_STEP:
            first_tile, number, into = tiles_before(starts, row, BN), tiles_of(starts, row, BN), row
        else:
            group, step = row // count, row % count
            into = group * steps + begin + step
            if starts is None:
                first_tile, number = step * tiles + group * (tiles // groups), tiles // groups
            else:
                first_tile, number = step * tiles + tiles_before(starts, group, BN), tiles_of(starts, group, BN)
        across = tl.arange(0, SLICES)[:, None]
        found = tl.zeros((SLICES, BLOCK), tl.float32)
        for tile in range(0, number, SLICES):
            inside = (tile + across < number) & (place < WIDTH)[None, :]
            found += tl.load(table_sums + (first_tile + tile + across).to(tl.int64) * WIDTH + place[None, :], inside, 0.0)
        tl.store(table + tl.cast(into, tl.int64) * WIDTH + place, tl.sum(found, axis=0), place < WIDTH)


class WeightSums:
    """Weight gradients summed over the rows and steps of one call, in a fixed order.

    Args:
        weights: First, hidden, last, last_bias and time_table.
        sizes: Sizes of the call.
        prepared: The prepared operands.
        residual: Whether the first hidden layer is added to the third.
        order: The rows sorted by segment, int64 [R], where they have an index, else None.
        starts: Where each segment starts in `order`, int64. A segment is a group, [G + 1]; or `by_step` a group's rows of one step,
            [G T + 1], those of group 0 first, each group's in the order of the steps.
        by_step: Whether each row belongs to one step, as in the sleep term's regression.
    """

    def __init__(
        self,
        weights: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        sizes: Sizes,
        prepared: Prepared,
        residual: bool,
        order: Tensor | None = None,
        starts: Tensor | None = None,
        by_step: bool = False,
    ) -> None:
        self.weights, self.sizes, self.prepared, self.residual = weights, sizes, prepared, residual
        self.order, self.starts, self.by_step = order, starts, by_step
        g, d, c, h = sizes.groups, sizes.latent, sizes.context, sizes.hidden
        self.options = weight_options(architecture(weights[0].device), sizes, prepared.two)
        self.segments = g * sizes.steps if by_step else g
        tile = self.options["BN"]
        most = sizes.rows + self.segments * (tile - 1) if starts is not None else 0
        self.tiles = g * cdiv(sizes.rows, tile) if starts is None else min(sizes.rows, most // tile)
        entries = self.tiles * (1 if by_step else sizes.steps)
        new = weights[0].new_empty if sizes.rows else weights[0].new_zeros
        self.slices = slices_of(cdiv(entries, g), g, prepared.two)
        most = max(self.slices)
        self.sums = new((most, g, 3, h, h)), new((most, g, h, d + c)), new((most, g, d, h)), new((most, g, d))
        first, hidden, last, last_bias, table = (
            weight.new_empty(weight.shape) if sizes.rows else weight.new_zeros(weight.shape) for weight in weights
        )
        self.results = hidden, first, last, last_bias, table

    def add(self, states: Tensor, context: Tensor | None, signs: Tensor, d_outputs: Tensor, begin: int = 0, count: int = 1) -> None:
        """Add the `count` steps from `begin` on, which `signs` has; all rows if they are sorted by step.

        Args:
            states: Trajectory [T + 1, .., R, D], start first; by step the network's inputs [R, D].
            context: Contexts [.., R, C] or None.
            signs: Signs of these steps in the order of the trajectory, int32 [count, .., R, 4, H / 32]; by step [R, 4, H / 32].
            d_outputs: Gradients of the network's outputs in the order of the trajectory, [T, .., R, D]; by step [R, D].
            begin: First of the steps.
            count: Number of steps.
        """
        s, (first, _, last, _, _) = self.sizes, self.weights
        width = 4 * s.hidden
        table_sums = first.new_empty((count, self.tiles, width))
        blocks = range(s.hidden // s.layout()["B"])
        together = sum(self.slices) * s.groups <= _PROGRAMS  # all layers fill the device once
        for layer, m, n in itertools.product((ALL,) if together else range(ALL), blocks, blocks):
            launch(
                denoiser_bwd_kernel_weights, (sum(self.slices) if together else self.slices[layer], s.groups),
                states, context, first, self.prepared.matrices, last, self.prepared.table, self.order, self.starts, signs, d_outputs,
                *self.sums, table_sums, *self.slices, s.rows, s.steps, begin, count, self.tiles,
                LAYER=layer, M=m, N=n, RESIDUAL=self.residual, EXACT=self.prepared.two, BY_STEP=self.by_step, **s.layout(), **self.options,
            )  # fmt: skip
        whole = self.by_step or begin + count == s.steps  # nothing will be added
        counts = [result.numel() if whole else 0 for result in self.results[:4]]
        blocks = [cdiv(number, _SUMS["BLOCK"]) for number in (*counts, width)]
        lines = self.segments if self.by_step else s.groups * count
        launch(
            denoiser_bwd_kernel_finish, (sum(blocks[:4]) + lines * blocks[4],),
            *self.sums, table_sums, self.starts, *self.results, *counts, s.hidden**2, *self.slices, s.groups, s.steps, begin, count, self.tiles,
            WIDTH=width, BY_STEP=self.by_step, BN=self.options["BN"], **_SUMS,
        )  # fmt: skip

    def result(self) -> tuple[Tensor, ...]:
        """Gradients of first, hidden, last, last_bias and time_table, in the shapes of the weights."""
        hidden, first, last, last_bias, table = self.results
        return first, hidden, last, last_bias, table


def weight_gradients(operands: ChainOperands, trajectory: Tensor, signs: Tensor, d_outputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a chain's first, hidden, last, last_bias and time_table.

    Args:
        operands: Operands of the chain.
        trajectory: States [T + 1, .., R, D], start first.
        signs: Signs of the ReLUs, int32 [T, .., R, 4, H / 32], in the order of the trajectory.
        d_outputs: Gradients of the network's outputs [T, .., R, D], in the order of the trajectory.
    """
    sizes = Sizes.of(operands.y_T, operands.context, operands.first, operands.coefficients, operands.starts)
    weights = prepared(operands.hidden, operands.time_table, operands.precision)
    sums = WeightSums(operands.weights, sizes, weights, operands.residual, operands.order, operands.starts)
    if sizes.rows:
        sums.add(trajectory, operands.context, signs, d_outputs, 0, sizes.steps)
    return sums.result()


def slices_of(entries: int, groups: int, two: bool) -> tuple[int, int, int]:
    """Parts into which the `entries` tiles of a group are cut for each layer.

    Few of them are summed by one launch for all layers, each of which fills a share of the device; many by a launch for each.
    """
    whole = max(1, _PROGRAMS // groups)
    if entries > _FEW * whole or whole < ALL:
        return (max(1, min(entries, whole)),) * 3
    first, last = (max(1, whole * share // 100) for share in _SHARES[two])
    return tuple(max(1, min(entries, parts)) for parts in (first, whole - first - last, last))


ALL = 3  # in the place of a layer: all of them
# Programs that fill a device, tiles of each up to which layers are summed together, and percents of the programs for the first and the last layer,
# by whether products have two planes: the shares of their times by the model.
_PROGRAMS = 132
_FEW = 16
_SHARES = {False: (37, 37), True: (34, 41)}
_SUMS = {"SLICES": 8, "BLOCK": 256, "num_warps": 4}


def weight_options(arch: int, sizes: Sizes, two: bool) -> dict[str, Any]:
    """Meta-parameters: BN rows a tile, KEEP as in `chain_options`, beside a tile's factors of one block.

    Tiles are small where there are few rows, or too little shared memory for 128 of them.
    """
    layout = sizes.layout()
    wide = layout["P"] + layout["Q"] > (64 if from_shared(arch) else 48)
    fits = needed("weights", arch, sizes.latent, sizes.context, sizes.hidden, two, 128) <= available(arch)
    rows = 128 if sizes.rows * sizes.steps > 128 * _PROGRAMS and not wide and fits else 64
    staged = rows * (min(sizes.hidden, 128) * (12 if two else 6) + 32 * (2 if layout["P"] > PAIRED else 1))
    keep = from_shared(arch) and sizes.resident_bytes(two, 0) + staged <= available(arch)
    return {"BN": rows, "KEEP": keep, "TENSOR_MEMORY": in_tensor_memory(arch), "num_warps": 8, "num_stages": 1}
