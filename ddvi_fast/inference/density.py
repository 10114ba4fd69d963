"""Density of a posterior at given coordinates, for a chain by importance-weighted paths of the noising process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddvi_fast import ops, rng
from ddvi_fast.posteriors import Diffusion, Posterior
from ddvi_fast.rng import Draws

BOUNDS = ("iwae", "elbo")
_STATES = 1 << 18  # states of paths at a time


class Estimate(NamedTuple):
    """Log-densities [N] in nats, and their standard errors [N]."""

    value: Tensor
    error: Tensor


def log_density(posterior: Posterior, encoded: Any, y: Tensor, bound: str, num_paths: int, seed: int) -> Estimate:
    """Estimate a lower bound on `log q(y | x)` at coordinates `y` [N, D], of which `encoded` has one row each.

    A path `y_1, .., y_T` of the noising process `r` from `y` has the weight `w = q(y, y_1, .., y_T | x) / r(y_1, .., y_T | y)`, whose mean is
    `q(y | x)` (docs/method.md, section 2). The bound is the mean of `log w` (``elbo``), or the logarithm of the mean of `w` (``iwae``). The
    standard error of the latter is that of the mean, relative to it; that of one path is NaN.
    """
    if not isinstance(posterior, Diffusion):
        value = posterior.log_density(encoded, y)
        return Estimate(value, torch.zeros_like(value))
    weights = torch.cat([_log_weights(posterior, encoded, y, count, draws) for count, draws in _parts(posterior, len(y), num_paths, seed)]).double()
    value, parts = weights.mean(0), weights
    if bound == "iwae":
        value = ops.log_mean_exp(weights, 0)
        parts = (weights - value).exp()
    error = parts.std(0) / math.sqrt(num_paths) if num_paths > 1 else torch.full_like(value, math.nan)
    return Estimate(value.to(y), error.to(y))


def _parts(posterior: Diffusion, rows: int, num_paths: int, seed: int) -> Iterator[tuple[int, Draws]]:
    """Numbers of paths at a time, with their draws."""
    size = max(1, _STATES // (posterior.schedule.num_steps * rows))
    for first in range(0, num_paths, size):
        yield min(size, num_paths - first), Draws(seed).importance(first)


def _log_weights(posterior: Diffusion, encoded: Any, y: Tensor, count: int, draws: Draws) -> Tensor:
    """The log-weights [count, N] of paths from `y` [N, D]."""
    path = _noised(posterior, posterior.whitened(encoded, y), count, draws)
    return -posterior.log_ratio(encoded, path) - posterior.log_scale(encoded)


def _noised(posterior: Diffusion, v: Tensor, count: int, draws: Draws) -> Tensor:
    """Draw paths [T + 1, count, N, D] of the noising process from `v` [N, D] in the encoder's frame, the noisiest state first."""
    schedule = posterior.schedule
    noise = rng.normal(draws, (count, *v.shape), rng.NOISE, planes=schedule.num_steps, device=v.device)
    path = v.new_empty(schedule.num_steps + 1, count, *v.shape)
    path[-1] = v
    for place, (alpha, beta) in enumerate(zip(schedule.alphas.tolist(), schedule.betas.tolist(), strict=True)):
        torch.add(math.sqrt(alpha) * path[-1 - place], noise[place], alpha=math.sqrt(beta), out=path[-2 - place])
    return path
