"""Exact test of Hardy-Weinberg proportions (Wigginton, Cutler and Abecasis 2005, American Journal of Human Genetics 76)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_VARIANTS = 512  # at a time
_TIES = 1e-9  # difference of log-probabilities that rounding explains
# Half of the considered range of heterozygotes, in square roots of the number of samples: at least 40 standard deviations.
_REACH = 20.0


def exact_test(counts: np.ndarray) -> np.ndarray:
    """P-values of variants, float64 [M].

    Given the numbers of both alleles, the p-value is the probability of all numbers of heterozygotes that are no more probable than the
    observed one. It is 1 for a constant variant, and without a call.

    Args:
        counts: Number of samples with code 0, 1, 2 and 3 at each variant, int [M, 4].

    Example:
        >>> exact_test(np.array([[25, 50, 25, 0], [40, 20, 40, 0]])).round(6).tolist()
        [1.0, 0.0]
    """
    first, heterozygous, second = np.asarray(counts, np.int64)[:, :3].T
    rare, called = 2 * np.minimum(first, second) + heterozygous, first + heterozygous + second
    found, order = np.ones(len(rare)), np.argsort(rare, kind="stable")  # the rarer, the fewer terms
    for start in range(0, len(order), _VARIANTS):
        part = order[start : start + _VARIANTS]
        found[part] = _p_values(*(torch.from_numpy(each[part]).unsqueeze(1) for each in (heterozygous, rare, called))).numpy()
    return found


def expected_heterozygotes(counts: np.ndarray) -> np.ndarray:
    """Mean number of heterozygotes in Hardy-Weinberg proportions, float64 [M], given counts [M, 4] of codes."""
    alleles, copies = 2.0 * counts[:, :3].sum(1), counts[:, 1] + 2.0 * counts[:, 2]
    return copies * (alleles - copies) / np.maximum(alleles - 1, 1)


def _p_values(heterozygous: Tensor, rare: Tensor, called: Tensor) -> Tensor:
    width = min(int(rare.max()) // 2, int(_REACH * int(called.max()) ** 0.5)) + 1
    # Numbers of heterozygotes have the parity of the number of rare alleles; where not all are considered, those around their mean are.
    middle = rare * (2 * called - rare) // (4 * called).clamp_min(1)
    start = torch.minimum(middle - width // 2, rare // 2 + 1 - width).clamp_min(0)
    numbers = rare % 2 + 2 * (start + torch.arange(width, device="cpu"))
    values, observed = _log_probs(numbers, rare, called), _log_probs(heterozygous, rare, called)
    probabilities = (values - values.logsumexp(1, keepdim=True)).exp()
    return torch.where(values <= observed + _TIES, probabilities, 0.0).sum(1).clamp(max=1.0)


def _log_probs(heterozygous: Tensor, rare: Tensor, called: Tensor) -> Tensor:
    """Log-probability of numbers of heterozygotes, up to a constant; minus infinity where there cannot be as many."""
    pairs = (rare - heterozygous) // 2
    common = called - heterozygous - pairs
    factorials = (torch.arange(int(called.max()) + 1, dtype=torch.float64, device="cpu") + 1).lgamma()
    orders = sum(factorials[number.clamp(0, len(factorials) - 1)] for number in (heterozygous, pairs, common))
    return torch.where((pairs >= 0) & (common >= 0), heterozygous.double() * math.log(2) - orders, -torch.inf)
