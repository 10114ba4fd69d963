"""The end of a loss in Triton: weighted means of its terms and whether they are finite in one launch, their gradients in another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.common import Compilation, cdiv, launch, recorded

_BLOCK = 1024


def forward(values: Tensor, weights: Tensor, lost: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted sum of the terms' means, a scalar, and the means [K]; adds to what is known of values that are not finite.

    Args:
        values: Terms [K, N].
        weights: Their weights [K].
        lost: Set to 1 for each term with a value that is not finite, float32 [K].
        found: Set to 1 if there is one, or if the sum is not finite, a float32 scalar.
    """
    total, means = values.new_empty(()), values.new_empty(len(values))
    launch(terms_fwd_kernel, (1,), values, weights, total, means, lost, found, *values.shape, BLOCK=_BLOCK, num_warps=4)
    return total, means


def backward(upstream: Tensor, weights: Tensor, rows: int) -> Tensor:
    """Gradients [K, N] of the terms from that of the sum."""
    result = weights.new_empty((len(weights), rows))
    launch(terms_bwd_kernel, (len(weights), cdiv(rows, _BLOCK)), upstream, weights, result, rows, BLOCK=_BLOCK, num_warps=4)
    return result


def compilations() -> Iterator[Compilation]:
    """Four terms of 128 rows."""
    values, weights, one = (torch.empty(shape, device="meta") for shape in ((4, 128), 4, ()))
    yield from recorded("4 terms", forward, values, weights, weights, one)
    yield from recorded("4 terms", backward, one, weights, 128)


@triton.jit(do_not_specialize=["count", "rows"])
def terms_fwd_kernel(values, weights, total, means, lost, found, count, rows, BLOCK: tl.constexpr):
    across = tl.arange(0, BLOCK)
    loss = tl.cast(0.0, tl.float32)
    worst = tl.cast(0.0, tl.float32)
    for term in range(count):
        sums = tl.zeros((BLOCK,), tl.float32)
        bad = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, rows, BLOCK):
            value = tl.load(values + tl.cast(term, tl.int64) * rows + first + across, first + across < rows, 0.0)
            sums += value
            bad = tl.where(tl.abs(value) < float("inf"), bad, 1.0)
        mean, any_bad = tl.sum(sums, axis=0) / rows, tl.max(bad, axis=0)
        tl.store(means + term, mean)
        tl.store(lost + term, tl.maximum(tl.load(lost + term), any_bad))
        worst = tl.maximum(worst, any_bad)
        loss += tl.load(weights + term) * mean
    tl.store(total, loss)
    worst = tl.where(tl.abs(loss) < float("inf"), worst, 1.0)
    tl.store(found, tl.maximum(tl.load(found), worst))


@triton.jit(do_not_specialize=["rows"])
def terms_bwd_kernel(upstream, weights, result, rows, BLOCK: tl.constexpr):
    term, place = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slope = tl.load(upstream) * tl.load(weights + term) / rows
    tl.store(result + tl.cast(term, tl.int64) * rows + place, tl.zeros((BLOCK,), tl.float32) + slope, place < rows)
