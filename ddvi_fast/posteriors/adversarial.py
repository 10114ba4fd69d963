"""An implicit posterior: noise goes through a network, and no density comes out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, rng
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors.base import Posterior
from ddvi_fast.rng import Draws


class Location(NamedTuple):
    """Where the samples of each row lie [N, D], and the context [N, C] that shapes them."""

    mean: Tensor
    context: Tensor


class Adversarial(Posterior):
    """`z = m(x) + g(noise, c(x))`: the encoder of an adversarial autoencoder (Makhzani et al. 2016).

    Its samples come without a log-ratio, so it has no bound and no importance weights, and asking for one is an error. The objectives
    `Adversarial` and `WAE` train it by its samples alone, and `metrics.knn_accuracy`, `latent_nll` and `mmd` judge it.

    Args:
        encoder: `encoder(x, draws)`, from x [N, ...] to [N, D + C]: location and context.
        latent_dim: D.
        context_dim: C.
        noise_dim: dimensions of the noise.
        hidden_dim: width of the network that the noise goes through.
        draws: where the initial weights are drawn.

    Example:
        >>> from ddvi_fast import networks
        >>> posterior = Adversarial(networks.MLP(5, [8], 6), latent_dim=2, context_dim=4)
        >>> sample = posterior.sample(torch.zeros(3, 5), num_samples=7)
        >>> sample.z.shape, sample.log_ratio
        (torch.Size([7, 3, 2]), None)
    """

    why_no_density = (
        "its samples are implicit and have no log_ratio; objectives adversarial and wae train it, knn_accuracy, latent_nll and mmd judge it, "
        "and every other family has bounds"
    )

    def __init__(
        self, encoder: nn.Module, latent_dim: int, context_dim: int = 32, noise_dim: int = 2, hidden_dim: int = 64, draws: Draws = Draws(0)
    ) -> None:
        super().__init__()
        _checks.require(noise_dim >= 1, "noise_dim", "at least 1", noise_dim)
        self.encoder, self.latent_dim, self.context_dim, self.noise_dim = encoder, latent_dim, context_dim, noise_dim
        self.spread = MLP(context_dim + noise_dim, [hidden_dim], latent_dim, draws=draws)

    @property
    def has_density(self) -> bool:
        return False

    def encode(self, x: Tensor, draws: Draws | None = None) -> Location:
        output = self.encoder(x, draws if self.training else None)
        width = self.latent_dim + self.context_dim
        _checks.require(output.shape[-1] == width, "encoder", f"an output [N, {width}]", output)
        return Location(*output.split((self.latent_dim, self.context_dim), dim=-1))

    def latent_path(self, encoded: Location, num_samples: int, draws: Draws) -> Tensor:
        mean, context = encoded
        noise = rng.normal(draws, (num_samples, *mean.shape[:-1], self.noise_dim), rng.START, device=mean.device, dtype=mean.dtype)
        shaped = self.spread(torch.cat((noise, context.expand(num_samples, *context.shape)), -1))
        return (mean + shaped).unsqueeze(0)

    def log_ratio(self, encoded: Location, path: Tensor) -> Tensor:
        """Refused: there is none.

        Raises:
            InputError: always.
        """
        _checks.fail("posterior", "one with a density, for a log_ratio", f"Adversarial: {self.why_no_density}")
