"""Implicit posterior of an adversarial autoencoder (Makhzani et al. 2016)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ddvi_fast import _checks, rng
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors.base import Posterior, with_context
from ddvi_fast.rng import Draws


class Location(NamedTuple):
    """Output of the encoder: the location of the samples [N, D] and the context [N, C]."""

    mean: Tensor
    context: Tensor


class Adversarial(Posterior):
    """Implicit posterior `z = m(x) + g(noise, c(x))` of an adversarial autoencoder (Makhzani et al. 2016).

    Its samples have no log-ratio, so bounds and importance weights do not exist. The objectives `Adversarial` and `WAE` train it from
    samples; `metrics.knn_accuracy`, `latent_nll` and `mmd` evaluate it.

    Args:
        encoder: Network called as `encoder(x, draws)`, from x [N, ...] to [N, D + C]: location, then context.
        latent_dim: Number of latent dimensions, D (int).
        context_dim: Size of the context, C (int, default 32).
        noise_dim: Dimensions of the noise (int, default 2).
        hidden_dim: Width of the hidden layer of g (int, default 64).
        draws: Position of the initial weights in the random stream (default `Draws(0)`).

    Raises:
        InputError: If `noise_dim` is below 1.

    Example:
        >>> import torch
        >>> from ddvi_fast import networks
        >>> posterior = Adversarial(networks.MLP(5, [8], 6), latent_dim=2, context_dim=4)
        >>> sample = posterior.sample(torch.zeros(3, 5), num_samples=7)
        >>> sample.z.shape, sample.log_ratio
        (torch.Size([7, 3, 2]), None)
    """

    why_no_density = (
        "its samples are implicit and have no log_ratio; objectives adversarial and wae train it, knn_accuracy, latent_nll and mmd evaluate it, "
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
        """Always False."""
        return False

    def encode(self, x: Tensor, draws: Draws | None = None) -> Location:
        """Return location [N, D] and context [N, C]."""
        output = self.encoder(x, draws if self.training else None)
        width = self.latent_dim + self.context_dim
        _checks.require(output.shape[-1] == width, "encoder", f"an output [N, {width}]", output)
        return Location(*output.split((self.latent_dim, self.context_dim), dim=-1))

    def latent_path(self, encoded: Location, num_samples: int, draws: Draws) -> Tensor:
        mean, context = encoded
        noise = rng.normal(draws, (num_samples, *mean.shape[:-1], self.noise_dim), rng.START, device=mean.device, dtype=mean.dtype)
        return (mean + self.spread(with_context(noise, context))).unsqueeze(0)

    def log_ratio(self, encoded: Location, path: Tensor) -> Tensor:
        """Raise `InputError`: the posterior has no density."""
        _checks.fail("posterior", "one with a density, for a log_ratio", f"Adversarial: {self.why_no_density}")
