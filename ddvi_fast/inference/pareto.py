"""The tail of importance weights: a generalised Pareto distribution's shape, and weights smoothed by it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_PRIOR_COUNT, _PRIOR_SHAPE = 10, 0.5  # observations that a weak prior on the shape counts for, and where it stands
FEWEST = 5  # values that make a tail


class Smoothed(NamedTuple):
    """Log-weights [K], normalised, and the shape k of their tail."""

    log_weights: Tensor
    k: float


def fit_tail(excess: Tensor) -> tuple[float, float]:
    """Shape k and scale of a generalised Pareto distribution, from values [n] above its threshold.

    The estimator of Zhang and Stephens (2009): with `b = -k / scale`, whose likelihood has the best shape for each `b` in closed form, the mean
    of `b` over a grid that is weighted by that likelihood.

    Example:
        >>> quantiles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        >>> k, scale = fit_tail(2 * ((1 - quantiles) ** -0.4 - 1) / 0.4)
        >>> round(k, 1), round(scale, 1)
        (0.4, 2.0)
    """
    x = excess.double().sort().values
    count = len(x)
    grid = 30 + math.isqrt(count)
    steps = 1 - torch.sqrt(grid / (torch.arange(1, grid + 1, dtype=torch.float64) - 0.5))
    b = 1 / x[-1] + steps / (3 * x[int(count / 4 + 0.5) - 1])
    k = torch.log1p(-b.unsqueeze(1) * x).mean(1)
    likelihood = count * (torch.log(-b / k) - k - 1)
    best = float((b * likelihood.softmax(0)).sum())
    k = float(torch.log1p(-best * x).mean())
    return k, -k / best


def smooth(log_ratios: Tensor) -> Smoothed:
    """Pareto-smoothed importance weights (Vehtari et al. 2024) of log-ratios [K], which may hold `-inf`.

    The largest `min(K / 5, 3 sqrt(K))` are replaced by the expected order statistics of the tail fitted to them, none of them above the largest. The
    shape has a weak prior around 0.5. Where fewer than 5 have any weight, or all of the tail the same, nothing is smoothed: k is then infinite,
    or in the second case minus infinity, for a tail that ends.
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
    quantiles = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    expected = cutoff + scale * torch.expm1(-k * torch.log1p(-quantiles)) / k
    smoothed = values.clone()
    smoothed[order[len(values) - length :]] = torch.log(expected).clamp(max=0) + largest
    return Smoothed(smoothed.to(log_ratios).log_softmax(0), k)
