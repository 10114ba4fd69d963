"""The sleep term's regression in Triton: its rows sorted by step, and device functions of its loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast._operands import SleepOperands
from ddvi_fast.kernels.chain_options import PREPARED, Prepared, Sizes, preparation
from ddvi_fast.kernels.common import cdiv, launch
from ddvi_fast.kernels.layers import denoiser_operands_kernel


@triton.jit
def penalty(error, LOSS: tl.constexpr):
    size = tl.abs(error)
    if LOSS == "squared":
        return error * error
    elif LOSS == "absolute":
        return size
    else:
        return tl.where(size < 1, 0.5 * error * error, size - 0.5)


@triton.jit
def slope(error, LOSS: tl.constexpr):
    """The derivative of `penalty`; that of |e| is 0 at 0."""
    sign = tl.where(error > 0, 1.0, tl.where(error < 0, -1.0, error))
    if LOSS == "squared":
        return 2 * error
    elif LOSS == "absolute":
        return sign
    else:
        return tl.where(tl.abs(error) < 1, error, sign)


class Segments(NamedTuple):
    """Rows sorted by group and step: those of one group at one step are a segment, and number g T + s stands for group g at step s."""

    order: Tensor  # int64 [rows]
    starts: Tensor  # int64 [G T + 1]


@triton.jit
def _block(t, order, starts, begin, rows, groups, steps, ROWS: tl.constexpr):
    """ROWS rows, in the order of their groups, and their segments; -1 where there is no row, or none of a group that exists.

    A row whose step does not exist is sorted to the first.
    """
    place = begin + tl.arange(0, ROWS)  # 32 bits, which is enough for rows in the memory of one device
    there = place < rows * groups
    if starts is None:
        row, group = place, place // rows
    else:
        there = place < tl.load(starts + groups)
        row, group = tl.load(order + place, there, 0), tl.zeros((ROWS,), tl.int32)
        for g in range(1, groups):
            group += (place >= tl.load(starts + g)).to(tl.int32)
    step = tl.load(t + row, there, 0)
    segment = group * steps + tl.where((step >= 0) & (step < steps), step, 0).to(tl.int32)
    return row, tl.where(there, segment, -1)


@triton.jit(do_not_specialize=["count", "table_rows", "programs", "rows", "groups", "steps", "share"])
def sleep_fwd_kernel_prepare(
    hidden, time_table, matrices, table,  # as in `denoiser_operands_kernel`
    t,  # [G, R]
    order, starts,  # [R] and [G + 1], or None; with an index `t` has no axis G, and its rows count once
    counts,  # [parts, G T]
    sorted_rows, sorted_starts,  # as in `sleep_fwd_kernel_sort`, or None
    count, table_rows, programs, rows, groups, steps, share,
    H: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """The denoiser's operands in the first `programs` programs; in the others the number of rows of each segment in a part of the rows.

    With `sorted_rows` there is one part, which is sorted, too.
    """
    if tl.program_id(0) < programs:
        denoiser_operands_kernel(hidden, time_table, matrices, table, count, table_rows, H, BLOCK, EXACT)
    else:
        part = tl.program_id(0) - programs
        for first in range(0, groups * steps, KEYS):
            key = first + tl.arange(0, KEYS)
            found = tl.zeros((KEYS,), tl.int32)
            for i in range(share):
                _, segment = _block(t, order, starts, (part * share + i) * ROWS, rows, groups, steps, ROWS)
                found += tl.sum((segment[:, None] == key[None, :]).to(tl.int32), axis=0)
            tl.store(counts + tl.cast(part, tl.int64) * (groups * steps) + key, found, key < groups * steps)
        if sorted_rows is not None:
            tl.debug_barrier()  # other threads wrote these counts
            _sort(t, order, starts, counts, sorted_rows, sorted_starts, 0, 1, rows, groups, steps, share, ROWS, KEYS, PARTS)


@triton.jit(do_not_specialize=["rows", "groups", "steps", "share"])
def sleep_fwd_kernel_sort(
    t, order, starts, counts,  # as in `sleep_fwd_kernel_prepare`
    sorted_rows,  # [rows]
    sorted_starts,  # [G T + 1]
    rows, groups, steps, share,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Put the rows of a part behind those of earlier segments, and of the same segment in earlier parts."""
    part, parts = tl.program_id(0), tl.num_programs(0)
    _sort(t, order, starts, counts, sorted_rows, sorted_starts, part, parts, rows, groups, steps, share, ROWS, KEYS, PARTS)


@triton.jit
def _sort(
    t, order, starts, counts, sorted_rows, sorted_starts, part, parts, rows, groups, steps, share,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    across = tl.arange(0, ROWS)
    earlier_rows = tl.where(across[None, :] < across[:, None], 1.0, 0.0).to(tl.float16)
    before = tl.zeros((1,), tl.int32)
    for first in range(0, groups * steps, KEYS):
        key = first + tl.arange(0, KEYS)
        total, earlier = tl.zeros((KEYS,), tl.int32), tl.zeros((KEYS,), tl.int32)
        for at in range(0, parts, PARTS):
            other = at + tl.arange(0, PARTS)
            there = (other < parts)[:, None] & (key < groups * steps)[None, :]
            found = tl.load(counts + other[:, None].to(tl.int64) * (groups * steps) + key[None, :], there, 0)
            total += tl.sum(found, axis=0)
            earlier += tl.sum(tl.where(other[:, None] < part, found, 0), axis=0)
        upto = tl.cumsum(total, 0) + before
        tl.store(sorted_starts + key + 1, upto.to(tl.int64), (key < groups * steps) & (part == 0))
        free = upto - total + earlier
        for i in range(share):
            row, segment = _block(t, order, starts, (part * share + i) * ROWS, rows, groups, steps, ROWS)
            mine = segment[:, None] == key[None, :]
            alike = tl.dot(earlier_rows, tl.where(mine, 1.0, 0.0).to(tl.float16))  # earlier rows of each segment
            place = tl.sum(tl.where(mine, free[None, :], 0), axis=1) + tl.sum(tl.where(mine, alike, 0.0), axis=1).to(tl.int32)
            tl.store(sorted_rows + place, row, (segment >= first) & (segment < first + KEYS))
            free += tl.sum(mine.to(tl.int32), axis=0)
        before += tl.sum(total, axis=0)
    if part == 0:
        tl.store(sorted_starts, tl.cast(0, tl.int64))


_OPTIONS = {"ROWS": 128, "KEYS": 64, "num_warps": 4, "num_stages": 1}
_PARTS = 256  # most parts that count their rows


def prepared_and_sorted(operands: SleepOperands, sizes: Sizes) -> tuple[Prepared, Segments]:
    """Operands that every program reads, and the rows sorted by group and step; the rows of a segment keep their order."""
    t, order, starts = operands.t, operands.order, operands.starts
    rows, segments = t.numel(), sizes.groups * sizes.steps
    found = Segments(t.new_empty(rows, dtype=torch.int64), t.new_empty(segments + 1, dtype=torch.int64))
    share = cdiv(cdiv(rows, _OPTIONS["ROWS"]), _PARTS)
    parts = cdiv(rows, _OPTIONS["ROWS"] * share)
    counts = t.new_empty(parts, segments, dtype=torch.int32)
    places = sizes.rows, sizes.groups, sizes.steps, share
    weights, programs, numbers = preparation(operands.hidden, operands.time_table, operands.precision)
    now = found if parts == 1 else (None, None)
    launch(
        sleep_fwd_kernel_prepare, (programs + parts,),
        operands.hidden, operands.time_table, weights.matrices, weights.table, t, order, starts, counts, *now, *numbers, programs, *places,
        H=sizes.hidden, EXACT=weights.two, BLOCK=PREPARED["BLOCK"], PARTS=1 if parts == 1 else 64, **_OPTIONS,
    )  # fmt: skip
    if parts > 1:
        launch(sleep_fwd_kernel_sort, (parts,), t, order, starts, counts, *found, *places, PARTS=64, **_OPTIONS)
    return weights, found
