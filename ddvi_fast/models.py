"""Latent-variable models p(x, z) = p(z) p(x | z)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.likelihoods import Likelihood
from ddvi_fast.priors import Prior
from ddvi_fast.rng import Draws


class Fantasies(NamedTuple):
    """Samples of a model: latents `z` [N, D] and data `x` [N, P]; several sets have the shapes [S, N, D] and [S, N, P].

    `noise` [N, U] and `labels`, int64 [N], are those of the prior's sample (`priors.PriorSample`), None where several sets are drawn.
    """

    z: Tensor
    x: Tensor
    noise: Tensor | None = None
    labels: Tensor | None = None

    def of(self, number: int) -> Fantasies:
        """Return set `number` of several."""
        return Fantasies(self.z[number], self.x[number])


class LatentVariableModel(nn.Module):
    """Latent-variable model: a prior, a decoder and a likelihood.

    Args:
        prior: Prior p(z).
        decoder: Network from z [.., D] to the likelihood's parameters [.., P].
        likelihood: Likelihood p(x | z) given the decoder's output.

    Example:
        >>> from ddvi_fast import likelihoods, networks, priors
        >>> model = LatentVariableModel(priors.make("gaussian", dim=2), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))
        >>> model.log_joint(torch.zeros(3, 5), torch.zeros(7, 3, 2)).shape
        torch.Size([7, 3])
    """

    @_checks.typed
    def __init__(self, prior: Prior, decoder: nn.Module, likelihood: Likelihood) -> None:
        super().__init__()
        _checks.forward(decoder, "decoder", 1, "a module with forward(z)")
        self.prior, self.decoder, self.likelihood = prior, decoder, likelihood

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Compute log p(x | z) [.., N] in nats of data `x` [N, ...] and latents `z` [.., N, D]."""
        return self.likelihood.log_prob(self.decoder(z), x.flatten(1))

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Compute log p(x, z) [.., N] in nats of data `x` [N, ...] and latents `z` [.., N, D]."""
        return self.log_likelihood(x, z) + self.prior.log_prob(z)

    @torch.no_grad()
    def simulate(self, n: int, draws: Draws, like: Tensor | None = None, num_sets: int | None = None, joint: bool = False) -> Fantasies:
        """Draw fantasies `z ~ p(z)`, `x ~ p(x | z)`, without gradients.

        Args:
            n: Number of rows, N (int).
            draws: Position of the first row in the random stream.
            like: Tensor with the dtype and device of the result. Default: those of the decoder.
            num_sets: Number of sets, S (int), decoded in one pass; set `s` equals the result for `draws.importance(s)`. Default: one set
                without an axis S.
            joint: Whether the first coordinate of the noise carries the class, as in `priors.Prior.draw` (bool, default False).

        Returns:
            Latents [N, D] and data [N, P] with the noise and the classes of the latents, or latents [S, N, D] and data [S, N, P].

        Raises:
            InputError: If `num_sets` is below 1.
        """
        reference = next(self.decoder.parameters()) if like is None else like
        _checks.require(num_sets is None or num_sets >= 1, "num_sets", "None or at least 1", num_sets)
        options = {"dtype": reference.dtype, "device": reference.device}
        if num_sets is None:
            z, noise, labels = self.prior.draw(n, draws, joint=joint, **options)
        elif joint:
            each = [self.prior.draw(n, draws.importance(number), joint=True, **options).z for number in range(num_sets)]
            z, noise, labels = torch.stack(each), None, None
        else:
            z, noise, labels = self.prior._sample_sets(n, num_sets, draws, **options), None, None
        return Fantasies(z, self.likelihood.sample(self.decoder(z), draws), noise, labels)
