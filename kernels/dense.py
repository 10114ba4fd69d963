"""Triton kernels of a dense layer after its matrix product: bias, activation and dropout in one launch, their gradients in another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast._operands import DenseOptions
from ddvi_fast.kernels.common import Compilation, cdiv, launch, recorded, tile_place
from ddvi_fast.kernels.rng import draw_index, number_tile

_FORWARD = {"ROWS": 16, "WIDTH": 64, "num_warps": 4}
_BACKWARD = {"ROWS": 64, "WIDTH": 16, "num_warps": 4}
_PART = 1024  # rows whose bias gradients one program adds


def forward(product: Tensor, bias: Tensor, options: DenseOptions, out_type: torch.dtype) -> Tensor:
    """`dropout(activation(product + bias))` of a product [R, H], computed in float32 and rounded to `out_type`."""
    rows, width = product.shape
    out = torch.empty((rows, width), dtype=out_type, device=product.device)
    grid = cdiv(rows, _FORWARD["ROWS"]), cdiv(width, _FORWARD["WIDTH"])
    if out.numel():
        launch(
            dense_fwd_kernel, grid, product, bias, options.state, out, options.slope, options.rate, 1 / (1 - options.rate), options.offset,
            max(1, options.rows_per_sample), options.stream, rows, width, **_FORWARD,
        )  # fmt: skip
    return out


def backward(upstream: Tensor, out: Tensor, options: DenseOptions, product_type: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gradients of the product [R, H], rounded to `product_type`, and of the bias [H], from the result of `forward` and its gradient.

    The slope follows from the result: a dropped one is zero, and the others keep their sign.
    """
    (rows, width), parts = out.shape, max(1, cdiv(len(out), _PART))
    d_product = torch.empty((rows, width), dtype=product_type, device=out.device)
    d_bias = torch.empty((parts, width), dtype=torch.float32, device=out.device)
    grid = cdiv(width, _BACKWARD["WIDTH"]), parts
    if width:
        launch(
            dense_bwd_kernel, grid, upstream, out, d_product, d_bias, options.slope, 0.0 if options.rate else options.slope,
            1 / (1 - options.rate), rows, width, PART=_PART, **_BACKWARD,
        )  # fmt: skip
    return d_product, d_bias[0] if parts == 1 else d_bias.sum(0)


def compilations() -> Iterator[Compilation]:
    """A hidden layer of the released code with and without dropout, in float32 and bf16."""
    bias, state = torch.empty(1000, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    for dtype in (torch.float32, torch.bfloat16):
        value, name = torch.empty((128, 1000), dtype=dtype, device="meta"), str(dtype).removeprefix("torch.")
        yield from recorded(name, forward, value, bias, DenseOptions(0.2, "float32"), dtype)
        yield from recorded(f"{name} dropout", forward, value, bias, DenseOptions(0.2, "float32", 0.4, state, 0, 128, 3), dtype)
        yield from recorded(name, backward, value, value, DenseOptions(0.2, "float32", 0.4), dtype)


@triton.jit(do_not_specialize=["offset", "rows_per_sample", "stream", "rows", "width"])
def dense_fwd_kernel(
    product, bias,  # [R, H] and [H]
    state,  # [2] or None
    out,  # [R, H]
    slope, rate, scale, offset, rows_per_sample, stream, rows, width,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    first, start = tl.program_id(0).to(tl.int64) * ROWS, tl.program_id(1) * WIDTH
    place, mask = tile_place(first, start, rows, width, ROWS, WIDTH)
    column = start + tl.arange(0, WIDTH)
    value = tl.load(product + first * width + place, mask, 0.0).to(tl.float32) + tl.load(bias + column, column < width, 0.0)[None, :]
    value = tl.where(value > 0, value, value * slope)
    if state is not None:
        index = draw_index(state, offset, first + tl.arange(0, ROWS), rows_per_sample)
        kept = number_tile(index, start // 4, stream, tl.load(state), 1, ROWS, WIDTH) >= rate
        value = tl.where(kept, value * scale, value * 0.0)  # what is not finite stays so, as in a product with the mask
    tl.store(out + first * width + place, value.to(out.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["rows", "width"])
def dense_bwd_kernel(
    upstream, out, d_product,  # [R, H]
    d_bias,  # [parts, H]
    slope, at_zero, scale, rows, width,
    PART: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    start, part = tl.program_id(0) * WIDTH, tl.program_id(1).to(tl.int64)
    column = start + tl.arange(0, WIDTH)
    sums = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(part * PART, tl.minimum(part * PART + PART, rows), ROWS):
        place, mask = tile_place(first, start, rows, width, ROWS, WIDTH)
        value = tl.load(out + first * width + place, mask, 0.0).to(tl.float32)
        below = tl.where(value < 0, slope, tl.where(value > 0, 1.0, at_zero))
        gradient = tl.load(upstream + first * width + place, mask, 0.0).to(tl.float32) * (below * scale)
        tl.store(d_product + first * width + place, gradient.to(d_product.dtype.element_ty), mask)
        sums += gradient
    tl.store(d_bias + part * width + column, tl.sum(sums, axis=0), column < width)
