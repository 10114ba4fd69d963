"""Diagonal Gaussian posterior of a variational autoencoder (Kingma and Welling 2014)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ddvi_fast import _checks, ops
from ddvi_fast.posteriors.base import Posterior, draw_start, require_encoders, split_mean_log_var
from ddvi_fast.priors import Prior
from ddvi_fast.rng import Draws


class GaussianParameters(NamedTuple):
    """Mean and log-variance [N, D] of a diagonal Gaussian."""

    mean: Tensor
    log_var: Tensor


class Gaussian(Posterior):
    """Diagonal Gaussian `q(z | x) = N(mean(x), diag exp(log_var(x)))` (Kingma and Welling 2014).

    Args:
        encoder: Network called as `encoder(x, draws)`, from x [N, ...] to [N, 2 D]: mean, then log-variance.
        latent_dim: Number of coordinates, D (int).
        coordinates: Coordinates of the Gaussian, see `Posterior` (default ``latent``). The encoder's frame gives the same posterior.
        prior: Prior of the latents, for the prior's coordinates.

    Example:
        >>> import torch
        >>> from ddvi_fast import networks
        >>> posterior = Gaussian(networks.MLP(5, [8], 4), latent_dim=2)
        >>> sample = posterior.sample(torch.zeros(3, 5), num_samples=7)
        >>> sample.z.shape, sample.log_ratio.shape
        (torch.Size([7, 3, 2]), torch.Size([7, 3]))
    """

    tractable = True

    @_checks.typed
    def __init__(self, encoder: nn.Module, latent_dim: int, coordinates: str = "latent", prior: Prior | None = None) -> None:
        super().__init__(coordinates, prior)
        require_encoders(encoder=encoder)
        _checks.at_least(1, latent_dim=latent_dim)
        self.encoder, self.latent_dim = encoder, latent_dim

    def encode(self, x: Tensor, draws: Draws | None = None) -> GaussianParameters:
        """Return mean and log-variance [N, D]."""
        return GaussianParameters(*split_mean_log_var(self.encoder(x, draws if self.training else None), self.latent_dim))

    def latent_path(self, encoded: GaussianParameters, num_samples: int, draws: Draws) -> Tensor:
        return draw_start(*self.start(encoded), num_samples, draws).unsqueeze(0)

    def log_ratio(self, encoded: GaussianParameters, path: Tensor) -> Tensor:
        return -ops.gaussian_log_prob(path[-1], *self.start(encoded))
