"""Two moons task: a simulator whose posterior is a pair of narrow crescents, fitted to simulations only."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from ddvi_fast.inference import Architecture, FittedPosterior, Training, fit_posterior

RADIUS, WIDTH, CENTRE = 0.1, 0.01, 0.25  # radius of a moon, standard deviation of the radius, and its first coordinate


class TwoMoons:
    """Two parameters uniform on [-1, 1]; the data are a point on a half circle, shifted by a function of them."""

    support = constraints.interval(-1.0, 1.0)

    def simulate(self, n: int) -> tuple[Tensor, Tensor]:
        z = 2 * torch.rand(n, 2) - 1
        angle, radius = math.pi * (torch.rand(n) - 0.5), RADIUS + WIDTH * torch.randn(n)
        moon = torch.stack((radius * angle.cos() + CENTRE, radius * angle.sin()), 1)
        return z, moon + self._shift(z)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Compute log p(x, z). The density is zero in places, so it gives importance weights, but no finite bound for training."""
        across, along = (x - self._shift(z) - torch.tensor([CENTRE, 0.0])).unbind(-1)
        radius = torch.hypot(across, along)
        log_likelihood = -0.5 * ((radius - RADIUS) / WIDTH) ** 2 - math.log(WIDTH * math.sqrt(2 * math.pi)) - torch.log(math.pi * radius)
        return torch.where(across > 0, log_likelihood, -math.inf) - math.log(4)

    @staticmethod
    def _shift(z: Tensor) -> Tensor:
        return torch.stack((-(z[..., 0] + z[..., 1]).abs(), z[..., 1] - z[..., 0]), -1) / math.sqrt(2)


def fit(x: Tensor | None = None, training: Training = Training(), architecture: Architecture = Architecture(), seed: int = 0) -> FittedPosterior:
    """Fit a posterior that accepts any data [2]."""
    model = TwoMoons()
    return fit_posterior(model, x, support=model.support, objective="simulations", training=training, architecture=architecture, seed=seed)


if __name__ == "__main__":
    posterior = fit(torch.tensor([0.0, 0.0]))
    print(posterior, posterior.importance_sample(), posterior.diagnostics(), sep="\n")
