"""Metropolis-adjusted Langevin chains that start at a posterior's own samples, and their memory: latents of data for covering terms.

Where prior samples no longer hit the posterior, latents of data for a mass-covering term come from a few steps of such chains
(docs/method.md, section 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.rng import Draws

__all__ = ["LangevinStates", "ReplayMemory", "langevin_steps"]

_TARGET = 0.574  # acceptance rate at which Langevin steps are most efficient (Roberts and Rosenthal 1998)
_GAIN = 0.1  # change of the logarithm of a step size for a difference of 1 between the rate and its target
_FIRST_SIZE = 0.3  # first step size, in standard deviations of the frame


class LangevinStates(NamedTuple):
    """States [.., D] of chains after their steps, and the mean acceptance probability [..]."""

    v: Tensor
    acceptance: Tensor


@_checks.outside_inference_mode
def langevin_steps(log_density: Callable[[Tensor], Tensor], v: Tensor, size: Tensor, num_steps: int, draws: Draws) -> LangevinStates:
    """Take Metropolis-adjusted Langevin steps `v' = v + size^2 / 2 grad log p(v) + size xi` (Roberts and Tweedie 1996).

    A step is accepted with probability `min(1, p(v') N(v; m(v'), size^2) / (p(v) N(v'; m(v), size^2)))`, so that `p` is stationary.

    Args:
        log_density: Function from states [N, D] to log-densities [N] up to constants, whose rows do not depend on each other.
        v: States [N, D] to start from.
        size: Step size of each chain [N].
        num_steps: Number of steps (int).
        draws: Position of the first row in the random stream.

    Returns:
        The states, without gradients.

    Raises:
        InputError: If `num_steps` is below 1.

    Example:
        >>> states = langevin_steps(lambda v: -0.5 * v.square().sum(-1), torch.zeros(4, 2), torch.full((4,), 0.5), 3, Draws(0))
        >>> states.v.shape, states.acceptance.shape
        (torch.Size([4, 2]), torch.Size([4]))
    """
    _checks.at_least(1, num_steps=num_steps)
    size, total = size.unsqueeze(-1), torch.zeros_like(size)
    value, force = _with_gradient(log_density, v)
    for step in range(num_steps):
        noise = rng.normal(draws, tuple(v.shape), rng.CHAIN + step, device=v.device, dtype=v.dtype)
        uniform = rng.uniform(draws, (len(v), 1), rng.TIME + step, device=v.device, dtype=v.dtype).squeeze(1)
        proposal = v + 0.5 * size.square() * force + size * noise
        other, other_force = _with_gradient(log_density, proposal)
        back = (v - proposal - 0.5 * size.square() * other_force) / size
        log_ratio = (other - value + 0.5 * (noise.square() - back.square()).sum(-1)).nan_to_num(-math.inf)
        taken = uniform.log() < log_ratio
        v, force = (torch.where(taken.unsqueeze(-1), new, old) for new, old in ((proposal, v), (other_force, force)))
        value = torch.where(taken, other, value)
        total = total + log_ratio.clamp(max=0).exp()
    return LangevinStates(v, total / num_steps)


def _with_gradient(log_density: Callable[[Tensor], Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        point = v.detach().requires_grad_()
        value = log_density(point)
        (gradient,) = torch.autograd.grad(value.sum(), point)
    return value.detach(), gradient.nan_to_num(0.0, 0.0, 0.0)


class ReplayMemory:
    """The last state of the chain of each datum, and its step size, which follows the acceptance rate.

    A chain starts at a sample of the posterior when its datum is seen for the first time, and goes on from its last state later.

    Args:
        num_data: Number of data, M (int).
        latent_dim: Number of latents, D (int).
        device: Device of the states (default CPU).
    """

    def __init__(self, num_data: int, latent_dim: int, device: torch.device | str = "cpu") -> None:
        _checks.at_least(1, num_data=num_data, latent_dim=latent_dim)
        self.states = torch.zeros(num_data, latent_dim, dtype=torch.float32, device=device)
        self.log_sizes = torch.full((num_data,), math.log(_FIRST_SIZE), dtype=torch.float32, device=device)
        self.seen = torch.zeros(num_data, dtype=torch.bool, device=device)

    @torch.no_grad()
    def move(
        self, places: Tensor, start: Tensor, mean: Tensor, scale: Tensor, log_density: Callable[[Tensor], Tensor], num_steps: int, draws: Draws
    ) -> Tensor:
        """Move the chains of some data, in the frame of an encoder, which makes their coordinates alike.

        Args:
            places: Numbers of the data, int64 [N], each at most once.
            start: Samples of the posterior [N, D], from which chains start.
            mean, scale: The frame [N, D]: a chain moves in `(z - mean) / scale`.
            log_density: Function from latents [N, D] to their log joint densities [N] with these data.
            num_steps: Number of Langevin steps (int).
            draws: Position of the first row in the random stream.

        Returns:
            Latents [N, D] after the steps.
        """
        z = torch.where(self.seen[places].unsqueeze(1), self.states[places], start)
        sizes = self.log_sizes[places].exp()
        found = langevin_steps(lambda v: log_density(mean + scale * v), (z - mean) / scale, sizes, num_steps, draws)
        z = mean + scale * found.v
        self.states[places], self.seen[places] = z, True
        self.log_sizes[places] += _GAIN * num_steps * (found.acceptance - _TARGET)
        return z
