"""Weight gradients of the denoiser from what the chain's backward pass wrote: products summed over steps and rows.

Each program owns a slice of the entries and one part of the result, and adds to what it wrote in the calls before, so that sums have one
order; the caller adds the slices.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.chain_options import PRODUCTS, SCRATCH_BYTES, Sizes
from ddvi_fast.kernels.common import POINTERS, Compilation, compilation
from ddvi_fast.kernels.network import hidden_product

# Entries (a row at a step) that one program sums at least, and programs that share a sum at most.
_MIN_SLICE, _MAX_SLICES = 512, 32


@triton.jit(do_not_specialize=["entries", "slice_size"])
def hidden_kernel(low, partial, entries, slice_size, H: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, PRODUCT: tl.constexpr):
    """`partial` [slices, G, 3, H, H] += gradient before a ReLU, transposed, times the matrix's input, of the planes `low` [G, 7, E, H]."""
    BLOCKS: tl.constexpr = H // BM
    which, part, group = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    layer, block = which // (BLOCKS * BLOCKS), which % (BLOCKS * BLOCKS)
    across_m = (block // BLOCKS) * BM + tl.arange(0, BM)
    across_n = (block % BLOCKS) * BM + tl.arange(0, BM)
    plane = tl.cast(entries, tl.int64) * H
    inputs = low + (group * 7 + layer) * plane + across_n[None, :]
    upstream = low + (group * 7 + 3 + layer) * plane + across_m[None, :]
    out = partial + ((part * tl.num_programs(2) + group) * 3 + layer) * H * H + across_m[:, None] * H + across_n[None, :]
    begin = tl.cast(part, tl.int64) * slice_size
    end = tl.minimum(begin + slice_size, entries)
    total = tl.zeros((BM, BM), tl.float32)
    for at in range(begin, end, BK):
        entry = (at + tl.arange(0, BK))[:, None]
        d = tl.load(upstream + entry * H, entry < end, 0.0)
        x = tl.load(inputs + entry * H, entry < end, 0.0)
        total = hidden_product(tl.trans(d), x, total, PRODUCT)
    tl.store(out, tl.load(out) + total)


@triton.jit(do_not_specialize=["rows", "steps", "row_begin", "rows_here", "step_begin", "entries", "slice_size"])
def ends_kernel(
    wide, outputs, trajectory, context, first_partial, last_partial, bias_partial,
    rows, steps, row_begin, rows_here, step_begin, entries, slice_size,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Of first and last layer, in float32 (products of tensor cores on tf32 triples, good to about 2^-22).

    Adds to `first_partial` [slices, G, H, D + C], `last_partial` [slices, G, D, H] and `bias_partial` [slices, G, D].
    """
    block, part, group, groups = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64), tl.num_programs(2)
    across = block * BM + tl.arange(0, BM)
    columns = tl.arange(0, D_PAD)
    of_context = tl.arange(0, C_PAD)
    plane = tl.cast(entries, tl.int64) * H
    fourth, d_first = wide + group * 2 * plane + across[None, :], wide + (group * 2 + 1) * plane + across[None, :]
    begin = tl.cast(part, tl.int64) * slice_size
    end = tl.minimum(begin + slice_size, entries)
    first_total, last_total = tl.zeros((BM, D_PAD), tl.float32), tl.zeros((BM, D_PAD), tl.float32)
    context_total, bias_total = tl.zeros((BM, C_PAD), tl.float32), tl.zeros((D_PAD,), tl.float32)
    for at in range(begin, end, BK):
        entry = at + tl.arange(0, BK)
        there = (entry < end)[:, None]
        step = step_begin + entry // rows_here
        row = group * rows + row_begin + entry % rows_here
        state = trajectory + ((steps - 1 - step) * groups * rows + row)[:, None] * D + columns[None, :]
        inside = there & (columns < D)[None, :]
        d_output = tl.load(outputs + (group * entries + entry)[:, None] * D + columns[None, :], inside, 0.0)
        x4 = tl.load(fourth + entry[:, None] * H, there, 0.0)
        last_total = tl.dot(tl.trans(x4), d_output, last_total, input_precision="tf32x3")
        bias_total += tl.sum(d_output, axis=0)
        d1 = tl.trans(tl.load(d_first + entry[:, None] * H, there, 0.0))
        first_total = tl.dot(d1, tl.load(state, inside, 0.0), first_total, input_precision="tf32x3")
        if C > 0:
            c = tl.load(context + row[:, None] * C + of_context[None, :], there & (of_context < C)[None, :], 0.0)
            context_total = tl.dot(d1, c, context_total, input_precision="tf32x3")
    slot = part * groups + group
    mask = (columns < D)[None, :]
    out = last_partial + slot * D * H + columns[None, :] * H + across[:, None]
    tl.store(out, tl.load(out, mask, 0.0) + last_total, mask)
    out = first_partial + (slot * H + across)[:, None] * (D + C)
    tl.store(out + columns[None, :], tl.load(out + columns[None, :], mask, 0.0) + first_total, mask)
    if C > 0:
        out, mask = out + D + of_context[None, :], (of_context < C)[None, :]
        tl.store(out, tl.load(out, mask, 0.0) + context_total, mask)
    if block == 0:
        bias_out = bias_partial + slot * D + columns
        tl.store(bias_out, tl.load(bias_out, columns < D, 0.0) + bias_total, columns < D)


class WeightGradient:
    """Sums of one backward pass: scratch memory for a piece of it, products of each piece, and the gradients at the end."""

    def __init__(self, sizes: Sizes, precision: str, like: Tensor) -> None:
        self.sizes, self.like = sizes, like
        self.low_type, self.product = PRODUCTS[precision]
        rows, steps = self.piece_sizes(64)
        g, d, c, h = sizes.groups, sizes.latent, sizes.context, sizes.hidden
        self.slices = max(1, min(_MAX_SLICES, rows * steps // _MIN_SLICE))
        self.hidden = like.new_zeros((self.slices, g, 3, h, h))
        self.first = like.new_zeros((self.slices, g, h, d + c))
        self.last = like.new_zeros((self.slices, g, d, h))
        self.last_bias = like.new_zeros((self.slices, g, d))
        self.table = like.new_zeros((g, sizes.steps, 4, h))

    def piece_sizes(self, tile_rows: int) -> tuple[int, int]:
        """Rows and steps whose scratch fits into the bound: all rows of few steps if possible, since a step's rows are independent."""
        s = self.sizes
        entry = s.groups * (s.hidden * (7 * self.low_type.itemsize + 8) + 8 * s.latent)
        rows = max(1, min(s.rows, max(1, SCRATCH_BYTES // entry // tile_rows) * tile_rows))
        return rows, max(1, min(s.steps, SCRATCH_BYTES // (entry * rows)))

    def scratch(self, tiles: int, rows: int, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the backward kernel writes of a piece: `low`, `wide`, `outputs` and `table_sums`."""
        g, h, new = self.sizes.groups, self.sizes.hidden, self.like.new_empty
        low = new((g, 7, steps * rows, h), dtype=self.low_type)
        return low, new((g, 2, steps * rows, h)), new((g, steps * rows, self.sizes.latent)), new((tiles, g, steps, 4, h))

    def add(
        self, trajectory: Tensor, context: Tensor | None, row_begin: int, rows: int, step_begin: int, steps: int, written: tuple[Tensor | None, ...]
    ) -> None:
        """Adds a piece; without sums for the time table it is left as it is."""
        s = self.sizes
        low, wide, outputs, table_sums = written
        entries = rows * steps
        slice_size = triton.cdiv(entries, self.slices)
        options = hidden_options(s.hidden, self.low_type)
        hidden_kernel[(3 * (s.hidden // options["BM"]) ** 2, self.slices, s.groups)](
            low, self.hidden, entries, slice_size, H=s.hidden, PRODUCT=self.product, **options
        )
        ends_kernel[(s.hidden // 64, self.slices, s.groups)](
            wide, outputs, trajectory, context, self.first, self.last, self.last_bias,
            s.rows, s.steps, row_begin, rows, step_begin, entries, slice_size, **ends_constexprs(s), **ENDS_OPTIONS,
        )  # fmt: skip
        if table_sums is not None:
            self.table[:, step_begin : step_begin + steps] += table_sums.sum(0)

    def result(self, *like: Tensor) -> tuple[Tensor, ...]:
        """Gradients of first, hidden, last, last_bias and time_table, in the shapes of `like`."""
        sums = (self.first.sum(0), self.hidden.sum(0), self.last.sum(0), self.last_bias.sum(0), self.table)
        return tuple(total.view(weight.shape) for total, weight in zip(sums, like, strict=True))


ENDS_OPTIONS = {"BM": 64, "BK": 32, "num_warps": 4, "num_stages": 2}


def hidden_options(hidden: int, dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float32:
        return {"BM": 64, "BK": 32, "num_warps": 4, "num_stages": 2}
    return {"BM": min(hidden, 128), "BK": 64, "num_warps": 8 if hidden > 64 else 4, "num_stages": 3}


def ends_constexprs(sizes: Sizes) -> dict[str, int]:
    """Widths are padded to 16 at least: a product of tensor cores takes no fewer columns."""
    wide = {"D_PAD": max(16, triton.next_power_of_2(sizes.latent)), "C_PAD": max(16, triton.next_power_of_2(max(1, sizes.context)))}
    return {"D": sizes.latent, "C": sizes.context, "H": sizes.hidden, **wide}


def compilations() -> Iterator[Compilation]:
    """Representative variants."""
    integers = dict.fromkeys(("rows", "steps", "row_begin", "rows_here", "step_begin", "entries", "slice_size"), "i32")
    pointers = dict.fromkeys(("wide", "outputs", "trajectory", "context", "first_partial", "last_partial", "bias_partial"), "*fp32")
    for hidden in (64, 128, 256):
        for precision in ("float32", "bf16"):
            dtype, product = PRODUCTS[precision]
            options = hidden_options(hidden, dtype)
            launch = {name: options.pop(name) for name in ("num_warps", "num_stages")}
            types = {"low": POINTERS[dtype], "partial": "*fp32", "entries": "i32", "slice_size": "i32"}
            yield compilation(f"hidden H={hidden} {precision}", hidden_kernel, types, {"H": hidden, "PRODUCT": product, **options}, **launch)
        for latent in (2, 16):
            options = dict(ENDS_OPTIONS)
            launch = {name: options.pop(name) for name in ("num_warps", "num_stages")}
            values = {**ends_constexprs(Sizes(1, 128, latent, 2, hidden, 40)), **options}
            yield compilation(f"ends D={latent} H={hidden}", ends_kernel, integers | pointers, values, **launch)
