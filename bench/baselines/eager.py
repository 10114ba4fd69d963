"""The operations in plain PyTorch, without any code of ddvi_fast.

They follow the paper's released code: layers are `nn.Linear`, noise is `torch.randn`, the chain is a Python loop, kernel densities and MMD hold
all pairs. Nothing is fused and nothing is slowed down. Noise and timesteps are arguments, so that a comparison can use the same numbers on both
sides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Denoiser(nn.Module):
    """Four linear layers of width H, each with an embedding of the timestep added before its ReLU, then one to D."""

    def __init__(self, latent_dim: int, context_dim: int, num_steps: int, hidden_dim: int = 128) -> None:
        super().__init__()
        widths = [latent_dim + context_dim, *[hidden_dim] * 4]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(widths))
        self.embeddings = nn.ModuleList(nn.Embedding(num_steps, hidden_dim) for _ in range(4))
        self.last = nn.Linear(hidden_dim, latent_dim)
        self.residual = context_dim > 0

    def forward(self, y: Tensor, context: Tensor | None, t: Tensor) -> Tensor:
        """Predict at states y [N, D], context [N, C], timesteps t [N]."""
        hidden = y if context is None else torch.cat((y, context), dim=-1)
        outputs = []
        for index, (layer, embedding) in enumerate(zip(self.layers, self.embeddings, strict=True)):
            hidden = torch.relu(layer(hidden) + embedding(t))
            if index == 2 and self.residual:
                hidden = hidden + outputs[0]
            outputs.append(hidden)
        return self.last(hidden)


def gaussian_log_density(value: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(value; mean, variance I), [N, D] -> [N]."""
    return (-0.5 * (value - mean) ** 2 / variance - 0.5 * torch.log(2 * math.pi * variance)).sum(-1)


def chain_step(denoiser: Denoiser, y: Tensor, context: Tensor | None, t: Tensor, row: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One denoising step and its contribution to the path log-ratio; `row` [5] holds A, B, s, sqrt(alpha), beta."""
    weight_state, weight_output, deviation, scale, beta = row.unbind()
    mean = weight_state * y + weight_output * denoiser(y, context, t)
    if noise is None:
        return mean, None
    following = mean + deviation * noise
    forward = gaussian_log_density(y, scale * following, beta)
    reverse = gaussian_log_density(following, mean, deviation**2)
    return following, forward - reverse


def sample_chain(
    denoiser: Denoiser, y: Tensor, context: Tensor | None, table: Tensor, noise: Tensor | None = None, stochastic: bool = True, step=chain_step
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """All T steps of table [T, 5] from y [N, D]: `(z, path [N] or None, states)`; noise [T, N, D] is drawn if not given."""
    states, path = [y], y.new_zeros(len(y)) if stochastic else None
    for index in reversed(range(len(table))):
        t = torch.full((len(y),), index, device=y.device)
        drawn = None if not stochastic else torch.randn_like(y) if noise is None else noise[index]
        y, ratio = step(denoiser, y, context, t, table[index], drawn)
        path = None if ratio is None else path + ratio
        states.append(y)
    return y, path, states


def sample_class_chains(
    denoisers: Sequence[Denoiser], y: Tensor, context: Tensor, table: Tensor, noise: Tensor | None = None, step=chain_step
) -> tuple[Tensor, Tensor]:
    """One chain a class over the same batch, one after another: y [G, N, D], context [G, N, C] -> z [G, N, D], path [G, N]."""
    results = [
        sample_chain(denoiser, y[group], context[group], table, None if noise is None else noise[:, group], step=step)
        for group, denoiser in enumerate(denoisers)
    ]
    return torch.stack([z for z, _, _ in results]), torch.stack([path for _, path, _ in results])


def sample_indexed_chains(
    denoisers: Sequence[Denoiser], y: Tensor, context: Tensor, groups: Tensor, table: Tensor, noise: Tensor | None = None, step=chain_step
) -> tuple[Tensor, Tensor]:
    """One chain a class over the rows of that class, `groups` [N]: y [N, D], context [N, C] -> z [N, D], path [N]."""
    order = torch.argsort(groups, stable=True)
    rows = order.split(torch.bincount(groups, minlength=len(denoisers)).tolist())
    parts = [
        sample_chain(denoiser, y[own], context[own], table, None if noise is None else noise[:, own], step=step)
        for denoiser, own in zip(denoisers, rows, strict=True)
    ]
    back = torch.argsort(order)
    return torch.cat([z for z, _, _ in parts])[back], torch.cat([path for _, path, _ in parts])[back]


def add_noise(x0: Tensor, t: Tensor, signal: Tensor, deviation: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`signal_t x0 + deviation_t noise` for x0 [N, D], t [N] and tables [T]; returns it and the noise."""
    noise = torch.randn_like(x0) if noise is None else noise
    return signal[t].unsqueeze(-1) * x0 + deviation[t].unsqueeze(-1) * noise, noise


def denoising_loss(
    denoiser: Denoiser, x0: Tensor, t: Tensor, context: Tensor | None, signal: Tensor, deviation: Tensor, noise: Tensor | None = None
) -> Tensor:
    """Huber error of the predicted noise, mean over latent dimensions, [N]."""
    y, noise = add_noise(x0, t, signal, deviation, noise)
    return functional.smooth_l1_loss(denoiser(y, context, t), noise, reduction="none").mean(-1)


def gaussian_kl(mean: Tensor, log_var: Tensor) -> Tensor:
    """KL of N(mean, exp(log_var)) to N(0, I), [N]."""
    return -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(-1)


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    """[N, P] -> [N]."""
    return -functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


def gaussian_log_likelihood(mean: Tensor, x: Tensor, scale: float) -> Tensor:
    """[N, P] -> [N]."""
    return (-0.5 * ((x - mean) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)).sum(-1)


def binomial_log_likelihood(logits: Tensor, counts: Tensor, total: int) -> Tensor:
    """[N, P] -> [N]."""
    choose = math.lgamma(total + 1) - torch.lgamma(counts + 1) - torch.lgamma(total - counts + 1)
    return (choose + counts * functional.logsigmoid(logits) + (total - counts) * functional.logsigmoid(-logits)).sum(-1)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Over the first axis: [K, N] -> [N]."""
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


def kernel_density(z: Tensor, points: Tensor, bandwidth: float) -> Tensor:
    """Log-density [N] at z [N, D] of Gaussian kernels on points [M, D]."""
    scaled = (z.unsqueeze(1) - points.unsqueeze(0)) / bandwidth
    constant = math.log(len(points)) + z.shape[1] * math.log(bandwidth * math.sqrt(2 * math.pi))
    return torch.logsumexp(-0.5 * (scaled**2).sum(-1), dim=1) - constant


def kde_log_density(z: Tensor, points: Tensor, bandwidths: Sequence[float], clamp: float) -> Tensor:
    """A density for each bandwidth, clamped and averaged in probability: [N]."""
    each = torch.stack([kernel_density(z, points, bandwidth).clamp(-clamp, clamp) for bandwidth in bandwidths])
    return torch.logsumexp(each, dim=0) - math.log(len(bandwidths))


def mmd(x: Tensor, y: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Root of the biased estimate of the squared discrepancy of x [N, P] and y [M, P] from one matrix over all N + M rows."""
    rows = torch.cat((x, y))
    norms = (rows**2).sum(1)
    squared = (norms.unsqueeze(1) + norms.unsqueeze(0) - 2 * rows @ rows.T).clamp(min=0)
    kernel = sum(torch.exp(-squared / (2 * sigma)) for sigma in sigmas)
    count = len(x)
    within = kernel[:count, :count].mean() + kernel[count:, count:].mean()
    return (within - kernel[:count, count:].mean() - kernel[count:, :count].mean()).clamp(min=0).sqrt()
