"""Two moons: a simulator whose posterior is a pair of thin crescents, fitted by simulations alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints

from ddvi_fast.inference import Architecture, FittedPosterior, Training, fit_posterior

RADIUS, WIDTH, CENTRE = 0.1, 0.01, 0.25  # of a moon, its rim, and where it stands


class TwoMoons:
    """Two parameters uniform in [-1, 1]; data are a point of a half circle, moved by them."""

    support = constraints.interval(-1.0, 1.0)

    def simulate(self, n: int) -> tuple[Tensor, Tensor]:
        z = 2 * torch.rand(n, 2) - 1
        angle, radius = math.pi * (torch.rand(n) - 0.5), RADIUS + WIDTH * torch.randn(n)
        moon = torch.stack((radius * angle.cos() + CENTRE, radius * angle.sin()), 1)
        return z, moon + self._moved(z)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """The density is known as well: enough for weights, though zero in places, so that no bound can be trained by it."""
        across, along = (x - self._moved(z) - torch.tensor([CENTRE, 0.0])).unbind(-1)
        radius = torch.hypot(across, along)
        log_likelihood = -0.5 * ((radius - RADIUS) / WIDTH) ** 2 - math.log(WIDTH * math.sqrt(2 * math.pi)) - torch.log(math.pi * radius)
        return torch.where(across > 0, log_likelihood, -math.inf) - math.log(4)

    @staticmethod
    def _moved(z: Tensor) -> Tensor:
        return torch.stack((-(z[..., 0] + z[..., 1]).abs(), z[..., 1] - z[..., 0]), -1) / math.sqrt(2)


def fit(x: Tensor | None = None, training: Training = Training(), architecture: Architecture = Architecture(), seed: int = 0) -> FittedPosterior:
    """The posterior of any data [2]."""
    model = TwoMoons()
    return fit_posterior(model, x, support=model.support, objective="simulations", training=training, architecture=architecture, seed=seed)


if __name__ == "__main__":
    posterior = fit(torch.tensor([0.0, 0.0]))
    print(posterior, posterior.importance_sample(), posterior.diagnostics(), sep="\n")
