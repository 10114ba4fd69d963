"""The isotropic Gaussian prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.priors.base import Prior, bell_nodes
from ddvi_fast.rng import Draws


class Gaussian(Prior):
    """N(0, scale^2 I) over `dim` latents.

    Example:
        >>> round(Gaussian(dim=2).log_prob(torch.zeros(2)).item(), 4)
        -1.8379
    """

    def __init__(self, dim: int = 2, scale: float = 1.0) -> None:
        super().__init__()
        _checks.require(dim >= 1, "dim", "at least 1", dim)
        _checks.require(scale > 0, "scale", "a positive number", scale)
        self.dim, self.scale = dim, scale

    def integration_nodes(self, resolution: int) -> tuple[Tensor, Tensor]:
        _checks.require(self.dim <= 2, "prior", "at most 2 latent dimensions, for integration nodes", f"D = {self.dim}")
        nodes, log_weights = bell_nodes(resolution, reach=15)
        grid = torch.cartesian_prod(*[nodes] * self.dim).view(-1, self.dim)
        weights = torch.cartesian_prod(*[log_weights] * self.dim).view(-1, self.dim).sum(-1)
        return self.scale * grid, weights

    def _sample(self, n: int, draws: Draws, labels: Tensor | None, device: torch.device) -> Tensor:
        return self.scale * rng.normal(draws, (n, self.dim), rng.PRIOR + 1, device=device)

    def _log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return -0.5 * (z / self.scale).square().sum(-1) - self.dim * (0.5 * math.log(2 * math.pi) + math.log(self.scale))

    def _blurred(self, width: float) -> Gaussian:
        return Gaussian(self.dim, math.hypot(self.scale, width))
