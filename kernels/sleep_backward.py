"""The gradient of the sleep term's regression: each tile of rows is noised and run through the denoiser again, and then backwards.

Weight gradients are sums over rows, left to kernels/weight_gradient.py: for a bounded number of rows at a time this kernel writes each
layer's input and the gradient before each ReLU. Rows of one step are summed by products with the step's indicator, in a fixed order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.chain_options import HIDDEN, PRODUCTS, SCRATCH_BYTES, Sizes, one_step_options
from ddvi_fast.kernels.common import ARCHITECTURES, POINTERS, Compilation, architecture, compilation, on_device, splits_of
from ddvi_fast.kernels.network import hidden_product, run_backward, run_forward
from ddvi_fast.kernels.regression import constexprs, context_tile, noised, penalty, slope
from ddvi_fast.kernels.weight_gradient import WeightGradient


@triton.jit(do_not_specialize=["offset", "rows", "rows_per_sample", "steps", "row_begin", "rows_here"])
def backward_kernel(
    x0, t, context, first, hidden, last, last_bias, table, columns, noise, state, upstream,
    d_x0, d_context, d_noise, states, low, wide, outputs, numbers,
    offset, rows, rows_per_sample, steps, row_begin, rows_here,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr, LOSS: tl.constexpr,
):  # fmt: skip
    """Of E = rows_here rows from `row_begin` on of each group; gradients of inputs, `states` and `numbers` may be absent.

    `low` [G, 7, E, H] gets the inputs of the three hidden matrices, the gradients before their ReLUs and the third activation, `wide`
    [G, 2, E, H] (float32) the fourth activation and the gradient before the first ReLU; `states` [G, R, D] the noised latents and
    `outputs` [G, E, D] the gradient of the network's output; `numbers` [G, E, 5] what each row adds to its entry of the table.
    """
    group = tl.program_id(1).to(tl.int64)
    within = tl.program_id(0) * BN + tl.arange(0, BN)
    alive = within < rows_here
    row = group * rows + row_begin + within
    first += group * H * (D + C)
    hidden += group * 3 * H * H
    last += group * D * H
    last_bias += group * D
    begin, plane = tl.program_id(0).to(tl.int64) * BN * H, tl.cast(rows_here, tl.int64) * H
    x1, x4 = low + (group * 7 * plane + begin), wide + (group * 2 * plane + begin)
    x2, summed, d2, d3, d4, x3, d1 = x1 + plane, x1 + 2 * plane, x1 + 3 * plane, x1 + 4 * plane, x1 + 5 * plane, x1 + 6 * plane, x4 + plane
    clean, eps, step, signal, deviation, c0, c1, weight, place, inside = noised(
        x0, t, columns, noise, state, row, alive, offset, rows_per_sample, steps, D, D_PAD
    )
    bias = table + (group * steps + step[:, None]) * 4 * H
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
    to_outputs = outputs + (group * rows_here + within)[:, None] * D + tl.arange(0, D_PAD)[None, :]
    tl.store(to_outputs, d_output, inside)
    if numbers is not None:
        to_numbers = numbers + (group * rows_here + within) * 5
        tl.store(to_numbers + 4, above * tl.sum(penalty(error, LOSS), axis=1), alive)
    d_y, d_c = run_backward(
        d_output, first, hidden, last, x1, x2, x3, x4, d1, d2, d3, d4, None, alive,
        D, C, D_PAD, C_PAD, H, BH, BK, RESIDUAL, d_context is not None, PRODUCT,
    )  # fmt: skip
    if d_context is not None:
        across = tl.arange(0, C_PAD)
        tl.store(d_context + row[:, None] * C + across[None, :], d_c, alive[:, None] & (across < C)[None, :])
    # Made again: held all the way, latents and noise would cost the network its registers.
    tl.debug_barrier()
    clean, eps, step, signal, deviation, c0, c1, weight, place, inside = noised(
        x0, t, columns, noise, state, row, alive, offset, rows_per_sample, steps, D, D_PAD
    )
    d_output = tl.load(to_outputs, inside, 0.0)
    if d_x0 is not None:
        tl.store(d_x0 + place, signal * d_y - c0 * d_output, inside)
    if d_noise is not None:
        tl.store(d_noise + place, deviation * d_y - c1 * d_output, inside)
    if numbers is not None:
        tl.store(to_numbers, tl.sum(d_y * clean, axis=1), alive)
        tl.store(to_numbers + 1, tl.sum(d_y * eps, axis=1), alive)
        tl.store(to_numbers + 2, -tl.sum(d_output * clean, axis=1), alive)
        tl.store(to_numbers + 3, -tl.sum(d_output * eps, axis=1), alive)


@triton.jit(do_not_specialize=["rows", "row_begin", "entries", "slice_size", "steps", "group_stride", "layers"])
def by_step_kernel(
    values, t, partial, rows, row_begin, entries, slice_size, steps, group_stride, layers,
    WIDTH: tl.constexpr, BM: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """`partial` [slices, G, T, layers, WIDTH] += the sum over each step's rows of planes [E, WIDTH], `group_stride` apart between groups.

    The first program axis counts blocks of columns, then of steps, then planes: plane p goes to layer p of `partial`.
    """
    COLUMN_BLOCKS: tl.constexpr = (WIDTH + BM - 1) // BM
    which, part, group = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    step_blocks = tl.cdiv(steps, BT)
    plane = which // COLUMN_BLOCKS // step_blocks
    at = which // COLUMN_BLOCKS % step_blocks * BT + tl.arange(0, BT)
    across = which % COLUMN_BLOCKS * BM + tl.arange(0, BM)
    values += group * group_stride + tl.cast(plane, tl.int64) * entries * WIDTH
    begin = tl.cast(part, tl.int64) * slice_size
    end = tl.minimum(begin + slice_size, entries)
    total = tl.zeros((BT, BM), tl.float32)
    for start in range(begin, end, BK):
        entry = start + tl.arange(0, BK)
        step = tl.load(t + group * rows + row_begin + entry, entry < end, -1)
        x = tl.load(values + entry[:, None] * WIDTH + across[None, :], (entry < end)[:, None] & (across < WIDTH)[None, :], 0.0)
        total = hidden_product(tl.where(at[:, None] == step[None, :], 1.0, 0.0).to(x.dtype), x, total, PRODUCT)
    out = partial + (((part * tl.num_programs(2) + group) * steps + at[:, None]) * layers + plane) * WIDTH + across[None, :]
    mask = (at < steps)[:, None] & (across < WIDTH)[None, :]
    tl.store(out, tl.load(out, mask, 0.0) + total, mask)


BY_STEP = {"BT": 64, "BK": 32, "num_warps": 4, "num_stages": 2}


class RowSums:
    """Sums of one backward pass over the rows of each step and over all rows: of weights, time table and table."""

    def __init__(self, sizes: Sizes, precision: str, t: Tensor, like: Tensor) -> None:
        self.products = WeightGradient(one_step(sizes), precision, like)
        self.sizes, self.t = sizes, t
        self.states = like.new_empty((sizes.groups, sizes.rows, sizes.latent))
        self.table = like.new_zeros((self.products.slices, sizes.groups, sizes.steps, 4, sizes.hidden))

    def add(self, context: Tensor | None, row_begin: int, rows: int, low: Tensor, wide: Tensor, outputs: Tensor) -> None:
        """Adds what was written of some rows."""
        self.products.add(self.states, context, row_begin, rows, 0, 1, (low, wide, outputs, None))
        width = self.sizes.hidden
        sum_by_step(low[:, 3:6], self.t, self.table[..., 1:, :], self.sizes, row_begin, rows, width, self.products.product)
        sum_by_step(wide[:, 1:], self.t, self.table, self.sizes, row_begin, rows, width, "tf32x3")

    def result(self, *like: Tensor) -> tuple[Tensor, ...]:
        """Gradients of first, hidden, last, last_bias and time_table."""
        self.products.table = self.table.sum(0)
        return self.products.result(*like)


def one_step(sizes: Sizes) -> Sizes:
    """To the products over rows it is a chain of one step."""
    return replace(sizes, steps=1)


def sum_by_step(values: Tensor, t: Tensor, partial: Tensor, sizes: Sizes, row_begin: int, rows: int, width: int, product: str) -> None:
    """Adds planes `values` [G, P, E, W] to the first P layers of `partial` [slices, G, T, layers, W]; both may be parts of wider tensors."""
    slices, steps = partial.shape[0], sizes.steps
    columns = min(64, max(16, triton.next_power_of_2(width)))
    grid = (triton.cdiv(width, columns) * triton.cdiv(steps, BY_STEP["BT"]) * values.shape[1], slices, sizes.groups)
    by_step_kernel[grid](
        values, t, partial, sizes.rows, row_begin, rows, triton.cdiv(rows, slices), steps, values.stride(0), partial.stride(2) // width,
        WIDTH=width, BM=columns, PRODUCT=product, **BY_STEP,
    )  # fmt: skip


def piece_rows(sizes: Sizes, low_type: torch.dtype, tile: int) -> int:
    """Rows of each group, a multiple of the tile, whose planes fit into `SCRATCH_BYTES`."""
    row = sizes.groups * sizes.hidden * (7 * low_type.itemsize + 8)
    return max(tile, SCRATCH_BYTES // row // tile * tile)


def backward(
    x0: Tensor, t: Tensor, context: Tensor | None, first: Tensor, hidden: Tensor, last: Tensor, last_bias: Tensor, time_table: Tensor,
    table: Tensor, noise: Tensor | None, state: Tensor | None, offset: int, rows_per_sample: int, loss: str, residual: bool, precision: str,
    upstream: Tensor, needed: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of x0, context, the five weights, table and noise under `upstream` [.., R]; None where not needed.

    The same bits every time. Memory beyond the results is `chain_options.SCRATCH_BYTES`, R (D + 5) floats, and partial sums.
    """
    sizes = Sizes.of(x0, context, first, table)
    sources = (x0, context, first, hidden, last, last_bias, time_table, table, noise)
    needed = [need and source is not None for need, source in zip(needed, sources, strict=True)]
    if t.numel() == 0:
        return [torch.zeros_like(source) if need else None for need, source in zip(needed, sources, strict=True)]
    d_x0, d_context, d_noise = (torch.empty_like(sources[i]) if needed[i] else None for i in (0, 1, 8))
    sums = RowSums(sizes, precision, t, x0) if any(needed[2:7]) else None
    column_sums = x0.new_zeros((1, sizes.groups, sizes.steps, 1, 5)) if needed[7] else None
    options = one_step_options(architecture(x0.device), precision)
    low_type, _ = PRODUCTS[precision]
    low_hidden = hidden.to(low_type)
    with on_device(x0):
        for row_begin, rows_here in splits_of(sizes.rows, piece_rows(sizes, low_type, options["BN"])):
            low = x0.new_empty((sizes.groups, 7, rows_here, sizes.hidden), dtype=low_type)
            wide = x0.new_empty((sizes.groups, 2, rows_here, sizes.hidden))
            outputs = x0.new_empty((sizes.groups, rows_here, sizes.latent))
            numbers = x0.new_empty((sizes.groups, 1, rows_here, 5)) if needed[7] else None
            backward_kernel[triton.cdiv(rows_here, options["BN"]), sizes.groups](
                x0, t, context, first, low_hidden, last, last_bias, time_table, table, noise, state if noise is None else None, upstream,
                d_x0, d_context, d_noise, None if sums is None else sums.states, low, wide, outputs, numbers,
                offset, sizes.rows, max(1, rows_per_sample), sizes.steps, row_begin, rows_here,
                **constexprs(sizes, residual, precision, loss), **options,
            )  # fmt: skip
            if sums is not None:
                sums.add(context, row_begin, rows_here, low, wide, outputs)
            if numbers is not None:
                sum_by_step(numbers, t, column_sums, sizes, row_begin, rows_here, 5, "tf32x3")
    of_weights = (None,) * 5 if sums is None else sums.result(first, hidden, last, last_bias, time_table)
    d_table = None if column_sums is None else column_sums.sum((0, 1)).view(table.shape)
    gradients = [d_x0, d_context, *of_weights, d_table, d_noise]
    return [gradient if need else None for need, gradient in zip(needed, gradients, strict=True)]


_TYPES = {
    "x0": "*fp32", "t": "*i64", "context": "*fp32", "first": "*fp32", "last": "*fp32", "last_bias": "*fp32", "table": "*fp32", "columns": "*fp32",
    "state": "*i64", "upstream": "*fp32", "d_context": "*fp32", "states": "*fp32", "wide": "*fp32", "outputs": "*fp32", "numbers": "*fp32",
    "offset": "i32", "rows": "i32", "rows_per_sample": "i32", "steps": "i32", "row_begin": "i32", "rows_here": "i32",
}  # fmt: skip


def compilations() -> Iterator[Compilation]:
    """Representative variants: gradients of context, weights and table, as training takes them."""
    for arch, precision, hidden, latent in itertools.product(ARCHITECTURES, ("float32", "bf16"), HIDDEN, (2, 16)):
        yield _compilation(arch, Sizes(1, 128, latent, 2, hidden, 40), precision)
    for values, width, product in (("*bf16", 128, "tf32"), ("*fp32", 128, "tf32x3"), ("*fp32", 5, "tf32x3")):
        yield _by_step_compilation(values, width, product)


def _compilation(arch: int, sizes: Sizes, precision: str) -> Compilation:
    options = one_step_options(arch, precision)
    warps, stages = options.pop("num_warps"), options.pop("num_stages")
    low = POINTERS[PRODUCTS[precision][0]]
    values = {"noise": None, "d_x0": None, "d_noise": None, **constexprs(sizes, True, precision, "huber"), **options}
    name = f"backward D={sizes.latent} H={sizes.hidden} {precision}"
    return compilation(name, backward_kernel, _TYPES | {"hidden": low, "low": low}, values, num_warps=warps, num_stages=stages, architectures=(arch,))


def _by_step_compilation(values: str, width: int, product: str) -> Compilation:
    options = dict(BY_STEP)
    warps, stages = options.pop("num_warps"), options.pop("num_stages")
    numbers = ("rows", "row_begin", "entries", "slice_size", "steps", "group_stride", "layers")
    types = {"values": values, "t": "*i64", "partial": "*fp32"} | dict.fromkeys(numbers, "i32")
    constants = {"WIDTH": width, "BM": min(64, max(16, triton.next_power_of_2(width))), "PRODUCT": product, **options}
    name = f"sums by step {width} columns {values[1:]}"
    return compilation(name, by_step_kernel, types, constants, num_warps=warps, num_stages=stages)
