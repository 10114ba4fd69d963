"""Weight gradients of the denoiser in Triton: products of layer inputs and gradients before the ReLUs, summed over steps and rows.

The backward passes of chain and sleep write the factors. Each program owns a slice of the entries and one part of the result, and adds to
what it wrote in the calls before, so that sums have one order; the caller adds the slices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.chain_options import PRODUCTS, SCRATCH_BYTES, Sizes
from ddvi_fast.kernels.common import group_part, launch, tile_total
from ddvi_fast.kernels.network import hidden_product

# Fewest entries (a row at a step) that one program sums, and most programs that share a sum.
_MIN_SLICE, _MAX_SLICES = 512, 32


@triton.jit
def group_entries(starts, group, row_begin, rows_here, entries, slice_size, part, slices):
    """The slice `part` of a group's entries: its first and last place among them, their first row in a step, and their rows in each step.

    Without an index all entries of a lane are those of its group. Places are 32-bit numbers with an index, to save registers.
    """
    if starts is None:
        begin = tl.cast(part, tl.int64) * slice_size
        return begin, tl.minimum(begin + slice_size, entries), 0, rows_here
    else:
        first, width = group_part(starts, group, row_begin, rows_here)
        first, width = first.to(tl.int32), width.to(tl.int32)
        count = entries // rows_here * width
        size = tl.cdiv(count, slices)
        return part * size, tl.minimum(part * size + size, count), first, width


@triton.jit
def entry_of(starts, place, first, width, rows_here):
    """Entry of a `place` among those of a group: a step's entries are `rows_here` apart from those of the next."""
    if starts is None:
        return place
    else:
        return place // width * rows_here + first + place % width


@triton.jit(do_not_specialize=["entries", "slice_size", "row_begin", "rows_here"])
def denoiser_bwd_kernel_hidden(
    low,  # [G, 7, E, H]
    starts,  # [G + 1] or None; with an index `low` has no axis G
    partial,  # [slices, G, 3, H, H]
    entries, slice_size, row_begin, rows_here,
    H: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """`partial` += gradient before a ReLU, transposed, times the matrix's input, both planes of `low`."""
    BLOCKS: tl.constexpr = H // BM
    which, part, group = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    layer, block = which // (BLOCKS * BLOCKS), which % (BLOCKS * BLOCKS)
    across_m = (block // BLOCKS) * BM + tl.arange(0, BM)
    across_n = (block % BLOCKS) * BM + tl.arange(0, BM)
    plane = tl.cast(entries, tl.int64) * H
    lane = group if starts is None else 0
    inputs = low + (lane * 7 + layer) * plane + across_n[None, :]
    upstream = low + (lane * 7 + 3 + layer) * plane + across_m[None, :]
    out = partial + ((part * tl.num_programs(2) + group) * 3 + layer) * H * H + across_m[:, None] * H + across_n[None, :]
    begin, end, start, width = group_entries(starts, group, row_begin, rows_here, entries, slice_size, part, tl.num_programs(1))
    total = tl.zeros((BM, BM), tl.float32)
    for at in range(begin, end, BK):
        place = (at + tl.arange(0, BK))[:, None]
        entry = entry_of(starts, place, start, width, rows_here)
        d = tl.load(upstream + entry * H, place < end, 0.0)
        x = tl.load(inputs + entry * H, place < end, 0.0)
        total = hidden_product(tl.trans(d), x, total, PRODUCT)
    tl.store(out, tl.load(out) + total)


@triton.jit(do_not_specialize=["rows", "steps", "row_begin", "rows_here", "step_begin", "entries", "slice_size"])
def denoiser_bwd_kernel_ends(
    wide,  # [G, 2, E, H]
    outputs,  # [G, E, D]
    trajectory,  # [T + 1, G, R, D]
    context,  # [G, R, C] or None
    order, starts,  # [R] and [G + 1], or None; with an index the four arrays above have no axis G
    first_partial,  # [slices, G, H, D + C]
    last_partial,  # [slices, G, D, H]
    bias_partial,  # [slices, G, D]
    rows, steps, row_begin, rows_here, step_begin, entries, slice_size,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Add the gradients of first and last layer to the partial sums, in float32 (tensor cores on tf32 triples, good to about 2^-22)."""
    block, part, group, groups = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64), tl.num_programs(2)
    across = block * BM + tl.arange(0, BM)
    columns = tl.arange(0, D_PAD)
    of_context = tl.arange(0, C_PAD)
    plane = tl.cast(entries, tl.int64) * H
    lane, lanes = (group, groups) if starts is None else (0, 1)
    fourth, d_first = wide + lane * 2 * plane + across[None, :], wide + (lane * 2 + 1) * plane + across[None, :]
    begin, end, start, width = group_entries(starts, group, row_begin, rows_here, entries, slice_size, part, tl.num_programs(1))
    first_total, last_total = tl.zeros((BM, D_PAD), tl.float32), tl.zeros((BM, D_PAD), tl.float32)
    context_total, bias_total = tl.zeros((BM, C_PAD), tl.float32), tl.zeros((D_PAD,), tl.float32)
    for at in range(begin, end, BK):
        place = at + tl.arange(0, BK)
        there = (place < end)[:, None]
        entry = entry_of(starts, place, start, width, rows_here)
        step = step_begin + entry // rows_here
        row = lane * rows + row_begin + entry % rows_here
        if starts is not None:
            row = tl.load(order + row, place < end, 0)
        state = trajectory + ((steps - 1 - step) * lanes * rows + row)[:, None] * D + columns[None, :]
        inside = there & (columns < D)[None, :]
        d_output = tl.load(outputs + (lane * entries + entry)[:, None] * D + columns[None, :], inside, 0.0)
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


@triton.jit(do_not_specialize=["row_begin", "rows_here", "width"])
def denoiser_bwd_kernel_tiles(
    sums,  # [tiles, width]
    starts,  # [G + 1]
    total,  # [G, width]
    row_begin, rows_here, width,
    BN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`total` gets the sums over the tiles of each group, which are consecutive."""
    group = tl.program_id(1)
    across = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    begin = tile_total(starts, group, row_begin, rows_here, BN)
    end = tile_total(starts, group + 1, row_begin, rows_here, BN)
    found = tl.zeros((BLOCK,), tl.float32)
    for tile in range(begin, end):
        found += tl.load(sums + tile * width + across, across < width, 0.0)
    tl.store(total + tl.cast(group, tl.int64) * width + across, found, across < width)


class WeightGradient:
    """Weight gradients of one backward pass: scratch memory for a piece of it, products of each piece, and the sums at the end.

    `tile` is the number of rows of the tiles that sums for the time table belong to.
    """

    def __init__(self, sizes: Sizes, precision: str, like: Tensor, order: Tensor | None, starts: Tensor | None, tile: int) -> None:
        self.sizes, self.like, self.order, self.starts, self.tile = sizes, like, order, starts, tile
        self.low_type, self.product = PRODUCTS[precision]
        rows, steps = self.piece_sizes(64)
        g, d, c, h = sizes.groups, sizes.latent, sizes.context, sizes.hidden
        self.slices = max(1, min(_MAX_SLICES, rows * steps // (_MIN_SLICE * (g if sizes.indexed else 1))))
        self.hidden = like.new_zeros((self.slices, g, 3, h, h))
        self.first = like.new_zeros((self.slices, g, h, d + c))
        self.last = like.new_zeros((self.slices, g, d, h))
        self.last_bias = like.new_zeros((self.slices, g, d))
        self.table = like.new_zeros((g, sizes.steps, 4, h))

    def piece_sizes(self, tile_rows: int) -> tuple[int, int]:
        """Number of rows and steps whose scratch fits into the bound: all rows of few steps if possible, since a step's rows are independent."""
        s = self.sizes
        entry = s.lanes * (s.hidden * (7 * self.low_type.itemsize + 8) + 8 * s.latent)
        rows = max(1, min(s.rows, max(1, SCRATCH_BYTES // entry // tile_rows) * tile_rows))
        return rows, max(1, min(s.steps, SCRATCH_BYTES // (entry * rows)))

    def scratch(self, tiles: int, rows: int, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Memory that the backward kernel writes for a piece: `low`, `wide`, `outputs` and `table_sums`."""
        g, h, new = self.sizes.lanes, self.sizes.hidden, self.like.new_empty
        low = new((g, 7, steps * rows, h), dtype=self.low_type)
        return low, new((g, 2, steps * rows, h)), new((g, steps * rows, self.sizes.latent)), new((tiles, g, steps, 4, h))

    def add(
        self, trajectory: Tensor, context: Tensor | None, row_begin: int, rows: int, step_begin: int, steps: int, written: tuple[Tensor | None, ...]
    ) -> None:
        """Add a piece, whose scratch is `written`; without sums for the time table, that gradient stays as it is."""
        s = self.sizes
        low, wide, outputs, table_sums = written
        entries = rows * steps
        slice_size = triton.cdiv(entries, self.slices)
        options = hidden_options(s.hidden, self.low_type)
        grid = (3 * (s.hidden // options["BM"]) ** 2, self.slices, s.groups)
        places = (entries, slice_size, row_begin, rows)
        launch(denoiser_bwd_kernel_hidden, grid, low, self.starts, self.hidden, *places, H=s.hidden, PRODUCT=self.product, **options)
        launch(
            denoiser_bwd_kernel_ends, (s.hidden // 64, self.slices, s.groups),
            wide, outputs, trajectory, context, self.order, self.starts, self.first, self.last, self.last_bias,
            s.rows, s.steps, row_begin, rows, step_begin, entries, slice_size, **ends_constexprs(s), **ENDS_OPTIONS,
        )  # fmt: skip
        if table_sums is not None:
            self.table[:, step_begin : step_begin + steps] += self._sum_tiles(table_sums, row_begin, rows)

    def _sum_tiles(self, table_sums: Tensor, row_begin: int, rows: int) -> Tensor:
        """The sums over tiles [tiles, G, steps, 4, H], or with an index [tiles, 1, steps, 4, H], as those over groups [G, steps, 4, H]."""
        if self.starts is None:
            return table_sums.sum(0)
        total, width = table_sums.new_empty((self.sizes.groups, *table_sums.shape[2:])), table_sums[0].numel()
        grid = (triton.cdiv(width, _TILE_SUMS["BLOCK"]), self.sizes.groups)
        launch(denoiser_bwd_kernel_tiles, grid, table_sums, self.starts, total, row_begin, rows, width, BN=self.tile, **_TILE_SUMS)
        return total

    def result(self, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gradients of first, hidden, last, last_bias and time_table, in the shapes of these five, `like`."""
        sums = (self.first.sum(0), self.hidden.sum(0), self.last.sum(0), self.last_bias.sum(0), self.table)
        return tuple(total.view(weight.shape) for total, weight in zip(sums, like, strict=True))


_TILE_SUMS = {"BLOCK": 512, "num_warps": 4}
ENDS_OPTIONS = {"BM": 64, "BK": 32, "num_warps": 4, "num_stages": 2}


def hidden_options(hidden: int, dtype: torch.dtype) -> dict[str, int]:
    """Meta-parameters of the products of the hidden matrices."""
    if dtype == torch.float32:
        return {"BM": 64, "BK": 32, "num_warps": 4, "num_stages": 2}
    return {"BM": min(hidden, 128), "BK": 64, "num_warps": 8 if hidden > 64 else 4, "num_stages": 3}


def ends_constexprs(sizes: Sizes) -> dict[str, int]:
    """Sizes, with widths padded to at least 16: a product of tensor cores takes no fewer columns."""
    wide = {"D_PAD": max(16, triton.next_power_of_2(sizes.latent)), "C_PAD": max(16, triton.next_power_of_2(max(1, sizes.context)))}
    return {"D": sizes.latent, "C": sizes.context, "H": sizes.hidden, **wide}
