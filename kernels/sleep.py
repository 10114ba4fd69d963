"""Sleep term's regression in Triton: noising, denoiser and loss of a tile of rows in one kernel, each row at a step of its own."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast._operands import SleepOperands
from ddvi_fast.kernels.chain_options import PRODUCTS, Sizes, one_step_options, unusable_denoiser, variants
from ddvi_fast.kernels.common import Compilation, architecture, launch, recorded, tile_rows, tile_total
from ddvi_fast.kernels.network import run_forward
from ddvi_fast.kernels.sleep_backward import backward
from ddvi_fast.kernels.sleep_common import constexprs, context_tile, noised, penalty

__all__ = ["backward", "compilations", "forward", "unsupported"]

_PROGRAMS = 1024  # enough to fill a device several times over


@triton.jit(do_not_specialize=["offset", "groups", "rows", "rows_per_sample", "steps"])
def sleep_fwd_kernel(
    x0,  # [G, R, D]
    t,  # [G, R]
    context,  # [G, R, C] or None
    first, hidden, last, last_bias, time_table,  # [G, H, D + C], [G, 3, H, H], [G, D, H], [G, D], [G, T, 4, H]
    table,  # [T, 5]
    noise,  # [G, R, D] or None
    order, starts,  # [R] and [G + 1], or None; with an index the arrays of rows have no axis G
    state,  # [2] or None
    scratch,  # [G, programs, 2, BN, H]
    loss,  # [G, R]
    offset, groups, rows, rows_per_sample, steps,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr, LOSS: tl.constexpr,
):  # fmt: skip
    """Compute the loss of each row. A program loops over tiles of its lane, with its activations in `scratch`, which stays in the cache."""
    lane = tl.program_id(1).to(tl.int64)
    scratch += (lane * tl.num_programs(0) + tl.program_id(0)) * 2 * BN * H
    tiles = tl.cdiv(rows, BN) if starts is None else tile_total(starts, groups, 0, rows, BN).to(tl.int32)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), disable_licm=True):
        group, _, _, alive, row = tile_rows(order, starts, lane, groups, rows, 0, rows, tile, BN)
        clean, eps, step, signal, deviation, c0, c1, weight, _, inside = noised(
            x0, t, table, noise, state, row, alive, offset, rows_per_sample, steps, D, D_PAD
        )
        bias = time_table + (group * steps + step[:, None]) * 4 * H
        y = signal * clean + deviation * eps
        c = context_tile(context, y, row, alive, C, C_PAD)
        output = run_forward(
            y, c, first + group * H * (D + C), hidden + group * 3 * H * H, last + group * D * H, bias,
            scratch, scratch + BN * H, None, scratch, None, alive,
            D, C, D_PAD, C_PAD, H, BH, BK, RESIDUAL, PRODUCT,
        )  # fmt: skip
        output += tl.load(last_bias + group * D + tl.arange(0, D_PAD), tl.arange(0, D_PAD) < D, 0.0)[None, :]
        error = tl.where(inside, output - (c0 * clean + c1 * eps), 0.0)
        if starts is not None and BN > 32:  # found again: kept all the way, many rows would take registers from the network
            tl.debug_barrier()
            _, _, _, alive, row = tile_rows(order, starts, lane, groups, rows, 0, rows, tile, BN)
        tl.store(loss + row, weight * tl.sum(penalty(error, LOSS), axis=1), alive)


def unsupported(precision: str = "float32", **tensors: Tensor | None) -> str | None:
    """The reason why the kernels cannot run this regression, or None if they can; `tensors` are its float32 operands by name."""
    return unusable_denoiser(sleep_fwd_kernel, "regression", precision, **tensors)


def forward(operands: SleepOperands) -> Tensor:
    """`reference.sleep.denoising_loss` [.., R].

    A row whose step is not in the table gets NaN: a check beforehand would stall the device.
    """
    x0, t, context, first, hidden, last, last_bias, time_table, table, noise, order, starts, _, offset, each, loss, residual, precision = operands
    sizes = Sizes.of(x0, context, first, table, starts)
    value = sizes.empty(x0, *t.shape)
    if value.numel() == 0:
        return value
    options = one_step_options(architecture(x0.device), precision)
    hidden = hidden.to(PRODUCTS[precision][0])
    programs = min(sizes.tiles(sizes.rows, options["BN"]), max(1, _PROGRAMS // sizes.lanes))
    scratch = hidden.new_empty((sizes.lanes * programs, 2, options["BN"], sizes.hidden))
    launch(
        sleep_fwd_kernel, (programs, sizes.lanes),
        x0, t, context, first, hidden, last, last_bias, time_table, table, noise, order, starts, operands.drawn_from, scratch, value,
        offset, sizes.groups, sizes.rows, max(1, each), sizes.steps, **constexprs(sizes, residual, precision, loss), **options,
    )  # fmt: skip
    return value


def compilations() -> Iterator[Compilation]:
    """Representative variants for ahead-of-time compilation: drawn noise."""
    for name, sizes, precision in variants():
        x0, *tensors, state = sizes.meta_tensors()
        t = state.new_empty(sizes.rows)
        operands = SleepOperands(x0, t, *tensors, None, *sizes.meta_index(), state, 0, sizes.rows, "huber", True, precision)
        yield from recorded(name, forward, operands)
