"""Path log-ratio of given trajectories of the denoising chain."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.ops.chain import check_chain, check_denoiser, check_source, check_types, spread_context
from ddvi_fast.ops.sleep import regression
from ddvi_fast.reference import chain as reference


def trajectory_log_ratio(trajectory: Tensor, context: Tensor | None, denoiser: ResidualMLP, coefficients: Tensor) -> Tensor:
    """The path log-ratio of a given trajectory (docs/method.md, section 2), as a doubly reparametrized gradient needs it (Tucker et al. 2019).

    The states are data here: gradients reach the denoiser only through its density, and the states only through the formula. All steps
    are one large batch for the network, computed in plain PyTorch on every backend if a gradient is needed, and otherwise by `regression`.

    Args:
        trajectory: States [T + 1, .., N, D], start first.
        context: Context of each row, [.., N, C], broadcast against the rows; None for a denoiser without context.
        denoiser: The network of the chain, without groups.
        coefficients: Table [T, 5] of `NoiseSchedule.coefficients`, with positive step deviations.

    Returns:
        The log-ratio in nats, [.., N].

    Raises:
        InputError: The shapes do not fit, the denoiser is grouped, or the table is that of a deterministic chain.
    """
    _checks.tensor(trajectory, "trajectory")
    check_denoiser(denoiser)
    fits = trajectory.dim() >= 3 and trajectory.shape[0] == denoiser.num_steps + 1
    _checks.require(fits, "trajectory", f"shape [{denoiser.num_steps + 1}, .., N, {denoiser.latent_dim}]", trajectory)
    check_chain(trajectory[0], context, denoiser, coefficients)
    check_source(coefficients, True)
    weights = denoiser.chain_weights()
    _checks.require(not weights.grouped, "denoiser", "one without groups", f"{denoiser.groups} groups")
    check_types(weights, trajectory=trajectory, context=context)
    table = coefficients.to(trajectory)
    if not torch.is_grad_enabled():
        return _by_regression(trajectory, context, denoiser, table)
    rows = trajectory.shape[1:-1]
    spread = None if context is None else spread_context(context, rows).reshape(-1, context.shape[-1])
    states = trajectory.reshape(trajectory.shape[0], -1, trajectory.shape[-1])
    return reference.trajectory_log_ratio(states, spread, weights, table, denoiser.residual).reshape(rows)


def _by_regression(trajectory: Tensor, context: Tensor | None, denoiser: ResidualMLP, table: Tensor) -> Tensor:
    """The log-ratio from squared errors of the outputs `o`: `y_{t-1} - m_t = B_t (y_{t-1} / B_t - A_t / B_t y_t - o)`."""
    states, following = trajectory[:-1], trajectory[1:]
    state, output, deviation, scale, beta = table.unbind(1)
    # For the regression the states are latents without noise, and the states that follow are the noise of the target.
    errors = torch.stack((torch.ones_like(state), torch.zeros_like(state), -state / output, 1 / output, 0.5 * (output / deviation).square()), 1)
    steps = torch.arange(len(table) - 1, -1, -1, device=trajectory.device)
    t = steps.view(-1, *[1] * (states.dim() - 2)).expand(states.shape[:-1])
    reverse = regression(states, t, context, denoiser, errors, noise=following, precision="float32")
    scale, constant = scale[steps].view(-1, *[1] * (states.dim() - 1)), 0.5 * states.shape[-1] * torch.log(beta / deviation.square()).sum()
    forward = torch.addcmul(states, scale, following, value=-1).square_().sum(-1) / (2 * beta[steps].view(-1, *[1] * (states.dim() - 2)))
    return (reverse - forward).sum(0) - constant
