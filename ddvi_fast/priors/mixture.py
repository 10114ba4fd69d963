"""Mixture of isotropic Gaussians with fixed or learned means."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.precision import as_float32
from ddvi_fast.priors.base import Prior, select_class
from ddvi_fast.priors.quadrature import normal_grid, quadrature_across


class Mixture(Prior):
    """Mixture of equally likely Gaussians N(mean_c, scale^2 I); component `c` is class `c`.

    Args:
        means: Means [C, D]. Default: `num_classes` points on a circle in two dimensions.
        scale: Standard deviation of each component (float, default 0.3).
        num_classes: Number of components if `means` is not given (int, default 10).
        radius: Radius of the circle if `means` is not given (float, default 2).
        learnable: Train the means, through `log_prob` and reparametrized samples (bool, default False).

    Raises:
        InputError: If `scale` or `num_classes` is out of range, or if `means` is not a matrix.

    Example:
        >>> Mixture(num_classes=5).sample(3).shape
        torch.Size([3, 2])
    """

    @_checks.typed
    def __init__(self, means: Tensor | None = None, scale: float = 0.3, num_classes: int = 10, radius: float = 2.0, learnable: bool = False) -> None:
        super().__init__()
        scale = _checks.width(scale, "scale")
        if means is None:
            num_classes = _checks.integer(num_classes, "num_classes", at_least=1)
            angles = 2 * math.pi * torch.arange(num_classes, **as_float32) / num_classes
            radius = _checks.number(radius, "radius")
            means = radius * torch.stack((angles.cos(), angles.sin()), 1)
        means = _checks.tensor(means, "means", (None, None)).float()
        if _checks.readable(means):
            _checks.finite(means, "means")
        _checks.require(means.numel() > 0, "means", "at least one mean of one dimension", means)
        self.means = nn.Parameter(means.clone(), requires_grad=learnable)
        self.scale, self.num_classes = scale, means.shape[0]
        self.dim = self.noise_dim = means.shape[1]

    def integration_nodes(self, resolution: int) -> tuple[Tensor, Tensor]:
        grid, log_weights = normal_grid(self.dim, quadrature_across(resolution, reach=30))
        centred = self.means.detach().double().cpu().unsqueeze(1) + self.scale * grid
        return centred.flatten(0, 1), log_weights.repeat(self.num_classes) - math.log(self.num_classes)

    def _push(self, u: Tensor, labels: Tensor | None) -> Tensor:
        return self.means.to(u)[labels] + self.scale * u

    def _log_prob(self, z: Tensor, labels: Tensor | None) -> Tensor:
        squared = (z.unsqueeze(-2) - self.means.to(z)).square().sum(-1)
        return select_class(-0.5 * squared / self.scale**2 - self.dim * (0.5 * math.log(2 * math.pi) + math.log(self.scale)), labels)

    def _blurred(self, width: float) -> Mixture:
        blurred = Mixture(self.means.detach(), math.hypot(self.scale, width))
        blurred.means = self.means  # the same parameter, so that learned means get their gradient through the blur
        return blurred
