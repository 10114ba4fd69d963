"""Implicit posterior of an adversarial autoencoder (Makhzani et al. 2016)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ddvi_fast import _checks, rng
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors.base import Encoded, Posterior, require_encoders, split_mean_log_var, with_context
from ddvi_fast.priors import Prior
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
        encoder: Network called as `encoder(x, draws)`, from x [N, ...] to [N, D + C]: location, then context. In the encoder's frame it returns
            [N, 2 D + C]: mean and log-variance of the frame, then context; the samples in it are `g(noise, c(x))`.
        latent_dim: Number of latent dimensions, D (int).
        context_dim: Size of the context, C (int, default 32).
        noise_dim: Dimensions of the noise (int, default 2).
        hidden_dim: Width of the hidden layer of g (int, default 64).
        draws: Position of the initial weights in the random stream (default `Draws(0)`).
        coordinates: Coordinates of the family, see `Posterior` (default ``latent``).
        prior: Prior of the latents, for the prior's coordinates.

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

    @_checks.typed
    def __init__(
        self, encoder: nn.Module, latent_dim: int, context_dim: int = 32, noise_dim: int = 2, hidden_dim: int = 64, draws: Draws = Draws(0),
        coordinates: str = "latent", prior: Prior | None = None,
    ) -> None:  # fmt: skip
        super().__init__(coordinates, prior)
        _checks.require(noise_dim >= 1, "noise_dim", "at least 1", noise_dim)
        require_encoders(encoder=encoder)
        _checks.at_least(1, latent_dim=latent_dim, context_dim=context_dim, noise_dim=noise_dim, hidden_dim=hidden_dim)
        self.encoder, self.latent_dim, self.context_dim, self.noise_dim = encoder, latent_dim, context_dim, noise_dim
        self.spread = MLP(context_dim + noise_dim, [hidden_dim], latent_dim, draws=draws)

    @property
    def has_density(self) -> bool:
        """Always False."""
        return False

    def encode(self, x: Tensor, draws: Draws | None = None) -> Location | Encoded:
        """Return location [N, D] and context [N, C], or mean, log-variance and context in the encoder's frame."""
        output = self.encoder(x, draws if self.training else None)
        top = self.latent_dim * (2 if self.whitens else 1)
        width = top + self.context_dim
        _checks.require(output.shape[-1] == width, "encoder", f"an output [N, {width}]", output)
        location, context = output.split((top, self.context_dim), dim=-1)
        return Encoded(*split_mean_log_var(location), context) if self.whitens else Location(location, context)

    def latent_path(self, encoded: Location | Encoded, num_samples: int, draws: Draws) -> Tensor:
        mean, context = encoded.mean, encoded.context
        noise = rng.normal(draws, (num_samples, *mean.shape[:-1], self.noise_dim), rng.START, device=mean.device, dtype=mean.dtype)
        spread = self.spread(with_context(noise, context))
        return (spread if self.whitens else mean + spread).unsqueeze(0)

    def log_ratio(self, encoded: Location | Encoded, path: Tensor) -> Tensor:
        """Raise `InputError`: the posterior has no density."""
        _checks.fail("posterior", "one with a density, for a log_ratio", f"Adversarial: {self.why_no_density}")
