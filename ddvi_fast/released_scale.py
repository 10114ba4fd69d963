"""Reconstruction error and KL terms on the scale of the paper's released code (docs/migration.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ddvi_fast import _backend
from ddvi_fast.dense import on_device
from ddvi_fast.likelihoods import Gaussian
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import fixed_statistics
from ddvi_fast.posteriors import Diffusion, Posterior
from ddvi_fast.rng import Draws


def pixel_mean(model: LatentVariableModel, x: Tensor, z: Tensor, draws: Draws | None = None) -> Tensor:
    """Compute the released code's reconstruction error, a mean over pixels.

    It is the squared error of data scaled to [-1, 1] if the likelihood is Gaussian with a value range, otherwise minus the log-likelihood
    divided by the number of pixels.

    Args:
        model: The latent-variable model.
        x: Data [N, ...].
        z: Latents [.., N, D].
        draws: Position of the first row in the random stream, for the decoder's dropout; None for no dropout.

    Returns:
        Errors [.., N].
    """
    likelihood, flat, output = model.likelihood, x.flatten(1), decoded(model, z, draws)
    if isinstance(likelihood, Gaussian) and likelihood.value_range is not None:
        low, high = likelihood.value_range
        return ((likelihood.mean(output) - flat) * (2 / (high - low))).square().mean(-1)
    return likelihood.log_prob(output, flat) * (-1 / flat.shape[1])


def decoded(model: LatentVariableModel, z: Tensor, draws: Draws | None) -> Tensor:
    """Decode latents [.., N, D] to [.., N, P]; a decoder with dropout applies it while the model is in training mode and `draws` are given."""
    drops = model.training and draws is not None and getattr(model.decoder, "dropout", 0.0) > 0
    return model.decoder(z, draws.lane("decoder")) if drops else model.decoder(z)


def first_gaussian(posterior: Posterior, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Compute mean and log-variance [N, D] of the posterior's first Gaussian, with the dropout of a sample at the same `draws`."""
    with fixed_statistics(posterior):
        encoded = posterior.encode(x, draws)
    return encoded[0], encoded[1]


def log_var_excess(log_var: Tensor) -> Tensor:
    """Compute the error [N] in nats of `-log q` that uses `log_var` [N, D] where `log_var / 2` belongs."""
    return 0.5 * log_var.sum(-1)


def mean_matching(posterior: Diffusion, context: Tensor | None, trajectory: Tensor, t: Tensor) -> Tensor:
    """Compute the Huber error between the means of the noising process and of the chain, averaged over dimensions.

    Args:
        posterior: The diffusion posterior.
        context: Context [N, C], or None for an unconditional chain.
        trajectory: States [T + 1, N, D] of the chain, `y_T` first.
        t: 0-based timesteps, int64 [N].

    Returns:
        Errors [N].
    """
    if posterior.eta > 0:
        return functional.smooth_l1_loss(*_means(posterior, context, trajectory, t), reduction="none").mean(-1)
    weights = posterior.schedule.detach()._posterior_mean_table(trajectory.dtype)
    if on_device(trajectory) and trajectory.dtype == torch.float32:
        return _Matching.apply(trajectory, t, weights)
    # Each state of a deterministic chain is the mean of its step.
    steps, rows = trajectory.shape[0] - 1, torch.arange(len(t), device=t.device)
    weight_z, weight_y = weights[t].split(1, -1)
    target = weight_z * trajectory[-1] + weight_y * trajectory[steps - 1 - t, rows]
    return functional.smooth_l1_loss(target, trajectory[steps - t, rows], reduction="none").mean(-1)


class _Matching(torch.autograd.Function):
    """The kernels of the errors along a deterministic chain as an autograd function."""

    @staticmethod
    def forward(ctx: Any, trajectory: Tensor, t: Tensor, weights: Tensor) -> Tensor:
        trajectory = trajectory.contiguous()
        ctx.save_for_backward(trajectory, t, weights)
        return _backend.implementation("triton", "matching").forward(trajectory, t, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return _backend.implementation("triton", "matching").backward(upstream.contiguous(), *ctx.saved_tensors), None, None


def kl_per_step(posterior: Diffusion, context: Tensor | None, trajectory: Tensor) -> Tensor:
    """Compute the KL divergence of each step 2 to T between the noising process, given `z`, and the chain with the same variance.

    Args:
        posterior: The diffusion posterior.
        context: Context [N, C], or None for an unconditional chain.
        trajectory: States [T + 1, N, D] of the chain, `y_T` first.

    Returns:
        Divergences [T - 1, N] in nats.
    """
    num_steps, rows = trajectory.shape[0] - 1, trajectory.shape[1]
    variances = posterior.schedule.posterior_variances.to(trajectory)
    steps = []
    for step in range(1, num_steps):
        predicted, target = _means(posterior, context, trajectory, torch.full((rows,), step, device=trajectory.device))
        steps.append((predicted - target).square().sum(-1) / (2 * variances[step]))
    return torch.stack(steps)


def _means(posterior: Diffusion, context: Tensor | None, trajectory: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The means of the chain and of the noising process, [N, D] each, at timesteps `t` [N] of a trajectory."""
    y = trajectory[trajectory.shape[0] - 2 - t, torch.arange(len(t), device=t.device)]
    return posterior.step_means(context, y, trajectory[-1], t, posterior.coefficients())
