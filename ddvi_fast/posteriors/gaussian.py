"""Diagonal Gaussian posterior of a variational autoencoder (Kingma and Welling 2014)."""

from __future__ import annotations

from torch import Tensor, nn

from ddvi_fast import ops
from ddvi_fast.posteriors.base import Posterior, draw_start, split_mean_log_var
from ddvi_fast.rng import Draws


class Gaussian(Posterior):
    """Diagonal Gaussian `q(z | x) = N(mean(x), diag exp(log_var(x)))` (Kingma and Welling 2014).

    Args:
        encoder: Network called as `encoder(x, draws)`, from x [N, ...] to [N, 2 D]: mean, then log-variance.
        latent_dim: Number of latent dimensions, D (int).

    Example:
        >>> import torch
        >>> from ddvi_fast import networks
        >>> posterior = Gaussian(networks.MLP(5, [8], 4), latent_dim=2)
        >>> sample = posterior.sample(torch.zeros(3, 5), num_samples=7)
        >>> sample.z.shape, sample.log_ratio.shape
        (torch.Size([7, 3, 2]), torch.Size([7, 3]))
    """

    def __init__(self, encoder: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.encoder, self.latent_dim = encoder, latent_dim

    def encode(self, x: Tensor, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [N, D]."""
        return split_mean_log_var(self.encoder(x, draws if self.training else None))

    def latent_path(self, encoded: tuple[Tensor, Tensor], num_samples: int, draws: Draws) -> Tensor:
        return draw_start(*encoded, num_samples, draws).unsqueeze(0)

    def log_ratio(self, encoded: tuple[Tensor, Tensor], path: Tensor) -> Tensor:
        return -ops.gaussian_log_prob(path[-1], *encoded)
