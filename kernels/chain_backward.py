"""The gradient of the denoising chain on one tile of rows: activations recomputed a step at a time from the trajectory, the state's
gradient carried from `z` up to the start.

Weight gradients are sums over rows and steps, so they are left to kernels/weight_gradient.py: this kernel writes, for a bounded number of
steps and rows, each layer's input and the gradient before each ReLU.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.chain_options import PRODUCTS, Sizes, launch_options
from ddvi_fast.kernels.common import ARCHITECTURES, POINTERS, Compilation, architecture, compilation, on_device, splits_of
from ddvi_fast.kernels.network import (
    bias_relu,
    input_gradient,
    input_product,
    load_columns,
    output_gradient,
    output_product,
    store_columns,
    streamed_product,
)  # fmt: skip
from ddvi_fast.kernels.rng import draw_index, step_noise
from ddvi_fast.kernels.weight_gradient import WeightGradient


@triton.jit(do_not_specialize=["offset", "rows", "rows_per_sample", "steps", "row_begin", "rows_here", "step_begin", "steps_here"])
def backward_kernel(
    context, first, hidden, last, last_bias, table, coefficients, noise, state, trajectory,
    d_path, d_trajectory, carried, d_context, d_noise, low, wide, outputs, table_sums, coefficient_sums,
    offset, rows, rows_per_sample, steps, row_begin, rows_here, step_begin, steps_here,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BN: tl.constexpr,
    BH: tl.constexpr, BK: tl.constexpr, NOISY: tl.constexpr, RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """Steps `step_begin` to `step_begin + steps_here - 1` of `rows_here` rows from `row_begin` on of each group.

    `carried` [.., R, D] holds the gradient of the state below these steps and gets that of the state above them; `d_context` is added to.
    With E = steps_here * rows_here entries a group: `low` [G, 7, E, H] gets the inputs of the three hidden matrices, the gradients before
    their ReLUs and the third activation, `wide` [G, 2, E, H] (float32) the fourth activation and the gradient before the first ReLU,
    `outputs` [G, E, D] the gradient of the network's output; `table_sums` [tiles, G, steps_here, 4, H] and `coefficient_sums`
    [tiles, G, steps_here, 5] (may be absent) sums over the tile. What one loop over columns writes the next one reads, from cache.
    """
    group, groups, tile = tl.program_id(1).to(tl.int64), tl.num_programs(1), tl.program_id(0)
    in_tile, lanes = tl.arange(0, BN), tl.arange(0, BH)
    within = tile * BN + in_tile
    present = within < rows_here
    row = group * rows + row_begin + within
    columns = tl.arange(0, D_PAD)
    inside = present[:, None] & (columns < D)[None, :]
    place = row[:, None] * D + columns[None, :]
    step_stride = groups.to(tl.int64) * rows * D
    entries = tl.cast(steps_here, tl.int64) * rows_here
    plane = entries * H
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
    for i in range(steps_here):
        step = step_begin + i
        k = coefficients + 5 * step
        bias = table + step * 4 * H
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

        if coefficient_sums is not None:  # all but the second, which waits for the output
            coefficient = coefficient_sums + ((tile * groups + group) * steps_here + i) * 5
            d_deviation = tl.sum(u * xi) if NOISY else 0.0
            d_scale, d_beta = 0.0, 0.0
            if d_path is not None:
                d_deviation += D * tl.sum(p) / deviation
                d_scale = tl.sum(p * away * following)
                d_beta = 0.5 * (tl.sum(p * away * away) - D * tl.sum(p) * inverse_beta)
            tl.store(coefficient, tl.sum(u * y))
            tl.store(coefficient + 2, d_deviation)
            tl.store(coefficient + 3, d_scale)
            tl.store(coefficient + 4, d_beta)
        entry = tl.cast(i, tl.int64) * rows_here + tile * BN
        x1 = low + (group * 7 * entries + entry) * H
        x2, summed, d2, d3, d4, x3 = x1 + plane, x1 + 2 * plane, x1 + 3 * plane, x1 + 4 * plane, x1 + 5 * plane, x1 + 6 * plane
        x4 = wide + (group * 2 * entries + entry) * H
        d1 = x4 + plane
        tl.store(outputs + (group * entries + entry) * D + in_tile[:, None] * D + columns[None, :], d_output, inside)
        sums = table_sums + ((tile * groups + group) * steps_here + i) * 4 * H

        for j in range(0, H, BH):
            x = input_product(y, first + j * (D + C), D + C, D, D_PAD, BH)
            if C > 0:
                x += input_product(c, first + j * (D + C) + D, D + C, C, C_PAD, BH)
            store_columns(x1, bias_relu(x, bias + j, BH), present, j, H, BH)
        tl.debug_barrier()
        for j in range(0, H, BH):
            x = streamed_product(x1, hidden, present, j, False, H, BH, BK, PRODUCT)
            store_columns(x2, bias_relu(x, bias + H + j, BH), present, j, H, BH)
        tl.debug_barrier()
        for j in range(0, H, BH):
            x = bias_relu(streamed_product(x2, hidden + H * H, present, j, False, H, BH, BK, PRODUCT), bias + 2 * H + j, BH)
            if RESIDUAL:
                store_columns(x3, x, present, j, H, BH)
                x += load_columns(x1, present, j, H, BH)
            store_columns(summed, x, present, j, H, BH)
        tl.debug_barrier()
        output = tl.zeros((BN, D_PAD), tl.float32)
        for j in range(0, H, BH):
            x = bias_relu(streamed_product(summed, hidden + 2 * H * H, present, j, False, H, BH, BK, PRODUCT), bias + 3 * H + j, BH)
            store_columns(x4, x, present, j, H, BH)
            if coefficient_sums is not None:
                output += output_product(x, last + j, H, D, D_PAD, BH)
            d = tl.where(x > 0, output_gradient(d_output, last + j, H, D, D_PAD, BH), 0.0)
            store_columns(d4, d, present, j, H, BH)
            tl.store(sums + 3 * H + j + lanes, tl.sum(d, axis=0))
        tl.debug_barrier()
        for j in range(0, H, BH):
            d = streamed_product(d4, hidden + 2 * H * H, present, j, True, H, BH, BK, PRODUCT)
            if RESIDUAL:
                store_columns(d1, d, present, j, H, BH)  # until it is added below
                d = tl.where(load_columns(x3, present, j, H, BH) > 0, d, 0.0)
            else:
                d = tl.where(load_columns(summed, present, j, H, BH) > 0, d, 0.0)
            store_columns(d3, d, present, j, H, BH)
            tl.store(sums + 2 * H + j + lanes, tl.sum(d, axis=0))
        tl.debug_barrier()
        for j in range(0, H, BH):
            d = streamed_product(d3, hidden + H * H, present, j, True, H, BH, BK, PRODUCT)
            d = tl.where(load_columns(x2, present, j, H, BH) > 0, d, 0.0)
            store_columns(d2, d, present, j, H, BH)
            tl.store(sums + H + j + lanes, tl.sum(d, axis=0))
        tl.debug_barrier()
        d_y = tl.zeros((BN, D_PAD), tl.float32)
        for j in range(0, H, BH):
            d = streamed_product(d2, hidden, present, j, True, H, BH, BK, PRODUCT)
            if RESIDUAL:
                d += load_columns(d1, present, j, H, BH)
            d = tl.where(load_columns(x1, present, j, H, BH) > 0, d, 0.0)
            store_columns(d1, d, present, j, H, BH)
            tl.store(sums + j + lanes, tl.sum(d, axis=0))
            d_y += input_gradient(d, first + j * (D + C), D + C, D, D_PAD, BH)
            if d_context is not None:
                d_c += input_gradient(d, first + j * (D + C) + D, D + C, C, C_PAD, BH)
        if coefficient_sums is not None:
            output += tl.load(last_bias + columns, columns < D, 0.0)[None, :]
            tl.store(coefficient + 1, tl.sum(u * output))
        u = direct + d_y
        following = y
    if d_trajectory is not None:  # noqa: SIM102 - decided when it is compiled, unlike the next
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
    sums = WeightGradient(sizes, precision, y_T)
    of_weights = any(needed[2:7])
    options = launch_options(architecture(y_T.device), sizes.hidden, sizes.latent, precision, backward=True)
    options.pop("KEEP")
    fixed = sizes.constexprs(residual, precision, dots=True) | options
    low_hidden = hidden.to(PRODUCTS[precision][0])
    row_size, step_size = sums.piece_sizes(options["BN"])
    noisy = noise is not None or state is not None
    with on_device(y_T):
        for row_begin, rows_here in splits_of(sizes.rows, row_size):
            tiles = triton.cdiv(rows_here, options["BN"])
            for step_begin, steps_here in splits_of(sizes.steps, step_size):
                written = sums.scratch(tiles, rows_here, steps_here)
                parts = y_T.new_empty((tiles, sizes.groups, steps_here, 5)) if needed[7] else None
                backward_kernel[(tiles, sizes.groups)](
                    context, first, low_hidden, last, last_bias, time_table, coefficients, noise, state if noise is None else None, trajectory,
                    d_path, d_trajectory, carried, d_context, d_noise, *written, parts,
                    offset, sizes.rows, max(1, rows_per_sample), sizes.steps, row_begin, rows_here, step_begin, steps_here,
                    NOISY=noisy, **fixed,
                )  # fmt: skip
                if of_weights:
                    sums.add(trajectory, context, row_begin, rows_here, step_begin, steps_here, written)
                if parts is not None:
                    d_coefficients[step_begin : step_begin + steps_here] += parts.sum((0, 1))
    weights = (None,) * 5 if not of_weights else sums.result(first, hidden, last, last_bias, time_table)
    gradients = [carried, d_context, *weights, d_coefficients, d_noise]
    return [gradient if need else None for need, gradient in zip(needed, gradients, strict=True)]


_TYPES = {
    "context": "*fp32", "first": "*fp32", "last": "*fp32", "last_bias": "*fp32", "table": "*fp32", "coefficients": "*fp32",
    "state": "*i64", "trajectory": "*fp32", "d_path": "*fp32", "carried": "*fp32", "d_context": "*fp32",
    "wide": "*fp32", "outputs": "*fp32", "table_sums": "*fp32", "coefficient_sums": "*fp32",
    "offset": "i32", "rows": "i32", "rows_per_sample": "i32", "steps": "i32",
    "row_begin": "i32", "rows_here": "i32", "step_begin": "i32", "steps_here": "i32",
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
    options.pop("KEEP")
    low = POINTERS[PRODUCTS[precision][0]]
    values = {"noise": None, "d_trajectory": None, "d_noise": None, "NOISY": True, **sizes.constexprs(True, precision, dots=True), **options}
    name = f"chain backward D={sizes.latent} H={sizes.hidden} {precision}"
    return compilation(name, backward_kernel, _TYPES | {"hidden": low, "low": low}, values, num_warps=warps, num_stages=stages, architectures=(arch,))
