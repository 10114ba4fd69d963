"""Latents outside of the encoder's frame and the density that the map changes, in Triton: values in one launch, gradients in another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.common import Compilation, cdiv, launch, next_power_of_2, recorded, tile_place


def forward(mean: Tensor, log_var: Tensor, y: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """`u = mean + exp(log_var / 2) y` [R, D], and `log_ratio + log N(u; 0, I) + sum(log_var) / 2` [R].

    Args:
        mean: Means [M, D], the same for every M rows; columns are beside each other.
        log_var: Log-variances [M, D], likewise.
        y: Latents in the frame [R, D], contiguous.
        log_ratio: Their log-ratios [R], contiguous.
    """
    (rows, width), u, out = y.shape, torch.empty_like(y), torch.empty_like(log_ratio)
    if rows:
        options = _options(width)
        strides = mean.stride(0), log_var.stride(0)
        launch(frame_fwd_kernel, (cdiv(rows, options["ROWS"]),), mean, log_var, y, log_ratio, u, out, rows, len(mean), width, *strides, **options)
    return u, out


def backward(d_u: Tensor | None, d_out: Tensor | None, log_var: Tensor, y: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of mean and log-variance [M, D], and of the latents in the frame [R, D]; upstream gradients may be missing."""
    (rows, width), count = y.shape, len(log_var)
    d_mean, d_log_var = (torch.empty((count, width), dtype=y.dtype, device=y.device) for _ in range(2))
    d_y = torch.empty_like(y)
    if count:
        options = _options(width)
        call = d_u, d_out, log_var, y, u, d_mean, d_log_var, d_y, rows // count, count, width, log_var.stride(0)
        launch(frame_bwd_kernel, (cdiv(count, options["ROWS"]),), *call, **options)
    return d_mean, d_log_var, d_y


def standard(start: Tensor, path: Tensor) -> Tensor:
    """`path - log N(start; 0, I)` [R] of starts [R, D]; both are contiguous."""
    (rows, width), out = start.shape, torch.empty_like(path)
    if rows:
        options = _options(width)
        launch(frame_fwd_kernel_standard, (cdiv(rows, options["ROWS"]),), start, path, out, rows, width, **options)
    return out


def compilations() -> Iterator[Compilation]:
    """Four samples of 128 rows in two dimensions, from the two halves of an encoder's output."""
    mean, log_var = torch.empty(128, 4, device="meta").chunk(2, 1)
    y, ratio = torch.empty(512, 2, device="meta"), torch.empty(512, device="meta")
    yield from recorded("D 2", forward, mean, log_var, y, ratio)
    yield from recorded("D 2", backward, y, ratio, log_var, y, y)
    yield from recorded("D 2", standard, y, ratio)


def _options(width: int) -> dict[str, int]:
    padded = next_power_of_2(width)
    return {"ROWS": max(1, 128 // padded), "WIDTH": padded, "num_warps": 4}


@triton.jit
def _squares(value, width):
    """`log N(value; 0, I)` of each row of a tile [ROWS, WIDTH] of `width` columns, zero beyond."""
    return -0.5 * tl.sum(value * value, axis=1) - 0.9189385332046727 * width


@triton.jit(do_not_specialize=["rows", "rows_of_mean", "width", "mean_stride", "log_var_stride"])
def frame_fwd_kernel(
    mean, log_var,  # [M, D]
    y,  # [R, D]
    log_ratio,  # [R]
    u,  # [R, D]
    out,  # [R]
    rows, rows_of_mean, width, mean_stride, log_var_stride,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    place, mask = tile_place(first, 0, rows, width, ROWS, WIDTH)
    row = first + tl.arange(0, ROWS)
    of_mean, column = (row % rows_of_mean)[:, None], tl.arange(0, WIDTH)[None, :]
    variance = tl.load(log_var + of_mean * log_var_stride + column, mask, 0.0)
    centre = tl.load(mean + of_mean * mean_stride + column, mask, 0.0)
    placed = centre + tl.exp(0.5 * variance) * tl.load(y + first * width + place, mask, 0.0)
    tl.store(u + first * width + place, placed, mask)
    change = _squares(tl.where(mask, placed, 0.0), width) + 0.5 * tl.sum(variance, axis=1)
    tl.store(out + row, tl.load(log_ratio + row, row < rows, 0.0) + change, row < rows)


@triton.jit(do_not_specialize=["samples", "count", "width", "log_var_stride"])
def frame_bwd_kernel(
    d_u,  # [R, D] or None
    d_out,  # [R] or None
    log_var,  # [M, D]
    y, u,  # [R, D]
    d_mean, d_log_var,  # [M, D]
    d_y,  # [R, D]
    samples, count, width, log_var_stride,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    place, mask = tile_place(first, 0, count, width, ROWS, WIDTH)
    row = first + tl.arange(0, ROWS)
    scale = tl.exp(0.5 * tl.load(log_var + row[:, None] * log_var_stride + tl.arange(0, WIDTH)[None, :], mask, 0.0))
    to_mean, to_log_var = tl.zeros((ROWS, WIDTH), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)
    for sample in range(samples):
        begin = (tl.cast(sample, tl.int64) * count + first) * width
        gradient = tl.zeros((ROWS, WIDTH), tl.float32)
        if d_u is not None:
            gradient += tl.load(d_u + begin + place, mask, 0.0)
        if d_out is not None:
            of_ratio = tl.load(d_out + tl.cast(sample, tl.int64) * count + row, row < count, 0.0)[:, None]
            gradient -= of_ratio * tl.load(u + begin + place, mask, 0.0)
            to_log_var += of_ratio
        to_mean += gradient
        to_log_var += gradient * scale * tl.load(y + begin + place, mask, 0.0)
        tl.store(d_y + begin + place, gradient * scale, mask)
    tl.store(d_mean + first * width + place, to_mean, mask)
    tl.store(d_log_var + first * width + place, 0.5 * to_log_var, mask)


@triton.jit(do_not_specialize=["rows", "width"])
def frame_fwd_kernel_standard(
    start,  # [R, D]
    path, out,  # [R]
    rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    place, mask = tile_place(first, 0, rows, width, ROWS, WIDTH)
    row = first + tl.arange(0, ROWS)
    value = tl.load(path + row, row < rows, 0.0) - _squares(tl.load(start + first * width + place, mask, 0.0), width)
    tl.store(out + row, value, row < rows)
