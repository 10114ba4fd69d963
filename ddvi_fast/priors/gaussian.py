"""Isotropic Gaussian prior."""

from __future__ import annotations

import math

from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.priors.base import Prior
from ddvi_fast.priors.quadrature import normal_grid, normal_quadrature


class Gaussian(Prior):
    """Isotropic Gaussian N(0, scale^2 I).

    Args:
        dim: Number of latent dimensions, D (int, default 2).
        scale: Standard deviation (float, default 1).

    Raises:
        InputError: If `dim` is below 1 or `scale` is not positive.

    Example:
        >>> import torch
        >>> round(Gaussian(dim=2).log_prob(torch.zeros(2)).item(), 4)
        -1.8379
    """

    @_checks.typed
    def __init__(self, dim: int = 2, scale: float = 1.0) -> None:
        super().__init__()
        dim = _checks.integer(dim, "dim", at_least=1)
        scale = _checks.width(scale, "scale")
        self.dim, self.noise_dim, self.scale = dim, dim, scale

    def integration_nodes(self, resolution: int) -> tuple[Tensor, Tensor]:
        nodes, log_weights = normal_grid(self.dim, normal_quadrature(resolution, reach=15))
        return self.scale * nodes, log_weights

    def _push(self, u: Tensor, labels: Tensor | None) -> Tensor:
        return self.scale * u

    def _log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return -0.5 * (z / self.scale).square().sum(-1) - self.dim * (0.5 * math.log(2 * math.pi) + math.log(self.scale))

    def _blurred(self, width: float) -> Gaussian:
        return Gaussian(self.dim, math.hypot(self.scale, width))
