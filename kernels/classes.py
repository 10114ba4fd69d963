"""Rows of the classes in Triton: parts of an encoder's outputs for every class, of which each row takes that of its class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.common import Compilation, cdiv, launch, next_power_of_2, recorded

MOST_PARTS = 3
_ROWS = 16


def forward(labels: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The rows [.., N, W] of the classes `labels`, int64 [.., N] and contiguous, from each of at most three parts [C, N, W].

    The columns of a part are beside each other. Rows of a class that does not exist are NaN.
    """
    outs = tuple(part.new_empty((*labels.shape, part.shape[2])) for part in parts)
    if labels.numel():
        call = labels, *_three(parts), *_three(outs), labels.numel(), labels.shape[-1], len(parts[0]), *_three([part.shape[2] for part in parts], 0)
        launch(classes_fwd_kernel, (cdiv(labels.numel(), _ROWS),), *call, *_strides(parts), **_options(parts))
    return outs


def backward(upstream: Sequence[Tensor | None], labels: Tensor, parts: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients [C, N, W] of the parts, the rows of a datum beside each other; None where the upstream gradient is."""
    classes, rows = parts[0].shape[:2]
    given = [i for i, value in enumerate(upstream) if value is not None]
    made = [parts[i].new_empty((rows, classes, parts[i].shape[2])) for i in given]
    if rows and classes:
        some = [parts[i] for i in given]
        call = (
            labels,
            *_three([upstream[i] for i in given]),
            *_three(made),
            labels.numel() // rows,
            rows,
            *_three([part.shape[2] for part in some], 0),
        )
        launch(classes_bwd_kernel, (cdiv(rows, _ROWS), classes), *call, **_options(some))
    found = dict(zip(given, made, strict=True))
    return [found[i].transpose(0, 1) if i in found else None for i in range(len(parts))]


def compilations() -> Iterator[Compilation]:
    """Mean, log-variance and context of 10 classes, and the logarithms of their probabilities."""
    labels = torch.empty(4, 128, dtype=torch.int64, device="meta")
    parts = [torch.empty(10, 128, width, device="meta") for width in (2, 2, 32)]
    outs = [torch.empty(4, 128, width, device="meta") for width in (2, 2, 32)]
    for name, count in (("3 parts", 3), ("1 part", 1)):
        yield from recorded(name, forward, labels, parts[:count])
        yield from recorded(name, backward, outs[:count], labels, parts[:count])


def _three(values: Sequence, missing: object = None) -> list:
    return [*values, *[missing] * (MOST_PARTS - len(values))]


def _strides(parts: Sequence[Tensor]) -> list[int]:
    """Strides of the classes and of the rows of each part."""
    return [stride for part in _three(parts) for stride in ((0, 0) if part is None else part.stride()[:2])]


def _options(parts: Sequence[Tensor]) -> dict[str, int]:
    widths = [next_power_of_2(part.shape[2]) for part in parts]
    return {**{f"WIDTH_{i}": width for i, width in enumerate(_three(widths, 1))}, "ROWS": _ROWS, "num_warps": 4}


@triton.jit
def _take(part, out, row, datum, label, there, known, width, class_stride, row_stride, WIDTH: tl.constexpr):
    """Rows of the known classes; the others are NaN."""
    column = tl.arange(0, WIDTH)[None, :]
    inside = there[:, None] & (column < width)
    value = tl.load(part + (label * class_stride + datum * row_stride)[:, None] + column, inside & known[:, None], float("nan"))
    tl.store(out + row[:, None] * width + column, value, inside)


@triton.jit(
    do_not_specialize=[
        "rows", "count", "classes", "width_0", "width_1", "width_2",
        "class_0", "row_0", "class_1", "row_1", "class_2", "row_2",
    ]
)  # fmt: skip
def classes_fwd_kernel(
    labels,  # [R]
    part_0, part_1, part_2,  # [C, N, W]
    out_0, out_1, out_2,  # [R, W]
    rows, count, classes, width_0, width_1, width_2, class_0, row_0, class_1, row_1, class_2, row_2,
    WIDTH_0: tl.constexpr, WIDTH_1: tl.constexpr, WIDTH_2: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    label, datum = tl.load(labels + row, there, 0), row % count
    known = (label >= 0) & (label < classes)
    _take(part_0, out_0, row, datum, label, there, known, width_0, class_0, row_0, WIDTH_0)
    if part_1 is not None:
        _take(part_1, out_1, row, datum, label, there, known, width_1, class_1, row_1, WIDTH_1)
    if part_2 is not None:
        _take(part_2, out_2, row, datum, label, there, known, width_2, class_2, row_2, WIDTH_2)


@triton.jit
def _give(upstream, labels, out, row, there, samples, count, classes, width, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """The sum of the gradients of the rows of this program's class, over the samples in order."""
    label, column = tl.program_id(1), tl.arange(0, WIDTH)[None, :]
    inside = there[:, None] & (column < width)
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for sample in range(samples):
        at = tl.cast(sample, tl.int64) * count + row
        here = tl.load(labels + at, there, -1) == label
        total += tl.load(upstream + at[:, None] * width + column, inside & here[:, None], 0.0)
    tl.store(out + (row * classes + label)[:, None] * width + column, total, inside)


@triton.jit(do_not_specialize=["samples", "count", "width_0", "width_1", "width_2"])
def classes_bwd_kernel(
    labels,  # [K N]
    upstream_0, upstream_1, upstream_2,  # [K N, W]
    out_0, out_1, out_2,  # [N, C, W]
    samples, count, width_0, width_1, width_2,
    WIDTH_0: tl.constexpr, WIDTH_1: tl.constexpr, WIDTH_2: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there, classes = row < count, tl.num_programs(1)
    _give(upstream_0, labels, out_0, row, there, samples, count, classes, width_0, WIDTH_0, ROWS)
    if upstream_1 is not None:
        _give(upstream_1, labels, out_1, row, there, samples, count, classes, width_1, WIDTH_1, ROWS)
    if upstream_2 is not None:
        _give(upstream_2, labels, out_2, row, there, samples, count, classes, width_2, WIDTH_2, ROWS)
