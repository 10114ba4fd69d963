"""Pareto smoothing of importance weights (Vehtari et al. 2024)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_PRIOR_COUNT, _PRIOR_SHAPE = 10, 0.5  # weight in observations, and mean, of a weak prior on the shape
FEWEST = 5  # smallest length of a tail


class Smoothed(NamedTuple):
    """Normalized log-weights [K], and the shape k of their tail."""

    log_weights: Tensor
    k: float


def fit_tail(excess: Tensor) -> tuple[float, float]:
    """Estimate shape k and scale of a generalized Pareto distribution (Zhang and Stephens 2009).

    With `b = -k / scale` the best shape for each `b` has a closed form; the estimate of `b` is its mean over a grid weighted by the profile
    likelihood.

    Args:
        excess: Values above the threshold of the distribution [n].

    Returns:
        Shape k and scale.

    Example:
        >>> quantiles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        >>> k, scale = fit_tail(2 * ((1 - quantiles) ** -0.4 - 1) / 0.4)
        >>> round(k, 1), round(scale, 1)
        (0.4, 2.0)
    """
    x = excess.double().sort().values
    count = len(x)
    grid = 30 + math.isqrt(count)
    steps = 1 - torch.sqrt(grid / (torch.arange(1, grid + 1, dtype=torch.float64, device="cpu") - 0.5))
    b = 1 / x[-1] + steps / (3 * x[int(count / 4 + 0.5) - 1])
    k = torch.log1p(-b.unsqueeze(1) * x).mean(1)
    likelihood = count * (torch.log(-b / k) - k - 1)
    best = float((b * likelihood.softmax(0)).sum())
    k = float(torch.log1p(-best * x).mean())
    return k, -k / best


def smooth(log_ratios: Tensor) -> Smoothed:
    """Smooth importance weights (Vehtari et al. 2024).

    The largest `min(K / 5, 3 sqrt(K))` weights are replaced by the expected order statistics of the generalized Pareto distribution fitted to
    them, truncated at the largest weight. The shape has a weak prior around 0.5.

    Args:
        log_ratios: Log-weights [K] in nats; they can be `-inf`.

    Returns:
        Normalized log-weights and k. If the tail has fewer than 5 finite weights they are not smoothed and k is infinity; if all weights of
        the tail are equal, k is minus infinity.
    """
    values = log_ratios.double().cpu()
    ordered, order = values.sort(stable=True)
    length = min(len(values) // 5, math.ceil(3 * math.sqrt(len(values))))
    tail = ordered[len(values) - length :]
    if length < FEWEST or not bool(torch.isfinite(tail).all()):
        return Smoothed(log_ratios.log_softmax(0), math.inf)
    largest, cutoff = ordered[-1], torch.exp(ordered[-length - 1] - ordered[-1])
    excess = torch.exp(tail - largest) - cutoff
    if float(excess[-1] - excess[0]) < 1e-12:
        return Smoothed(log_ratios.log_softmax(0), -math.inf)
    k, scale = fit_tail(excess.clamp(min=torch.finfo(torch.float64).tiny))
    k = (length * k + _PRIOR_COUNT * _PRIOR_SHAPE) / (length + _PRIOR_COUNT)
    quantiles = (torch.arange(length, dtype=torch.float64, device="cpu") + 0.5) / length
    expected = cutoff + scale * torch.expm1(-k * torch.log1p(-quantiles)) / k
    smoothed = values.clone()
    smoothed[order[len(values) - length :]] = torch.log(expected).clamp(max=0) + largest
    return Smoothed(smoothed.to(log_ratios).log_softmax(0), k)
