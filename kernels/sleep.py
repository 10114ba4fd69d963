"""Sleep term's regression in Triton: noising, denoiser, loss, and the gradients of the loss of each row, in one pass over the rows.

Rows are sorted by step, so that a tile has one step and one set of biases. A row's loss depends on that row alone: what the backward pass
does is to scale by the upstream gradient (kernels/sleep_backward.py) and to sum the weight gradients (kernels/weight_gradient.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast import _operands, rng
from ddvi_fast._operands import SleepOperands, SleepResults
from ddvi_fast.kernels.chain_options import Sizes, chain_options, unusable_denoiser, variants
from ddvi_fast.kernels.common import Compilation, architecture, cdiv, interpreted, launch, recorded
from ddvi_fast.kernels.layers import (
    DOWN,
    UP,
    backward_layer,
    bias_rows,
    end_weights,
    kept_matrices,
    load_signs,
    masked,
    narrow,
    zeros,
)
from ddvi_fast.kernels.network import run_forward, through_last, unscaled
from ddvi_fast.kernels.rng import draw_index, row_noise
from ddvi_fast.kernels.sleep_backward import backward
from ddvi_fast.kernels.sleep_common import penalty, prepared_and_sorted, slope
from ddvi_fast.kernels.weight_gradient import tiles_before, tiles_of

__all__ = ["backward", "compilations", "forward", "unsupported"]

_PROGRAMS = 264  # two on each processor of a large device
STREAM = tl.constexpr(rng.NOISE)


@triton.jit
def _turned(weights, BLOCKS: tl.constexpr, P: tl.constexpr):
    """The weights of a narrow layer for products with the wide side, which are TALL."""
    found = ()
    for m in tl.static_range(BLOCKS):
        if P == 8:
            found = found + ((tl.trans(weights[m][0]),),)
        else:
            found = found + ((tl.trans(weights[m][0]), tl.trans(weights[m][1])),)
    return found


@triton.jit(do_not_specialize=["offset", "rows_per_sample", "steps"])
def sleep_fwd_kernel(
    x0,  # [G, R, D]
    t,  # [G, R]
    context,  # [G, R, C] or None
    first, matrices, last, last_bias, biases,  # [G, H, D + C], [G, planes, 3, H, H], [G, D, H], [G, D], [G, T, 16, H]
    table,  # [T, 5]
    noise,  # [G, R, D] or None
    order, starts,  # [rows] and [G T + 1]
    state,  # [2] or None
    loss,  # [G, R]
    states,  # [G, R, D] or None, with the next two
    signs,  # [G, R, 4, H / 32]
    d_outputs,  # [G, R, D]
    d_x0,  # [G, R, D] or None
    d_context,  # [G, R, C] or None
    d_rows,  # [G, R, 5] or None
    d_noise,  # [G, R, D] or None
    offset, rows_per_sample, steps,
    D: tl.constexpr, C: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, H: tl.constexpr, B: tl.constexpr, BN: tl.constexpr,
    RESIDUAL: tl.constexpr, EXACT: tl.constexpr, KEEP: tl.constexpr, HALVES: tl.constexpr, LOSS: tl.constexpr,
    TENSOR_MEMORY: tl.constexpr,
):  # fmt: skip
    """Losses of the rows of one group, and with `states` what their gradients need: inputs and signs of the network, and gradients of the loss.

    A program loops over every so-manieth tile of at most BN rows of one step. `d_rows` gets what each row adds to the gradient of its row
    of the table.
    """
    LOW: tl.constexpr = matrices.dtype.element_ty
    BLOCKS: tl.constexpr = H // B
    JOINED: tl.constexpr = C > 0 and Q == 0
    group = tl.program_id(1).to(tl.int64)
    columns, across = tl.arange(0, P)[None, :], tl.arange(0, BN)
    first += group * H * (D + C)
    biases += group * steps * 16 * H
    kept = kept_matrices(matrices + group * (6 if EXACT else 3) * H * H, H, EXACT, KEEP)
    first_weights = end_weights(first, D + C, 1, D + C if JOINED else D, P, H, B, LOW, EXACT, False)
    last_weights = end_weights(last + group * D * H, 1, H, D, P, H, B, LOW, EXACT, False)
    shift = tl.load(last_bias + group * D + columns, columns < D, 0.0)
    context_weights = None
    if Q > 0:
        of_context = tl.arange(0, Q)[None, :]
        context_weights = end_weights(first + D, D + C, 1, C, Q, H, B, LOW, EXACT, False)

    segment, segment_begin, segment_end = group * steps, 0, tiles_of(starts, group * steps, BN)
    count = tiles_before(starts, (group * steps + steps).to(tl.int32), BN) - tiles_before(starts, (group * steps).to(tl.int32), BN)
    for tile in tl.range(tl.program_id(0), count, tl.num_programs(0), disable_licm=not KEEP):
        if not TENSOR_MEMORY or tile >= 0:  # always: see `in_tensor_memory`
            while tile >= segment_end:
                segment += 1
                segment_begin = segment_end
                segment_end += tiles_of(starts, segment, BN)
            step = segment - group * steps
            begin = tl.load(starts + segment) + (tile - segment_begin) * BN
            present = begin + across < tl.load(starts + segment + 1)
            row = tl.load(order + begin + across, present, 0)
            inside = present[:, None] & (columns < D)
            place = row[:, None] * D + columns
            k = table + 5 * step
            signal, deviation, c0, c1 = tl.load(k), tl.load(k + 1), tl.load(k + 2), tl.load(k + 3)
            weight = tl.where(tl.load(t + row, present, 0) == step, tl.load(k + 4), float("nan"))
            clean = tl.load(x0 + place, inside, 0.0)
            if noise is not None:
                eps = tl.load(noise + place, inside, 0.0)
            else:
                index = draw_index(state, offset, row, rows_per_sample)
                eps = tl.where(inside, row_noise(index, STREAM, tl.load(state), D, P), 0.0)
            y = signal * clean + deviation * eps
            to_signs = None
            if states is not None:
                tl.store(states + place, y, inside)
                to_signs = signs + row[:, None] * (4 * (H // 32))
            if JOINED:
                in_context = present[:, None] & (columns >= D) & (columns < D + C)
                y += tl.load(context + row[:, None] * C + (columns - D), in_context, 0.0)
            rows_of_bias = bias_rows(biases + step * 16 * H, H, B)
            c = None
            if Q > 0:
                c = tl.load(context + row[:, None] * C + of_context, present[:, None] & (of_context < C), 0.0)
                if EXACT:
                    c *= UP
            output = run_forward(
                y, c, first_weights, context_weights, kept, _turned(last_weights, BLOCKS, P), rows_of_bias, to_signs, present,
                P, Q, H, B, BN, LOW, RESIDUAL, EXACT, KEEP, HALVES,
            )  # fmt: skip
            error = tl.where(inside, output + shift - (c0 * clean + c1 * eps), 0.0)
            lost = tl.sum(penalty(error, LOSS), axis=1)
            tl.store(loss + row, weight * lost, present)

            if states is not None:
                d_output = tl.where(inside, weight[:, None] * slope(error, LOSS), 0.0)
                tl.store(d_outputs + place, d_output, inside)
            if d_x0 is not None or d_context is not None or d_noise is not None or d_rows is not None:
                tl.debug_barrier()  # other threads may have written these signs
                totals, factor, exponent, more = through_last(d_output, last_weights, P, BLOCKS, B, BN, LOW, EXACT)
                d_x = masked(totals, load_signs(to_signs, present, 3, H, B), factor, BLOCKS, BN, B, LOW, EXACT)
                of_summed = backward_layer(d_x, kept, zeros(BN, H, B), 2, H, B, EXACT, KEEP)
                d_x = masked(of_summed, load_signs(to_signs, present, 2, H, B), DOWN, BLOCKS, BN, B, LOW, EXACT)
                sums = backward_layer(d_x, kept, zeros(BN, H, B), 1, H, B, EXACT, KEEP)
                d_x = masked(sums, load_signs(to_signs, present, 1, H, B), DOWN, BLOCKS, BN, B, LOW, EXACT)
                of_first = of_summed if RESIDUAL else zeros(BN, H, B)
                sums = backward_layer(d_x, kept, of_first, 0, H, B, EXACT, KEEP)
                d_x = masked(sums, load_signs(to_signs, present, 0, H, B), DOWN, BLOCKS, BN, B, LOW, EXACT)
                d_y = unscaled(narrow(d_x, _turned(first_weights, BLOCKS, P), BN, P, BLOCKS, EXACT), exponent, more, EXACT)
                if d_context is not None:
                    if JOINED:
                        tl.store(d_context + row[:, None] * C + (columns - D), d_y, in_context)
                    else:
                        d_c = unscaled(narrow(d_x, _turned(context_weights, BLOCKS, Q), BN, Q, BLOCKS, EXACT), exponent, more, EXACT)
                        tl.store(d_context + row[:, None] * C + of_context, d_c, present[:, None] & (of_context < C))
                if d_x0 is not None:
                    tl.store(d_x0 + place, signal * d_y - c0 * d_output, inside)
                if d_noise is not None:
                    tl.store(d_noise + place, deviation * d_y - c1 * d_output, inside)
                if d_rows is not None:
                    to_rows = d_rows + row * 5
                    tl.store(to_rows, tl.sum(d_y * clean, axis=1), present)
                    tl.store(to_rows + 1, tl.sum(d_y * eps, axis=1), present)
                    tl.store(to_rows + 2, -tl.sum(d_output * clean, axis=1), present)
                    tl.store(to_rows + 3, -tl.sum(d_output * eps, axis=1), present)
                    tl.store(to_rows + 4, lost, present)


def unsupported(precision: str = "float32", **tensors: Tensor | None) -> str | None:
    """The reason why the kernels cannot run this regression, or None if they can; `tensors` are its float32 operands by name."""
    return unusable_denoiser(sleep_fwd_kernel, "regression", precision, **tensors)


def forward(operands: SleepOperands, keep: int = 0) -> SleepResults:
    """`reference.sleep.denoising_loss` [.., R], and what `backward` needs for the gradients that are kept.

    A row whose step is not in the table gets NaN: a check beforehand would stall the device.
    """
    x0, t, context, first, _, last, last_bias, _, table, noise, _, starts, _, offset, each, loss, residual, _ = operands
    sizes = Sizes.of(x0, context, first, table, starts)
    value = sizes.empty(x0, *t.shape)
    if t.numel() == 0:
        return SleepResults(value)
    weights, found = prepared_and_sorted(operands, sizes)
    kept = SleepResults.empty(operands, value, keep)
    arch = architecture(x0.device)
    options, halves = chain_options(arch, sizes, weights.two), arch >= 90 and not interpreted(sleep_fwd_kernel)
    programs = min(cdiv(sizes.rows, options["BN"]) + sizes.steps, sizes.rows, max(1, _PROGRAMS // sizes.groups))
    launch(
        sleep_fwd_kernel, (programs, sizes.groups),
        x0, t, context, first, weights.matrices, last, last_bias, weights.table, table, noise, *found, operands.drawn_from,
        value, kept.states, kept.signs, kept.d_outputs, kept.d_x0, kept.d_context, kept.d_rows, kept.d_noise,
        offset, max(1, each), sizes.steps, RESIDUAL=residual, EXACT=weights.two, HALVES=halves, LOSS=loss, **options,
    )  # fmt: skip
    return kept._replace(**found._asdict(), matrices=weights.matrices, biases=weights.table) if keep else kept


def compilations() -> Iterator[Compilation]:
    """Representative variants for ahead-of-time compilation: drawn noise, with the gradients of training, at the usual width."""
    for variant in variants():
        sizes = variant.sizes
        if sizes.hidden < 128:
            continue
        x0, *tensors, state = sizes.meta_tensors()
        t = state.new_empty(sizes.rows)
        operands = SleepOperands(x0, t, *tensors, None, *sizes.meta_index(), state, 0, sizes.rows, "huber", True, variant.precision)
        keep = _operands.OF_WEIGHTS | _operands.OF_CONTEXT | _operands.OF_TABLE * variant.learned
        yield from recorded(variant.name, forward, operands, keep, architectures=variant.architectures)
