"""Reductions of the bound in C++: one pass over the data forward, one backward."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddvi_fast.native import loader

_TABLE_SIZE = 1 << 16

KINDS = ("bernoulli", "gaussian", "binomial", "gaussian_kl", "gaussian_log_prob")


def unsupported(**operands: Tensor) -> str | None:
    """The reason why the kernels cannot take these operands, or None if they can."""
    return loader.unusable(**operands)


def forward(kind: str, operands: Sequence[Tensor], shape: Sequence[int], total: float) -> Tensor:
    """Sums over the last axis of `shape`, in nats: float32 [shape[:-1]].

    Args:
        kind: One of `KINDS`; their operands are (logits, x), (mean, x, scale), (logits, counts), (mean, log_var) and (z, mean, log_var).
        operands: Contiguous tensors; each has the last axes of `shape` and repeats over those it lacks, or is a single number.
        shape: Shape of the broadcast operands.
        total: Number of trials of the binomial; the other kinds do not read it.
    """
    out = operands[0].new_empty(shape[:-1])
    _call(kind, operands, shape, total, None, out, ())
    return out


def backward(
    kind: str, operands: Sequence[Tensor], shape: Sequence[int], total: float, upstream: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the full `shape` under `upstream` [shape[:-1]], to be summed where an operand repeats; None where not needed."""
    gradients = [upstream.new_empty(shape) if need else None for need in needed]
    _call(kind, operands, shape, total, upstream, None, gradients)
    return gradients


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """`reference.elbo.log_mean_exp` over the last axis: [R, K] -> [R]."""
    out = log_weights.new_empty(log_weights.shape[:-1])
    sizes = loader.integers(out.numel(), log_weights.shape[-1], torch.get_num_threads())
    loader.library().ddvi_log_mean_exp(*loader.pointers(log_weights), *sizes, *loader.pointers(out))
    return out


def log_mean_exp_backward(log_weights: Tensor, out: Tensor, upstream: Tensor) -> Tensor:
    """The normalized weights, times `upstream` [R]; beside an infinite weight the others have none."""
    infinite = (out == math.inf).unsqueeze(-1)
    weights = torch.where(infinite, torch.exp(log_weights - out.unsqueeze(-1)), torch.softmax(log_weights, -1))
    return upstream.unsqueeze(-1) * weights


def _call(
    kind: str, operands: Sequence[Tensor], shape: Sequence[int], total: float, upstream: Tensor | None, out: Tensor | None, gradients: Sequence
) -> None:
    operands = list(operands)
    if kind == "binomial" and upstream is None:  # the gradient does not depend on the coefficient
        operands.append(_log_choose(operands[1], total))
    described = []
    for value in (*operands, *[None] * (3 - len(operands))):
        described += [*loader.pointers(value), *loader.integers(_period(value, shape))]
    sizes = loader.integers(KINDS.index(kind), math.prod(shape[:-1]), shape[-1], torch.get_num_threads())
    gradients = (*gradients, *[None] * (3 - len(gradients)))
    loader.library().ddvi_elbo(*sizes, loader.number(total), *described, *loader.pointers(upstream, out, *gradients))


def _log_choose(counts: Tensor, total: float) -> Tensor:
    """Logarithm of the binomial coefficient, from a table for whole counts, because lgamma costs more than everything else."""
    whole = counts.long()
    if float(total).is_integer() and total < _TABLE_SIZE and bool((whole == counts).all() & (whole >= 0).all() & (whole <= total).all()):
        return _formula(torch.arange(int(total) + 1, dtype=torch.float64, device="cpu"), total).float()[whole]
    return _formula(counts, total)


def _formula(counts: Tensor, total: float) -> Tensor:
    return math.lgamma(total + 1) - torch.lgamma(counts + 1) - torch.lgamma(total - counts + 1)


def _period(value: Tensor | None, shape: Sequence[int]) -> int:
    """Number of rows after which an operand repeats; 0 for a single number."""
    if value is None or (value.numel() == 1 and math.prod(shape) != 1):
        return 0
    return max(1, math.prod(value.shape[:-1]))
