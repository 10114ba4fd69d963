"""Adversarial autoencoder: reconstruction, and a discriminator between latents and prior samples (Makhzani et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ddvi_fast import _checks
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.pairs import PairFit, Sleep, with_pairs
from ddvi_fast.posteriors import Posterior
from ddvi_fast.rng import Draws


class DiscriminatorObjective(Objective):
    """Base of objectives with a discriminator, which has a parameter group and an optimizer of its own.

    Args:
        model: The latent-variable model. Its prior is only sampled and may have no density.
        posterior: Any posterior family; its density is not used.
        discriminator: Network called as `discriminator(inputs, draws)` that returns logits [.., 1].
        weight: Weight of the generator's loss relative to the reconstruction (float).

    Raises:
        InputError: If `weight` is not positive.
    """

    @_checks.typed
    def __init__(self, model: LatentVariableModel, posterior: nn.Module, discriminator: nn.Module, weight: float) -> None:
        super().__init__()
        _checks.require(weight > 0, "weight", "a positive number", weight)
        self.model, self.posterior, self.discriminator, self.weight = model, posterior, discriminator, weight

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the groups ``wake`` (encoder and decoder) and ``discriminator``, which do not overlap."""
        discriminator = [parameter for parameter in self.discriminator.parameters() if parameter.requires_grad]
        excluded = {id(parameter) for parameter in discriminator}
        wake = [parameter for parameter in super().parameter_groups()["wake"] if id(parameter) not in excluded]
        return {"wake": wake, "discriminator": discriminator}

    def generator_loss(self, inputs: Tensor, draws: Draws) -> Tensor:
        """Compute the non-saturating generator loss [..] of Goodfellow et al. (2014) in nats; the discriminator takes no gradient."""
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        logits = torch.func.functional_call(self.discriminator, frozen, (inputs, self._dropout(draws, "generated")))
        return softplus(-logits).squeeze(-1)

    def real_loss(self, inputs: Tensor, draws: Draws) -> Tensor:
        """Compute the discriminator's cross-entropy [..] on prior samples, nats."""
        return softplus(-self.discriminator(inputs, self._dropout(draws, "real"))).squeeze(-1)

    def fake_loss(self, inputs: Tensor, draws: Draws) -> Tensor:
        """Compute the discriminator's cross-entropy [..] on latents, nats."""
        return softplus(self.discriminator(inputs, self._dropout(draws, "fake"))).squeeze(-1)

    def _dropout(self, draws: Draws, lane: str) -> Draws | None:
        return draws.lane(lane) if self.training else None


class Adversarial(DiscriminatorObjective):
    """`-E_q[ log p(x|z) ]` plus the generator's loss under a discriminator of the latents (Makhzani et al. 2016). It is not a bound.

    Each step of encoder and decoder is followed by one step of the discriminator with an optimizer of its own. The optimal logit is
    `log p(z) - log q(z)` for the aggregate posterior q(z); the generator's loss is the non-saturating one of Goodfellow et al. (2014).

    Terms: `reconstruction` = -log p(x|z), `generator` and `discriminator` (cross-entropies), nats per example.

    Args:
        model: The latent-variable model. Its prior is only sampled and may have no density.
        posterior: Any posterior family; its density is not used.
        discriminator: Network from z [N, D] to a logit [N, 1], called as `discriminator(z, draws)`, such as `make_discriminator(D)`.
        weight: Weight of the generator's loss relative to the reconstruction (float, default 10).
        sleep: Settings of the terms that fit the class of a `ClassConditional` and the decoder to pairs, or None (default).

    Raises:
        InputError: If `weight` is not positive.

    Example:
        >>> from ddvi_fast import likelihoods, networks, posteriors, priors
        >>> model = LatentVariableModel(priors.make("swiss_roll"), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))
        >>> posterior = posteriors.Gaussian(networks.MLP(5, [8], 4), latent_dim=2)
        >>> Adversarial(model, posterior, make_discriminator(2))(torch.rand(4, 5)).shape
        torch.Size([])
    """

    @_checks.typed
    def __init__(
        self, model: LatentVariableModel, posterior: Posterior, discriminator: nn.Module, weight: float = 10.0, sleep: Sleep | None = None
    ) -> None:
        super().__init__(model, posterior, discriminator, weight)
        self.pair_fit = None if sleep is None else PairFit(model, posterior, sleep)

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        encoded = self.posterior.encode(x, draws)
        z = self.posterior.sample_encoded(encoded, 1, draws).z[0]
        yield Update("wake", lambda: with_pairs(self.wake_terms(x, z, draws), self.pair_fit, x, encoded, draws))
        yield Update("discriminator", lambda: self.discriminator_terms(z.detach(), draws))

    def wake_terms(self, x: Tensor, z: Tensor, draws: Draws) -> Terms:
        """Compute the terms of encoder and decoder for latents `z` [N, D] of data `x` [N, ...]; the discriminator takes no gradient."""
        values = {"reconstruction": -self.model.log_likelihood(x, z), "generator": self.generator_loss(z, draws)}
        return Terms(values, {"reconstruction": 1.0, "generator": self.weight})

    def discriminator_terms(self, z: Tensor, draws: Draws) -> Terms:
        """Compute the discriminator's cross-entropy [N] between latents `z` [N, D] and as many prior samples."""
        real = self.model.prior.sample(len(z), draws=draws, dtype=z.dtype, device=z.device)
        return Terms({"discriminator": self.real_loss(real, draws) + self.fake_loss(z, draws)}, {"discriminator": 1.0})


def make_discriminator(latent_dim: int, draws: Draws = Draws(0), hidden_dim: int = 1000) -> MLP:
    """Build the released code's discriminator: D-1000-1000-1, leaky ReLU, dropout 0.2.

    Args:
        latent_dim: Number of inputs, D (int).
        draws: Position of the initial weights in the random stream (default `Draws(0)`).
        hidden_dim: Width of the hidden layers (int, default 1000).

    Example:
        >>> make_discriminator(2)(torch.zeros(3, 2)).shape
        torch.Size([3, 1])
    """
    return MLP(latent_dim, [hidden_dim, hidden_dim], 1, activation="leaky_relu", dropout=0.2, draws=draws)
