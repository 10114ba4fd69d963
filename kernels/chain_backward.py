"""The gradient of the denoising chain on one tile of rows: activations recomputed a step at a time from the trajectory, the state's
gradient carried from `z` up to the start.

Weight gradients are sums over rows and steps, so they are left to kernels/weight_gradient.py: this kernel writes, for a bounded number of
steps and rows, each layer's input and the gradient before each ReLU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.chain_options import PRODUCTS, Sizes, launch_options
from ddvi_fast.kernels.common import ARCHITECTURES, POINTERS, Compilation, architecture, compilation, on_device, splits_of
from ddvi_fast.kernels.network import (
    add, add_bias_relu, gate, hidden_layers, input_gradient, input_product, load_hidden, multiply, narrow_to, output_gradient, output_product,
)  # fmt: skip
from ddvi_fast.kernels.rng import draw_index, step_noise
from ddvi_fast.kernels.weight_gradient import WeightGradient


@triton.jit
def _emit(plane, x, place, mask, CHUNKS: tl.constexpr, BH: tl.constexpr):
    for j in tl.static_range(CHUNKS):
        tl.store(plane + (place[:, None] + (j * BH + tl.arange(0, BH))[None, :]), x[j], mask[:, None])


@triton.jit
def _emit_sum(out, x, CHUNKS: tl.constexpr, BH: tl.constexpr):
    """The sum over rows, for the time table."""
    for j in tl.static_range(CHUNKS):
        tl.store(out + j * BH + tl.arange(0, BH), tl.sum(x[j], axis=0))


@triton.jit(
    do_not_specialize=["offset", "rows", "rows_per_sample", "steps", "row_begin", "rows_here", "step_begin", "steps_here", "streaming"]
)
def backward_kernel(
    context, first, hidden, last, last_bias, table, coefficients, noise, state, trajectory,
    d_path, d_trajectory, carried, d_context, d_noise, low, wide, outputs, table_sums, coefficient_sums,
    offset, rows, rows_per_sample, steps, row_begin, rows_here, step_begin, steps_here, streaming,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BN: tl.constexpr,
    NOISY: tl.constexpr, KEEP: tl.constexpr, RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Steps `step_begin` to `step_begin + steps_here - 1` of `rows_here` rows from `row_begin` on of each group.

    `carried` [.., R, D] holds the gradient of the state below these steps and gets that of the state above them; `d_context` is added to.
    With E = steps_here * rows_here entries a group: `low` [G, 6, E, H] gets the inputs of the three hidden matrices and the gradients
    before their ReLUs, `wide` [G, 2, E, H] (float32) the fourth activation and the gradient before the first ReLU, `outputs` [G, E, D] the
    gradient of the network's output; `table_sums` [tiles, G, steps_here, 4, H] and `coefficient_sums` [tiles, G, steps_here, 5] sums over
    the tile. All of these may be absent.
    """
    CHUNKS: tl.constexpr = H // BH
    group, groups, tile = tl.program_id(1).to(tl.int64), tl.num_programs(1), tl.program_id(0)
    within = tile * BN + tl.arange(0, BN)
    present = within < rows_here
    row = group * rows + row_begin + within
    columns = tl.arange(0, D_PAD)
    inside = present[:, None] & (columns < D)[None, :]
    place = row[:, None] * D + columns[None, :]
    step_stride = groups.to(tl.int64) * rows * D
    entries = tl.cast(steps_here, tl.int64) * rows_here
    first += group * H * (D + C)
    hidden += group * 3 * H * H
    last += group * D * H
    last_bias += group * D
    table += group * steps * 4 * H

    u = tl.load(carried + place, inside, 0.0)
    following = tl.load(trajectory + (steps - step_begin) * step_stride + place, inside, 0.0)
    if d_path is not None:
        p = tl.load(d_path + row, present, 0.0)[:, None]
    if C > 0:
        across = tl.arange(0, C_PAD)
        context_place = row[:, None] * C + across[None, :]
        in_context = present[:, None] & (across < C)[None, :]
        c = tl.load(context + context_place, in_context, 0.0)
        if d_context is not None:
            d_c = tl.load(d_context + context_place, in_context, 0.0)
    index = row
    if state is not None:
        index = draw_index(state, offset, row, rows_per_sample)
    blocks = load_hidden(hidden, H, BH, KEEP)
    for i in range(steps_here):
        step = step_begin + i
        k = coefficients + 5 * step
        row_of_table = table + step * 4 * H
        here = tl.multiple_of(step * streaming, 16)
        if d_trajectory is not None:
            u += tl.load(d_trajectory + (steps - step) * step_stride + place, inside, 0.0)
        y = tl.load(trajectory + (steps - step - 1) * step_stride + place, inside, 0.0)

        # With e = y - a y', a step's log-ratio is (|xi|^2 + 2 D log s - |e|^2 / beta - D log beta) / 2.
        if d_path is not None:
            scale, inverse_beta = tl.load(k + 3), 1.0 / tl.load(k + 4)
            away = (y - scale * following) * inverse_beta
            u += p * scale * away
            direct = tl.load(k) * u - p * away
        else:
            direct = tl.load(k) * u
        d_output = tl.load(k + 1) * u
        if NOISY:
            deviation = tl.load(k + 2)
            if d_noise is not None or coefficient_sums is not None:
                xi = step_noise(noise, state, index, place, inside, step, step_stride, D_PAD)
            if d_noise is not None:
                d_xi = deviation * u
                if d_path is not None:
                    d_xi += p * xi
                tl.store(d_noise + step * step_stride + place, d_xi, inside)

        x1 = input_product(y, first + here, D + C, D, D_PAD, H, BH)
        if C > 0:
            x1 = add(x1, input_product(c, first + D + here, D + C, C, C_PAD, H, BH), CHUNKS)
        x1 = narrow_to(add_bias_relu(x1, row_of_table, H, BH), hidden, CHUNKS)
        x2, x3, summed, x4 = hidden_layers(x1, blocks, hidden + here, row_of_table, H, BH, KEEP, RESIDUAL, PRODUCT)
        if coefficient_sums is not None:
            output = output_product(x4, last + here, last_bias, D, D_PAD, H, BH)
            sums = coefficient_sums + ((tile * groups + group) * steps_here + i) * 5
            tl.store(sums, tl.sum(u * y))
            tl.store(sums + 1, tl.sum(u * output))
            d_deviation = tl.sum(u * xi) if NOISY else 0.0
            d_scale, d_beta = 0.0, 0.0
            if d_path is not None:
                d_deviation += D * tl.sum(p) / deviation
                d_scale = tl.sum(p * away * following)
                d_beta = 0.5 * (tl.sum(p * away * away) - D * tl.sum(p) * inverse_beta)
            tl.store(sums + 2, d_deviation)
            tl.store(sums + 3, d_scale)
            tl.store(sums + 4, d_beta)

        d4 = gate(output_gradient(d_output, last + here, D, D_PAD, H, BH), x4, CHUNKS)
        if low is not None:
            entry = tl.cast(i, tl.int64) * rows_here + within
            at = entry * H
            plane = entries * H
            to_low, to_wide = low + group * 6 * plane, wide + group * 2 * plane
            _emit(to_wide, x4, at, present, CHUNKS, BH)
            _emit(to_low, x1, at, present, CHUNKS, BH)
            _emit(to_low + plane, x2, at, present, CHUNKS, BH)
            _emit(to_low + 2 * plane, summed, at, present, CHUNKS, BH)
            tl.store(outputs + group * entries * D + entry[:, None] * D + columns[None, :], d_output, inside)
            sums = table_sums + ((tile * groups + group) * steps_here + i) * 4 * H
            _emit_sum(sums + 3 * H, d4, CHUNKS, BH)
        d4 = narrow_to(d4, hidden, CHUNKS)
        d_summed = multiply(d4, blocks, hidden + here, 2, False, H, BH, KEEP, PRODUCT)
        d3 = gate(d_summed, x3, CHUNKS)
        if low is not None:
            _emit(to_low + 5 * plane, d4, at, present, CHUNKS, BH)
            _emit_sum(sums + 2 * H, d3, CHUNKS, BH)
        d3 = narrow_to(d3, hidden, CHUNKS)
        d2 = gate(multiply(d3, blocks, hidden + here, 1, False, H, BH, KEEP, PRODUCT), x2, CHUNKS)
        if low is not None:
            _emit(to_low + 4 * plane, d3, at, present, CHUNKS, BH)
            _emit_sum(sums + H, d2, CHUNKS, BH)
        d2 = narrow_to(d2, hidden, CHUNKS)
        d1 = multiply(d2, blocks, hidden + here, 0, False, H, BH, KEEP, PRODUCT)
        if RESIDUAL:
            d1 = add(d1, d_summed, CHUNKS)
        d1 = gate(d1, x1, CHUNKS)
        if low is not None:
            _emit(to_low + 3 * plane, d2, at, present, CHUNKS, BH)
            _emit(to_wide + plane, d1, at, present, CHUNKS, BH)
            _emit_sum(sums, d1, CHUNKS, BH)
        u = direct + input_gradient(d1, first + here, D + C, D, D_PAD, H, BH)
        if d_context is not None:
            d_c += input_gradient(d1, first + D + here, D + C, C, C_PAD, H, BH)
        following = y
    if d_trajectory is not None:
        if step_begin + steps_here == steps:
            u += tl.load(d_trajectory + place, inside, 0.0)
    tl.store(carried + place, u, inside)
    if d_context is not None:
        tl.store(d_context + context_place, d_c, in_context)


def backward(
    y_T: Tensor, context: Tensor | None, first: Tensor, hidden: Tensor, last: Tensor, last_bias: Tensor, time_table: Tensor,
    coefficients: Tensor, noise: Tensor | None, state: Tensor | None, offset: int, rows_per_sample: int, residual: bool, precision: str,
    trajectory: Tensor, d_z: Tensor | None, d_path: Tensor | None, d_trajectory: Tensor | None, needed: list[bool],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of y_T, context, the five weights, coefficients and noise where `needed`, from those of the three results of `forward`.

    Memory beyond the results is `chain_options.SCRATCH_BYTES` and partial sums, whatever T and R are.
    """
    sizes = Sizes.of(y_T, context, first, coefficients)
    carried = y_T.new_zeros(y_T.shape) if d_z is None else d_z.clone()
    d_context = context.new_zeros(context.shape) if needed[1] and context is not None else None
    d_noise = noise.new_empty(noise.shape) if needed[8] and noise is not None else None
    d_coefficients = coefficients.new_zeros(coefficients.shape) if needed[7] else None
    sums = WeightGradient(sizes, precision, y_T) if any(needed[2:7]) else None
    options = launch_options(architecture(y_T.device), sizes.hidden, sizes.latent, precision, backward=True)
    fixed = sizes.constexprs(residual, precision) | options
    low_hidden = hidden.to(PRODUCTS[precision][0])
    row_size, step_size = (sizes.rows, sizes.steps) if sums is None else sums.piece_sizes(options["BN"])
    noisy = noise is not None or state is not None
    with on_device(y_T):
        for row_begin, rows_here in splits_of(sizes.rows, row_size):
            tiles = triton.cdiv(rows_here, options["BN"])
            for step_begin, steps_here in splits_of(sizes.steps, step_size):
                written = (None,) * 4 if sums is None else sums.scratch(tiles, rows_here, steps_here)
                parts = y_T.new_empty((tiles, sizes.groups, steps_here, 5)) if needed[7] else None
                backward_kernel[(tiles, sizes.groups)](
                    context, first, low_hidden, last, last_bias, time_table, coefficients, noise, state if noise is None else None, trajectory,
                    d_path, d_trajectory, carried, d_context, d_noise, *written, parts,
                    offset, sizes.rows, max(1, rows_per_sample), sizes.steps, row_begin, rows_here, step_begin, steps_here, 0,
                    NOISY=noisy, **fixed,
                )  # fmt: skip
                if sums is not None:
                    sums.add(trajectory, context, row_begin, rows_here, step_begin, steps_here, written)
                if parts is not None:
                    d_coefficients[step_begin : step_begin + steps_here] += parts.sum((0, 1))
    weights = (None,) * 5 if sums is None else sums.result(first, hidden, last, last_bias, time_table)
    gradients = [carried, d_context, *weights, d_coefficients, d_noise]
    return [gradient if need else None for need, gradient in zip(needed, gradients, strict=True)]


_TYPES = {
    "context": "*fp32", "first": "*fp32", "last": "*fp32", "last_bias": "*fp32", "table": "*fp32", "coefficients": "*fp32",
    "state": "*i64", "trajectory": "*fp32", "d_path": "*fp32", "carried": "*fp32", "d_context": "*fp32",
    "wide": "*fp32", "outputs": "*fp32", "table_sums": "*fp32", "coefficient_sums": "*fp32",
    "offset": "i32", "rows": "i32", "rows_per_sample": "i32", "steps": "i32",
    "row_begin": "i32", "rows_here": "i32", "step_begin": "i32", "steps_here": "i32", "streaming": "i32",
}  # fmt: skip


def compilations() -> Iterator[Compilation]:
    """Representative variants: gradients of everything but noise."""
    for arch in ARCHITECTURES:
        for precision in ("float32", "bf16"):
            for hidden in (64, 128, 256):
                for latent in (2, 16):
                    yield _compilation(arch, Sizes(1, 128, latent, 2, hidden, 40), precision)


def _compilation(arch: int, sizes: Sizes, precision: str) -> Compilation:
    options = launch_options(arch, sizes.hidden, sizes.latent, precision, backward=True)
    warps, stages = options.pop("num_warps"), options.pop("num_stages")
    low = POINTERS[PRODUCTS[precision][0]]
    values = {"noise": None, "d_trajectory": None, "d_noise": None, "NOISY": True, **sizes.constexprs(True, precision), **options}
    name = f"chain backward D={sizes.latent} H={sizes.hidden} {precision}"
    return compilation(name, backward_kernel, _TYPES | {"hidden": low, "low": low}, values, num_warps=warps, num_stages=stages, architectures=(arch,))
