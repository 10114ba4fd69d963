"""The bound's reductions, in nats per example."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast import _backend, _checks


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, diag exp(log_var)) || N(0, I)) in nats: [..., D] -> [...].

    Example:
        >>> gaussian_kl(torch.zeros(1, 2), torch.zeros(1, 2)).item()
        0.0
    """
    _same_shape(mean, log_var, "log_var")
    return _backend.operation("elbo", mean, log_var).gaussian_kl(mean, log_var)


def gaussian_log_prob(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mean, diag exp(log_var)) in nats: `z` [..., D], the others broadcast, -> [...]."""
    _same_shape(mean, log_var, "log_var")
    return _backend.operation("elbo", z, mean, log_var).gaussian_log_prob(z, mean, log_var)


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """Bernoulli log-likelihood from logits, summed over the last axis.

    Args:
        logits: [..., N, P].
        x: [..., N, P] in [0, 1] (grey values give the cross-entropy); leading axes broadcast.

    Returns:
        nats, [..., N].
    """
    _same_width(logits, x)
    return _backend.operation("elbo", logits, x).bernoulli_log_likelihood(logits, x)


def gaussian_log_likelihood(mean: Tensor, x: Tensor, scale: Tensor | float) -> Tensor:
    """log N(x; mean, scale^2) in nats, summed over the last axis: [..., N, P] -> [..., N]; `scale` broadcasts and is positive."""
    _same_width(mean, x)
    scale = torch.as_tensor(scale, dtype=mean.dtype, device=mean.device)
    return _backend.operation("elbo", mean, x, scale).gaussian_log_likelihood(mean, x, scale)


def binomial_log_likelihood(logits: Tensor, counts: Tensor, total: int) -> Tensor:
    """log Binomial(counts; total, sigmoid(logits)) in nats, summed over the last axis: [..., N, P] -> [..., N]."""
    _same_width(logits, counts)
    _checks.require(total >= 1, "total", "at least 1", total)
    return _backend.operation("elbo", logits, counts, constant=counts).binomial_log_likelihood(logits, counts, total)


def log_mean_exp(log_weights: Tensor, dim: int) -> Tensor:
    """`log mean exp(log_weights)` over axis `dim`, without overflow: the importance-weighted bound of Burda et al. (2016).

    Example:
        >>> round(log_mean_exp(torch.tensor([[1000.0], [1000.0]]), 0).item(), 3)
        1000.0
    """
    _checks.require(log_weights.shape[dim] >= 1, "log_weights", f"at least one weight along axis {dim}", log_weights)
    return _backend.operation("elbo", log_weights).log_mean_exp(log_weights, dim)


def _same_shape(first: Tensor, second: Tensor, argument: str) -> None:
    _checks.require(first.shape == second.shape, argument, f"shape {list(first.shape)}", second)


def _same_width(output: Tensor, x: Tensor) -> None:
    _checks.require(output.shape[-1] == x.shape[-1], "x", f"a last axis of {output.shape[-1]}", x)
