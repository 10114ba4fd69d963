"""The latent-variable model `p(x, z) = p(z) p_theta(x | z)`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.likelihoods import Likelihood
from ddvi_fast.priors import Prior
from ddvi_fast.rng import Draws


class Fantasies(NamedTuple):
    """Latents [N, D] drawn from the prior, and data [N, P] drawn from them; of several sets, [S, N, D] and [S, N, P]."""

    z: Tensor
    x: Tensor

    def of(self, number: int) -> Fantasies:
        """One set of several."""
        return Fantasies(self.z[number], self.x[number])


class LatentVariableModel(nn.Module):
    """A prior, a decoder and what its output means.

    Args:
        prior: `p(z)`.
        decoder: maps z [.., D] to the likelihood's output [.., P].
        likelihood: `p(x | z)` given that output.

    Example:
        >>> from ddvi_fast import likelihoods, networks, priors
        >>> model = LatentVariableModel(priors.make("gaussian", dim=2), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))
        >>> model.log_joint(torch.zeros(3, 5), torch.zeros(7, 3, 2)).shape
        torch.Size([7, 3])
    """

    def __init__(self, prior: Prior, decoder: nn.Module, likelihood: Likelihood) -> None:
        super().__init__()
        self.prior, self.decoder, self.likelihood = prior, decoder, likelihood

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z) in nats: `x` [N, ...], `z` [.., N, D] -> [.., N]."""
        return self.likelihood.log_prob(self.decoder(z), x.flatten(1))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z) in nats: `x` [N, ...], `z` [.., N, D] -> [.., N]."""
        return self.log_likelihood(x, z) + self.prior.log_prob(z)

    @torch.no_grad()
    def simulate(self, n: int, draws: Draws, like: Tensor | None = None, num_sets: int | None = None) -> Fantasies:
        """Fantasies `z ~ p(z)`, `x ~ p(x | z)`, without gradients; `like` gives dtype and device.

        Of `num_sets` at once, set `s` is what `draws.importance(s)` gives by itself, in one pass through the decoder.
        """
        reference = next(self.decoder.parameters()) if like is None else like
        _checks.require(num_sets is None or num_sets >= 1, "num_sets", "None or at least 1", num_sets)
        sets = [
            self.prior.sample(n, draws=draws.importance(number), dtype=reference.dtype, device=reference.device) for number in range(num_sets or 1)
        ]
        z = sets[0] if num_sets is None else torch.stack(sets)
        return Fantasies(z, self.likelihood.sample(self.decoder(z), draws))
