"""Reparametrized samples of a Gaussian in Triton: noise, scale and sum in one launch, their gradients in another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.common import Compilation, cdiv, launch, recorded
from ddvi_fast.kernels.noise import launch_options
from ddvi_fast.kernels.rng import draw_index, number_tile


def forward(mean: Tensor, log_var: Tensor, state: Tensor, offset: int, num_samples: int, stream: int) -> Tensor:
    """Samples [K, N, D] of the Gaussian with mean and log-variance [N, D], whose columns are beside each other; noise as that of `noise.fill`."""
    rows, width = mean.shape
    out = torch.empty((num_samples, rows, width), dtype=mean.dtype, device=mean.device)
    if out.numel():
        options = launch_options(width)
        grid = cdiv(num_samples * rows, options["ROWS"]), cdiv(width, options["WIDTH"])
        strides = mean.stride(0), log_var.stride(0)
        launch(start_fwd_kernel, grid, mean, log_var, state, out, offset, num_samples * rows, rows, width, *strides, stream, **options)
    return out


def backward(upstream: Tensor, mean: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of mean and log-variance [N, D] from that of the samples [K, N, D]."""
    samples, rows, width = out.shape
    d_mean, d_log_var = (torch.empty((rows, width), dtype=mean.dtype, device=mean.device) for _ in range(2))
    count = rows * width
    if count:
        launch(
            start_bwd_kernel, (cdiv(count, 256),), upstream, mean, out, d_mean, d_log_var, samples, count, width, mean.stride(0),
            BLOCK=256, num_warps=4,
        )  # fmt: skip
    return d_mean, d_log_var


def compilations() -> Iterator[Compilation]:
    """A sample in two dimensions, from the two halves of an encoder's output."""
    mean, log_var = torch.empty(128, 4, device="meta").chunk(2, 1)
    state, out = torch.empty(2, dtype=torch.int64, device="meta"), torch.empty(1, 128, 2, device="meta")
    yield from recorded("D 2", forward, mean, log_var, state, 0, 1, 3)
    yield from recorded("D 2", backward, out, mean, out)


@triton.jit(do_not_specialize=["offset", "rows", "rows_per_sample", "width", "mean_stride", "log_var_stride", "stream"])
def start_fwd_kernel(
    mean, log_var,  # [N, D]
    state,  # [2]
    out,  # [K N, D]
    offset, rows, rows_per_sample, width, mean_stride, log_var_stride, stream,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    of_sample = (row % rows_per_sample)[:, None]
    index = draw_index(state, offset, row, rows_per_sample)
    noise = number_tile(index, tl.program_id(1) * ((WIDTH + 3) // 4), stream, tl.load(state), 2, ROWS, WIDTH)
    scale = tl.exp(0.5 * tl.load(log_var + of_sample * log_var_stride + column[None, :], mask, 0.0))
    centre = tl.load(mean + of_sample * mean_stride + column[None, :], mask, 0.0)
    tl.store(out + row[:, None] * width + column[None, :], centre + scale * noise, mask)


@triton.jit(do_not_specialize=["samples", "count", "width", "mean_stride"])
def start_bwd_kernel(
    upstream, mean, out,  # [K, N, D]; mean [N, D]
    d_mean, d_log_var,  # [N, D]
    samples, count, width, mean_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = place < count
    centre = tl.load(mean + (place // width) * mean_stride + place % width, there, 0.0)
    to_mean, to_log_var = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for sample in range(samples):
        at = tl.cast(sample, tl.int64) * count + place
        gradient = tl.load(upstream + at, there, 0.0)
        to_mean += gradient
        to_log_var += gradient * (tl.load(out + at, there, 0.0) - centre)
    tl.store(d_mean + place, to_mean, there)
    tl.store(d_log_var + place, 0.5 * to_log_var, there)
