"""The adversarial autoencoder: reconstruction, and a discriminator that tells latents from prior samples."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ddvi_fast import _checks
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.posteriors import Posterior
from ddvi_fast.rng import Draws

# Importance samples whose dropout draws the three calls of the discriminator use; the encoders use the first ones.
_GENERATED, _FAKE, _REAL = 4, 5, 6


class Adversarial(Objective):
    """Minimise `-E_q[ log p(x|z) ]` plus a discriminator's opinion of the latents (Makhzani et al. 2016); no bound.

    After each step of encoder and decoder, one step of the discriminator, with an optimiser of its own. At its best its logit is
    `log p(z) - log q(z)`, so with weight 1 and a linear loss the first step would minimise the divergence of the aggregate
    posterior from the prior, in nats; the loss taken is the non-saturating one of Goodfellow et al. (2014).

    Terms: `reconstruction` = -log p(x|z) (nats), `generator` and `discriminator` (cross-entropies, nats).

    Args:
        model: the latent-variable model; its prior is sampled only, and may have no density.
        posterior: any family; its density is not used.
        discriminator: from z [N, D] to a logit [N, 1], called as `discriminator(z, draws)`.
        weight: of the generator's loss against reconstruction.
    """

    def __init__(self, model: LatentVariableModel, posterior: Posterior, discriminator: nn.Module, weight: float = 10.0) -> None:
        super().__init__()
        _checks.require(weight > 0, "weight", "a positive number", weight)
        self.model, self.posterior, self.discriminator, self.weight = model, posterior, discriminator, weight

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        opponent = [parameter for parameter in self.discriminator.parameters() if parameter.requires_grad]
        its = {id(parameter) for parameter in opponent}
        return {"wake": [parameter for parameter in super().parameter_groups()["wake"] if id(parameter) not in its], "discriminator": opponent}

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        z = self.posterior.sample(x, 1, draws).z[0]
        yield Update("wake", lambda: self.wake_terms(x, z, draws))
        yield Update("discriminator", lambda: self.discriminator_terms(z.detach(), draws))

    def wake_terms(self, x: Tensor, z: Tensor, draws: Draws) -> Terms:
        """What encoder and decoder minimise, given latents `z` [N, D] of `x`; the discriminator stands still."""
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        logits = torch.func.functional_call(self.discriminator, frozen, (z, self._dropout(draws, _GENERATED)))
        values = {"reconstruction": -self.model.log_likelihood(x, z), "generator": softplus(-logits).squeeze(-1)}
        return Terms(values, {"reconstruction": 1.0, "generator": self.weight})

    def discriminator_terms(self, z: Tensor, draws: Draws) -> Terms:
        """The cross-entropy of telling latents `z` [N, D] from as many prior samples."""
        real = self.model.prior.sample(len(z), draws=draws, dtype=z.dtype, device=z.device)
        loss = softplus(-self.discriminator(real, self._dropout(draws, _REAL))) + softplus(self.discriminator(z, self._dropout(draws, _FAKE)))
        return Terms({"discriminator": loss.squeeze(-1)}, {"discriminator": 1.0})

    def _dropout(self, draws: Draws, place: int) -> Draws | None:
        return draws.importance(place) if self.training else None


def make_discriminator(latent_dim: int, draws: Draws = Draws(0), hidden_dim: int = 1000) -> MLP:
    """The released code's: D-1000-1000-1, leaky ReLU, dropout 0.2.

    Example:
        >>> make_discriminator(2)(torch.zeros(3, 2)).shape
        torch.Size([3, 1])
    """
    return MLP(latent_dim, [hidden_dim, hidden_dim], 1, activation="leaky_relu", dropout=0.2, draws=draws)
