"""Terms of the evidence lower bound in Triton, with the score-function gradient of drawn classes: values in one launch, gradients in another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ddvi_fast.kernels.common import Compilation, cdiv, launch, recorded

_ROWS = 128


def forward(log_likelihood: Tensor, log_prior_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the means over samples of log-likelihoods and log-ratios [K, N], both [N]."""
    samples, rows = log_likelihood.shape
    outs = log_likelihood.new_empty(rows), log_likelihood.new_empty(rows)
    if rows:
        launch(bound_fwd_kernel, (cdiv(rows, _ROWS),), log_likelihood, log_prior_ratio, *outs, samples, rows, ROWS=_ROWS, num_warps=4)
    return outs


def backward(
    d_reconstruction: Tensor | None, d_kl: Tensor | None, log_likelihood: Tensor, log_prior_ratio: Tensor, weight: Tensor | float, scored: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients [K, N] of log-likelihoods and log-ratios, and of the logarithms of the classes' probabilities if they are `scored`.

    A class scores `(w - b) / K` of its sample's `w = log_likelihood + weight log_prior_ratio` and of the mean `b` of the others.
    """
    samples, rows = log_likelihood.shape
    outs = *(torch.empty_like(log_likelihood) for _ in range(2)), torch.empty_like(log_likelihood) if scored else None
    on_device, number = (weight, 0.0) if isinstance(weight, Tensor) else (None, float(weight))
    if rows:
        call = d_reconstruction, d_kl, log_likelihood, log_prior_ratio, on_device, *outs, number, samples, rows
        launch(bound_bwd_kernel, (cdiv(rows, _ROWS),), *call, ROWS=_ROWS, num_warps=4)
    return outs


def compilations() -> Iterator[Compilation]:
    """Four samples of 128 rows, with drawn classes and a weight on the device, and one sample without."""
    values, rows, one = torch.empty(4, 128, device="meta"), torch.empty(128, device="meta"), torch.empty((), device="meta")
    yield from recorded("K 4", forward, values, values)
    yield from recorded("K 4 scored", backward, rows, rows, values, values, one, True)
    yield from recorded("K 1", backward, rows, rows, values[:1], values[:1], 0.5, False)


@triton.jit(do_not_specialize=["samples", "rows"])
def bound_fwd_kernel(
    log_likelihood, log_prior_ratio,  # [K, N]
    reconstruction, kl,  # [N]
    samples, rows, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    likelihood, ratio = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for sample in range(samples):
        place = tl.cast(sample, tl.int64) * rows + row
        likelihood += tl.load(log_likelihood + place, row < rows, 0.0)
        ratio += tl.load(log_prior_ratio + place, row < rows, 0.0)
    tl.store(reconstruction + row, -likelihood / samples, row < rows)
    tl.store(kl + row, -ratio / samples, row < rows)


@triton.jit(do_not_specialize=["number", "samples", "rows"])
def bound_bwd_kernel(
    d_reconstruction, d_kl,  # [N] or None
    log_likelihood, log_prior_ratio,  # [K, N]
    weight,  # a scalar or None
    d_likelihood, d_ratio, d_class,  # [K, N]
    number, samples, rows, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = row < rows
    to_likelihood, to_ratio = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    if d_reconstruction is not None:
        to_likelihood = -tl.load(d_reconstruction + row, there, 0.0) / samples
    if d_kl is not None:
        to_ratio = -tl.load(d_kl + row, there, 0.0) / samples
    factor = number
    if weight is not None:
        factor = tl.load(weight)
    total = tl.zeros((ROWS,), tl.float32)
    for sample in range(samples):
        place = tl.cast(sample, tl.int64) * rows + row
        tl.store(d_likelihood + place, to_likelihood, there)
        tl.store(d_ratio + place, to_ratio, there)
        if d_class is not None:
            total += tl.load(log_likelihood + place, there, 0.0) + factor * tl.load(log_prior_ratio + place, there, 0.0)
    if d_class is not None:
        for sample in range(samples):
            place = tl.cast(sample, tl.int64) * rows + row
            value = tl.load(log_likelihood + place, there, 0.0) + factor * tl.load(log_prior_ratio + place, there, 0.0)
            tl.store(d_class + place, to_likelihood * (value - (total - value) / (samples - 1)), there)
