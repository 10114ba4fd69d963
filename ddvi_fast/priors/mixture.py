"""A mixture of isotropic Gaussians, its centres fixed or learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, rng
from ddvi_fast.priors.base import Prior, across, bell_nodes, pick
from ddvi_fast.rng import Draws


class Mixture(Prior):
    """Equally likely components N(mean_c, scale^2 I); component `c` is class `c`.

    Args:
        means: centres [C, D]; by default `num_classes` of them on a circle of `radius` in two dimensions.
        scale: standard deviation of a component.
        learnable: train the centres (through `log_prob` and reparametrised samples).
    """

    def __init__(self, means: Tensor | None = None, scale: float = 0.3, num_classes: int = 10, radius: float = 2.0, learnable: bool = False) -> None:
        super().__init__()
        _checks.require(scale > 0, "scale", "a positive number", scale)
        if means is None:
            _checks.require(num_classes >= 1, "num_classes", "at least 1", num_classes)
            angles = 2 * math.pi * torch.arange(num_classes) / num_classes
            means = radius * torch.stack((angles.cos(), angles.sin()), 1)
        means = _checks.tensor(torch.as_tensor(means), "means", (None, None)).float()
        self.means = nn.Parameter(means.clone(), requires_grad=learnable)
        self.scale, self.num_classes, self.dim = scale, means.shape[0], means.shape[1]

    def integration_nodes(self, resolution: int) -> tuple[Tensor, Tensor]:
        _checks.require(self.dim <= 2, "prior", "at most 2 latent dimensions, for integration nodes", f"D = {self.dim}")
        nodes, log_weights = bell_nodes(across(resolution), reach=30)
        grid = self.scale * torch.cartesian_prod(*[nodes] * self.dim).view(-1, self.dim)
        weights = torch.cartesian_prod(*[log_weights] * self.dim).view(-1, self.dim).sum(-1) - math.log(self.num_classes)
        centred = self.means.detach().double().cpu().unsqueeze(1) + grid
        return centred.flatten(0, 1), weights.repeat(self.num_classes)

    def _sample(self, n: int, draws: Draws, labels: Tensor | None, device: torch.device) -> Tensor:
        return self.means.to(device)[labels] + self.scale * rng.normal(draws, (n, self.dim), rng.PRIOR + 1, device=device)

    def _log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        squared = (z.unsqueeze(-2) - self.means.to(z)).square().sum(-1)
        return pick(-0.5 * squared / self.scale**2 - self.dim * (0.5 * math.log(2 * math.pi) + math.log(self.scale)), labels)

    def _blurred(self, width: float) -> Mixture:
        blurred = Mixture(self.means.detach(), math.hypot(self.scale, width))
        blurred.means = self.means  # the very parameter: learned centres take their gradient through the blur
        return blurred
