"""The denoising chain in Triton: one launch runs all steps of every tile of rows, and the backward pass recomputes them."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.chain_backward import backward
from ddvi_fast.kernels.chain_options import HIDDEN, PRODUCTS, Sizes, forward_options
from ddvi_fast.kernels.common import ARCHITECTURES, POINTERS, Compilation, architecture, compilation, on_device, unusable
from ddvi_fast.kernels.network import bias_relu, hidden_product, load_matrix, narrow, run_forward, widen
from ddvi_fast.kernels.rng import draw_index, step_noise

__all__ = ["backward", "compilations", "forward", "unsupported"]


@triton.jit
def _network_on_chip(
    x1, w0, w1, w2, last, bias, H: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr
):
    """From the first activation [BN, H], in the products' element type, to the output less its bias, with the matrices on chip."""
    start = tl.zeros((x1.shape[0], H), tl.float32)
    x2 = bias_relu(hidden_product(x1, tl.trans(w0), start, PRODUCT), bias + H, H).to(x1.dtype)
    x3 = bias_relu(hidden_product(x2, tl.trans(w1), start, PRODUCT), bias + 2 * H, H)
    if RESIDUAL:
        x3 += x1.to(tl.float32)
    x4 = bias_relu(hidden_product(x3.to(x1.dtype), tl.trans(w2), start, PRODUCT), bias + 3 * H, H)
    return narrow(x4, last, 1, H, D, D_PAD, H)


@triton.jit(do_not_specialize=["offset", "rows", "rows_per_sample", "steps", "zero"])
def _forward_kernel(
    y_T, context, first, hidden, last, last_bias, table, coefficients, noise, state, z, path, trajectory, scratch,
    offset, rows, rows_per_sample, steps, zero,
    D: tl.constexpr, C: tl.constexpr, D_PAD: tl.constexpr, C_PAD: tl.constexpr, H: tl.constexpr, BN: tl.constexpr,
    BH: tl.constexpr, BK: tl.constexpr, RESIDUAL: tl.constexpr, PRODUCT: tl.constexpr,
):  # fmt: skip
    """All steps of BN rows of a network. Without `scratch` the hidden matrices are loaded once and stay on chip.

    `zero` keeps loads of the small layers inside the loop: moved out of it they would fill the registers.
    """
    group, tile = tl.program_id(1).to(tl.int64), tl.program_id(0)
    local = tile * BN + tl.arange(0, BN)
    present = local < rows
    row = group * rows + local
    columns = tl.arange(0, D_PAD)
    inside = present[:, None] & (columns < D)[None, :]
    place = row[:, None] * D + columns[None, :]
    step_stride = tl.num_programs(1).to(tl.int64) * rows * D
    first += group * H * (D + C)
    hidden += group * 3 * H * H
    last += group * D * H
    last_bias += group * D
    table += group * steps * 4 * H

    y = tl.load(y_T + place, inside, 0.0)
    c = y
    if trajectory is not None:
        tl.store(trajectory + place, y, inside)
    if C > 0:
        across = tl.arange(0, C_PAD)
        c = tl.load(context + row[:, None] * C + across[None, :], present[:, None] & (across < C)[None, :], 0.0)
    index = row
    log_ratio = tl.zeros((BN,), tl.float32)
    if state is not None:
        index = draw_index(state, offset, row, rows_per_sample)
    if scratch is None:
        w0, w1, w2 = load_matrix(hidden, H), load_matrix(hidden + H * H, H), load_matrix(hidden + 2 * H * H, H)
    else:
        mine = scratch + (group * tl.num_programs(0) + tile) * 2 * BN * H
    for i in range(steps):
        step = steps - 1 - i
        k = coefficients + 5 * step
        here = tl.multiple_of(step * zero, 16)
        if scratch is None:
            x1 = widen(y, first + here, D + C, 1, D, D_PAD, H)
            if C > 0:
                x1 += widen(c, first + D + here, D + C, 1, C, C_PAD, H)
            x1 = bias_relu(x1, table + step * 4 * H, H).to(hidden.dtype.element_ty)
            output = _network_on_chip(x1, w0, w1, w2, last + here, table + step * 4 * H, H, D, D_PAD, RESIDUAL, PRODUCT)
        else:
            output = run_forward(
                y, c, first, hidden, last, table + step * 4 * H, mine, mine + BN * H, None, mine, None, present,
                D, C, D_PAD, C_PAD, H, BH, BK, RESIDUAL, PRODUCT,
            )  # fmt: skip
        output += tl.load(last_bias + columns, columns < D, 0.0)[None, :]
        following = tl.load(k) * y + tl.load(k + 1) * output
        if path is not None:
            deviation, beta = tl.load(k + 2), tl.load(k + 4)
            xi = step_noise(noise, state, index, place, inside, step, step_stride, D_PAD)
            following += deviation * xi
            away = y - tl.load(k + 3) * following
            log_ratio += 0.5 * (tl.sum(xi * xi - away * away / beta, axis=1) + D * (2.0 * tl.log(deviation) - tl.log(beta)))
        y = following
        if trajectory is not None:
            tl.store(trajectory + (i + 1) * step_stride + place, y, inside)
    tl.store(z + place, y, inside)
    if path is not None:
        tl.store(path + row, log_ratio, present)


def unsupported(
    y_T: Tensor, context: Tensor | None, first: Tensor, hidden: Tensor, last: Tensor, last_bias: Tensor, time_table: Tensor,
    coefficients: Tensor, noise: Tensor | None = None, precision: str = "float32",
) -> str | None:  # fmt: skip
    """Why the kernels cannot run this chain, or None."""
    tensors = {"y_T": y_T, "context": context, "first": first, "hidden": hidden, "last": last, "last_bias": last_bias}
    reason = unusable(_forward_kernel, **tensors, time_table=time_table, coefficients=coefficients, noise=noise)
    if reason is not None:
        return reason
    if hidden.shape[-1] not in HIDDEN:
        return f"denoiser: the Triton chain takes hidden widths {', '.join(map(str, HIDDEN))}, got {hidden.shape[-1]}"
    for name, width in (("y_T", y_T.shape[-1]), ("context", 0 if context is None else context.shape[-1])):
        if width > 64:
            return f"{name}: the Triton chain takes at most 64 columns, got {width}"
    if precision not in PRODUCTS:
        return f"precision: expected one of {', '.join(PRODUCTS)}, got {precision}"
    return None


def forward(
    y_T: Tensor, context: Tensor | None, first: Tensor, hidden: Tensor, last: Tensor, last_bias: Tensor, time_table: Tensor,
    coefficients: Tensor, noise: Tensor | None, state: Tensor | None, offset: int, rows_per_sample: int, residual: bool, precision: str,
    keep_trajectory: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
    """The chain from `y_T` [.., R, D] down: `(z, path [.., R], trajectory [T + 1, .., R, D])`, path in nats.

    Args:
        y_T: start; `..` is empty or one group axis G, which weights, context and noise then carry too.
        context: [.., R, C] or None.
        first, hidden, last, last_bias, time_table: as in `reference.chain.ChainWeights`.
        coefficients: [T, 5].
        noise: [T, .., R, D], or None: drawn if there is a state, else the chain is deterministic and the path None.
        state: int64 [2], seed and first draw index, on the device; `offset` is added to the index.
        rows_per_sample: flattened row r has draw `r % rows_per_sample + 2^40 (r // rows_per_sample)` after the first.
        residual: whether the first hidden layer is added to the third.
        precision: of the hidden products: float32, tf32, bf16 or fp16.
        keep_trajectory: write every state, else the third result is None.
    """
    sizes = Sizes.of(y_T, context, first, coefficients)
    z = y_T.new_empty(y_T.shape)
    path = None if noise is None and state is None else y_T.new_empty(y_T.shape[:-1])
    trajectory = y_T.new_empty((sizes.steps + 1, *y_T.shape)) if keep_trajectory else None
    if z.numel() == 0:
        return z, path, trajectory
    options = forward_options(architecture(y_T.device), sizes.hidden, sizes.latent, precision)
    grid = (triton.cdiv(sizes.rows, options["BN"]), sizes.groups)
    keep = options.pop("KEEP")
    hidden = hidden.to(PRODUCTS[precision][0])
    scratch = None if keep else hidden.new_empty((sizes.groups, grid[0], 2, options["BN"], sizes.hidden))
    with on_device(y_T):
        _forward_kernel[grid](
            y_T, context, first, hidden, last, last_bias, time_table, coefficients, noise, state if noise is None else None,
            z, path, trajectory, scratch, offset, sizes.rows, max(1, rows_per_sample), sizes.steps, 0,
            **sizes.constexprs(residual, precision, dots=not keep), **options,
        )  # fmt: skip
    return z, path, trajectory


_TYPES = {
    "y_T": "*fp32", "context": "*fp32", "first": "*fp32", "last": "*fp32", "last_bias": "*fp32", "table": "*fp32", "coefficients": "*fp32",
    "state": "*i64", "z": "*fp32", "path": "*fp32", "trajectory": "*fp32",
    "offset": "i32", "rows": "i32", "rows_per_sample": "i32", "steps": "i32", "zero": "i32",
}  # fmt: skip


def compilations() -> Iterator[Compilation]:
    """Representative variants of the forward kernel; the other modules list theirs."""
    for arch in ARCHITECTURES:
        for precision in ("float32", "bf16"):
            for hidden in HIDDEN:
                for latent in (2, 16):
                    yield _forward_compilation(arch, Sizes(1, 128, latent, 2, hidden, 40), precision)


def _forward_compilation(arch: int, sizes: Sizes, precision: str) -> Compilation:
    options = forward_options(arch, sizes.hidden, sizes.latent, precision)
    warps, stages = options.pop("num_warps"), options.pop("num_stages")
    keep = options.pop("KEEP")
    low = POINTERS[PRODUCTS[precision][0]]
    types = _TYPES | {"hidden": low} | ({} if keep else {"scratch": low})
    name = f"forward D={sizes.latent} H={sizes.hidden} {precision}"
    absent = {"noise": None} | ({"scratch": None} if keep else {})
    values = {**absent, **sizes.constexprs(True, precision, dots=not keep), **options}
    return compilation(name, _forward_kernel, types, values, num_warps=warps, num_stages=stages, architectures=(arch,))
