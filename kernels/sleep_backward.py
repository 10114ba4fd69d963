"""Backward pass of the sleep term's regression in Triton: gradients of each row's loss, which the forward pass kept, times the upstream ones.

Sums over the rows of a step, for the gradient of the table, and weight gradients have one order.
The latter are those of kernels/weight_gradient.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast import _operands
from ddvi_fast._operands import Differentiable, SleepOperands, SleepResults
from ddvi_fast.kernels.chain_options import Prepared, Sizes, variants
from ddvi_fast.kernels.common import Compilation, cdiv, launch, next_power_of_2, recorded
from ddvi_fast.kernels.weight_gradient import WeightSums

_PROGRAMS = 264  # two on each processor of a large device
_SCALED = {"BN": 64, "num_warps": 4}


@triton.jit
def _scale(values, result, row, present, upstream, WIDTH: tl.constexpr, PAD: tl.constexpr):
    """Rows of `result` [.., WIDTH] get those of `values` times `upstream` [BN]; the product is returned."""
    columns = tl.arange(0, PAD)[None, :]
    place, inside = row[:, None] * WIDTH + columns, present[:, None] & (columns < WIDTH)
    scaled = upstream[:, None] * tl.load(values + place, inside, 0.0)
    if result is not None:
        tl.store(result + place, scaled, inside)
    return scaled


@triton.jit
def sleep_bwd_kernel(
    upstream,  # [G, R]
    order, starts,  # [rows] and [G T + 1]
    d_outputs, to_outputs,  # [G, R, D], or both None
    d_x0, to_x0,  # [G, R, D], or both None
    d_context, to_context,  # [G, R, C], or both None
    d_noise, to_noise,  # [G, R, D], or both None
    d_rows,  # [G, R, 5] or None
    table_sums,  # [parts, G T, 5] or None
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A part of the rows of one group at one step."""
    part, parts, segment = tl.program_id(0), tl.num_programs(0), tl.program_id(1).to(tl.int64)
    first, last = tl.load(starts + segment), tl.load(starts + segment + 1)
    share = tl.cdiv(last - first, parts)
    begin, end = first + part * share, tl.minimum(first + part * share + share, last)
    sums = tl.zeros((BN, 8), tl.float32)
    for at in range(begin, end, BN):
        place = at + tl.arange(0, BN)
        present = place < end
        row = tl.load(order + place, present, 0)
        above = tl.load(upstream + row, present, 0.0)
        if d_outputs is not None:
            _scale(d_outputs, to_outputs, row, present, above, D, D_PAD)
        if d_x0 is not None:
            _scale(d_x0, to_x0, row, present, above, D, D_PAD)
        if d_context is not None:
            _scale(d_context, to_context, row, present, above, C, C_PAD)
        if d_noise is not None:
            _scale(d_noise, to_noise, row, present, above, D, D_PAD)
        if d_rows is not None:
            sums += _scale(d_rows, None, row, present, above, 5, 8)
    if d_rows is not None:
        columns = tl.arange(0, 8)
        tl.store(table_sums + (part * tl.num_programs(1) + segment) * 5 + columns, tl.sum(sums, axis=0), columns < 5)


def backward(operands: SleepOperands, kept: SleepResults, upstream: Tensor, needed: Differentiable) -> Differentiable:
    """The gradients that are `needed` under `upstream` [.., R], the same bits every time.

    Args:
        operands: Those of `forward`.
        kept: Its results, with what these gradients need.
        upstream: Upstream gradient of the losses.
        needed: Which gradients to compute.
    """
    sources = operands.differentiable
    needed = Differentiable(*(need and source is not None for need, source in zip(needed, sources, strict=True)))
    if operands.t.numel() == 0:
        return Differentiable(*(torch.zeros_like(source) if need else None for need, source in zip(needed, sources, strict=True)))
    x0, context, table = operands.x0, operands.context, operands.table
    sizes, of_weights = Sizes.of(x0, context, operands.first, table, operands.starts), any(needed.weights)
    pairs = [
        (value, sizes.empty(value, *value.shape)) if need and value is not None else (None, None)
        for need, value in (
            (of_weights, kept.d_outputs), (needed.latents, kept.d_x0), (needed.context, kept.d_context), (needed.noise, kept.d_noise),
        )
    ]  # fmt: skip
    count = sizes.groups * sizes.steps
    parts = max(1, min(cdiv(sizes.rows * sizes.lanes, count * _SCALED["BN"]), _PROGRAMS // count))
    sums = x0.new_empty((parts, count, 5)) if needed.table else None
    launch(
        sleep_bwd_kernel, (parts, count), upstream, kept.order, kept.starts, *(value for pair in pairs for value in pair),
        kept.d_rows if needed.table else None, sums, **_widths(sizes), **_SCALED,
    )  # fmt: skip
    (_, d_outputs), (_, d_x0), (_, d_context), (_, d_noise) = pairs
    weights: tuple[Tensor | None, ...] = (None,) * 5
    if of_weights:
        weights = _weight_gradients(operands, kept, sizes, d_outputs)
    d_table = None if sums is None else sums.view(-1, sizes.steps, 5).sum(0)
    return Differentiable(d_x0, d_context, *weights, d_table, d_noise).only(needed)


def _widths(sizes: Sizes) -> dict[str, int]:
    padded = {"D_PAD": next_power_of_2(sizes.latent), "C_PAD": next_power_of_2(max(1, sizes.context))}
    return {"D": sizes.latent, "C": sizes.context, **padded}


def _weight_gradients(operands: SleepOperands, kept: SleepResults, sizes: Sizes, d_outputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the weights; rows count over all groups, as those with an index do."""
    flat, matrices = sizes._replace(rows=sizes.rows * sizes.lanes, indexed=True), kept.matrices
    prepared = Prepared(matrices, kept.biases, matrices.shape[1] == 2)
    sums = WeightSums(operands.weights, flat, prepared, operands.residual, kept.order, kept.starts, by_step=True)
    sums.add(kept.states, operands.context, kept.signs, d_outputs)
    return sums.result()


def compilations() -> Iterator[Compilation]:
    """Representative variants for ahead-of-time compilation: gradients of context, weights and a learned table, at the usual width."""
    for variant in variants():
        sizes = variant.sizes
        if sizes.hidden < 128:
            continue
        x0, *tensors, state = sizes.meta_tensors()
        t, upstream = state.new_empty(sizes.rows), x0.new_empty(sizes.rows)
        operands = SleepOperands(x0, t, *tensors, None, *sizes.meta_index(), state, 0, sizes.rows, "huber", True, variant.precision)
        keep = _operands.OF_WEIGHTS | _operands.OF_CONTEXT | _operands.OF_TABLE * variant.learned
        kept = SleepResults.empty(operands, upstream, keep).with_weights(operands)
        needed = Differentiable(False, *[True] * 6, variant.learned, False)
        call = backward, operands, kept, upstream, needed
        yield from filter(variant.of_interest, recorded(f"{variant.name} by step", *call, architectures=variant.architectures))
