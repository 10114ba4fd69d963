"""The sleep term's regression in Triton: noising, denoiser and loss of a tile of rows in one kernel, each row at a step of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.chain_options import HIDDEN, PRODUCTS, Sizes, one_step_options
from ddvi_fast.kernels.common import ARCHITECTURES, POINTERS, Compilation, architecture, compilation, on_device, unusable
from ddvi_fast.kernels.network import run_forward
from ddvi_fast.kernels.regression import constexprs, context_tile, noised, penalty
from ddvi_fast.kernels.sleep_backward import backward

__all__ = ["backward", "compilations", "forward", "unsupported"]

_PROGRAMS = 1024  # enough to fill a device several times over


@triton.jit(do_not_specialize=["offset", "rows", "rows_per_sample", "steps"])
def _forward_kernel(
    x0, t, context, first, hidden, last, last_bias, table, columns, noise, state, scratch, loss,
    offset, rows, rows_per_sample, steps,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BH: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr, LOSS: tl.constexpr,
):  # fmt: skip
    """A program walks through tiles of its group; its activations stand in `scratch` [programs, 2, BN, H], which stays in the cache."""
    group = tl.program_id(1).to(tl.int64)
    first += group * H * (D + C)
    hidden += group * 3 * H * H
    last += group * D * H
    last_bias += group * D
    scratch += (group * tl.num_programs(0) + tl.program_id(0)) * 2 * BN * H
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, BN), tl.num_programs(0), disable_licm=True):
        local = tile * BN + tl.arange(0, BN)
        row, alive = group * rows + local, local < rows
        clean, eps, step, signal, deviation, c0, c1, weight, _, inside = noised(
            x0, t, columns, noise, state, row, alive, offset, rows_per_sample, steps, D, D_PAD
        )
        bias = table + (group * steps + step[:, None]) * 4 * H
        y = signal * clean + deviation * eps
        c = context_tile(context, y, row, alive, C, C_PAD)
        output = run_forward(
            y, c, first, hidden, last, bias, scratch, scratch + BN * H, None, scratch, None, alive,
            D, C, D_PAD, C_PAD, H, BH, BK, RESIDUAL, PRODUCT,
        )  # fmt: skip
        output += tl.load(last_bias + tl.arange(0, D_PAD), tl.arange(0, D_PAD) < D, 0.0)[None, :]
        error = tl.where(inside, output - (c0 * clean + c1 * eps), 0.0)
        tl.store(loss + row, weight * tl.sum(penalty(error, LOSS), axis=1), alive)


def unsupported(precision: str = "float32", hidden: Tensor | None = None, **tensors: Tensor | None) -> str | None:
    """Why the kernels cannot run this regression, or None. `tensors` are float32 ones by name: x0, context, the weights, table, noise."""
    reason = unusable(_forward_kernel, hidden=hidden, **tensors)
    if reason is not None:
        return reason
    if hidden is not None and hidden.shape[-1] not in HIDDEN:
        return f"denoiser: the Triton regression takes hidden widths {', '.join(map(str, HIDDEN))}, got {hidden.shape[-1]}"
    for name in ("x0", "context"):
        width = 0 if tensors.get(name) is None else tensors[name].shape[-1]
        if width > 64:
            return f"{name}: the Triton regression takes at most 64 columns, got {width}"
    if precision not in PRODUCTS:
        return f"precision: expected one of {', '.join(PRODUCTS)}, got {precision}"
    return None


def forward(
    x0: Tensor, t: Tensor, context: Tensor | None, first: Tensor, hidden: Tensor, last: Tensor, last_bias: Tensor, time_table: Tensor,
    table: Tensor, noise: Tensor | None, state: Tensor | None, offset: int, rows_per_sample: int, loss: str, residual: bool, precision: str,
) -> Tensor:  # fmt: skip
    """`reference.sleep.denoising_loss` [.., R] of contiguous tensors; without `noise` it is drawn at `state` (seed, first index).

    `precision` is that of the hidden layers' products (see `chain_options.PRODUCTS`). A row whose step is not in the table gets NaN:
    to look for one beforehand would stall the device.
    """
    value = x0.new_empty(t.shape)
    if value.numel() == 0:
        return value
    sizes = Sizes.of(x0, context, first, table)
    options = one_step_options(architecture(x0.device), precision)
    low_type, _ = PRODUCTS[precision]
    programs = min(triton.cdiv(sizes.rows, options["BN"]), max(1, _PROGRAMS // sizes.groups))
    scratch = x0.new_empty((sizes.groups * programs, 2, options["BN"], sizes.hidden), dtype=low_type)
    with on_device(x0):
        _forward_kernel[programs, sizes.groups](
            x0, t, context, first, hidden.to(low_type), last, last_bias, time_table, table, noise, state if noise is None else None, scratch,
            value, offset, sizes.rows, max(1, rows_per_sample), sizes.steps, **constexprs(sizes, residual, precision, loss), **options,
        )  # fmt: skip
    return value


_TYPES = {
    "x0": "*fp32", "t": "*i64", "context": "*fp32", "first": "*fp32", "last": "*fp32", "last_bias": "*fp32", "table": "*fp32", "columns": "*fp32",
    "state": "*i64", "loss": "*fp32", "offset": "i32", "rows": "i32", "rows_per_sample": "i32", "steps": "i32",
}  # fmt: skip


def compilations() -> Iterator[Compilation]:
    """Representative variants of the forward kernel."""
    for arch, precision, hidden, latent in itertools.product(ARCHITECTURES, ("float32", "bf16"), HIDDEN, (2, 16)):
        yield _forward_compilation(arch, Sizes(1, 128, latent, 2, hidden, 40), precision)


def _forward_compilation(arch: int, sizes: Sizes, precision: str) -> Compilation:
    options = one_step_options(arch, precision)
    warps, stages = options.pop("num_warps"), options.pop("num_stages")
    low = POINTERS[PRODUCTS[precision][0]]
    values = {"noise": None, **constexprs(sizes, True, precision, "huber"), **options}
    name = f"forward D={sizes.latent} H={sizes.hidden} {precision}"
    types = _TYPES | {"hidden": low, "scratch": low}
    return compilation(name, _forward_kernel, types, values, num_warps=warps, num_stages=stages, architectures=(arch,))
