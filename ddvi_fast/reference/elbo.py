"""Reductions of the bound, in nats: log-likelihoods, the Gaussian KL and the log-mean-exp of importance weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, I)) summed over the last axis (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(-1)


def gaussian_log_prob(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(z; mean, exp(log_var)) summed over the last axis."""
    return -0.5 * ((z - mean).square() * torch.exp(-log_var) + log_var + math.log(2 * math.pi)).sum(-1)


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """`sum_d x_d l_d - softplus(l_d)`; `x` may be gray, in [0, 1]."""
    return (x * logits - softplus(logits)).sum(-1)


def gaussian_log_likelihood(mean: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """log N(x; mean, scale^2) summed over the last axis; `scale` broadcasts."""
    standardized = (x - mean) / scale
    constant = 0.5 * math.log(2 * math.pi) + torch.log(scale).expand_as(standardized)
    return (-0.5 * standardized.square() - constant).sum(-1)


def binomial_log_likelihood(logits: Tensor, counts: Tensor, total: float) -> Tensor:
    """log Binomial(counts; total, sigmoid(logits)) summed over the last axis."""
    choose = math.lgamma(total + 1) - torch.lgamma(counts + 1) - torch.lgamma(total - counts + 1)
    return (choose + counts * logits - total * softplus(logits)).sum(-1)


def log_mean_exp(log_weights: Tensor, dim: int) -> Tensor:
    """`log mean exp` over one axis."""
    return torch.logsumexp(log_weights, dim) - math.log(log_weights.shape[dim])
