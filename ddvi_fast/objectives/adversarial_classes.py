"""The semi-supervised adversarial autoencoder: a discriminator sees each latent with its class (Makhzani et al. 2016, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from ddvi_fast import _checks, distributed
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.semisupervised import ClassWeights, LabelledExamples, disagreement, imbalance
from ddvi_fast.posteriors.class_conditional import ClassConditional, class_major, rows_per_class
from ddvi_fast.rng import Draws

# Importance samples whose dropout draws the three calls of the discriminator use; the encoders use the first ones.
_GENERATED, _FAKE, _REAL = 4, 5, 6


class AdversarialSemiSupervised(Objective):
    """Reconstruction summed over classes under q(c | x), and a discriminator that holds the latents of each class to its partition.

    Terms: `reconstruction`, `class_kl` (to uniform classes), `balance`, `generator` of unlabelled data; `labelled_reconstruction`,
    `cross_entropy` of labelled (nats); `discriminator_real`, `discriminator_fake`
    (cross-entropies, nats). No bound.

    Args:
        model: its prior is cut into classes; it is sampled only, and may have no density.
        posterior: over latent and class; its density is not used.
        discriminator: from `[z, one-hot c]` [N, D + C] to a logit [N, 1], called with draws for its dropout.
        labelled: the examples with labels, or None for a latent cluster.
        weights: how labels enter.
        weight: of the generator's loss against reconstruction.
    """

    def __init__(
        self,
        model: LatentVariableModel,
        posterior: ClassConditional,
        discriminator: nn.Module,
        labelled: LabelledExamples | None = None,
        weights: ClassWeights = ClassWeights(),
        weight: float = 10.0,
    ) -> None:
        super().__init__()
        _checks.require(weight > 0, "weight", "a positive number", weight)
        self.model, self.posterior, self.discriminator = model, posterior, discriminator
        self.labelled, self.weights, self.weight = labelled, weights, weight

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        opponent = [parameter for parameter in self.discriminator.parameters() if parameter.requires_grad]
        its = {id(parameter) for parameter in opponent}
        return {"wake": [parameter for parameter in super().parameter_groups()["wake"] if id(parameter) not in its], "discriminator": opponent}

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        noisy = self.posterior.log_class_probs(x, draws)
        log_probs = noisy.mT if self.labelled is None else self.weights.follow(noisy.mT, progress)  # [C, N]
        z = self.posterior.sample_classes(x, 1, draws).z[:, 0]  # [C, N, D]
        yield Update("wake", lambda: self._with_agreement(self.wake_terms(x, z, log_probs, draws), x, noisy, progress))
        yield Update("discriminator", lambda: self.discriminator_terms(z.detach(), log_probs.detach().exp(), draws))

    def wake_terms(self, x: Tensor, z: Tensor, log_probs: Tensor, draws: Draws) -> Terms:
        """What encoders, classifier and decoder minimise, given latents `z` [C, N, D] of `x` under log q(c | x) [C, N]."""
        probs = log_probs.exp()
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        logits = torch.func.functional_call(self.discriminator, frozen, (self._with_class(z), self._dropout(draws, _GENERATED)))
        values = {
            "reconstruction": -(probs * self.model.log_likelihood(x, z)).sum(0),
            "class_kl": (probs * log_probs).sum(0) + math.log(len(z)),
            **imbalance(probs, self.weights),
            "generator": (probs * softplus(-logits).squeeze(-1)).sum(0),
        }
        weights = {"reconstruction": 1.0, "class_kl": 1.0, "balance": self.weights.balance, "generator": self.weight}
        if self.labelled is not None:
            values |= self._labelled_terms(len(x), draws)
            weights |= {"labelled_reconstruction": self.weights.labelled, "cross_entropy": self.weights.cross_entropy}
        return Terms(values, weights)

    def _with_agreement(self, terms: Terms, x: Tensor, noisy: Tensor, progress: Progress) -> Terms:
        weight = progress.varying(self.weights.agreement)
        return Terms({**terms.values, **disagreement(self.posterior, x, noisy, self.weights)}, {**terms.weights, "consistency": weight})

    def _labelled_terms(self, rows: int, draws: Draws) -> dict[str, Tensor]:
        rows, first = distributed.whole_batch(rows, draws)
        per_class = rows_per_class(round(rows * self.weights.batch_fraction), self.posterior.num_classes)
        own = first.importance(self.posterior.num_classes + _REAL)
        x, labels = self.labelled.draw(per_class, own)
        z = self.posterior.sample_of_class(x, labels.unsqueeze(0), own, per_class).z
        log_probs = self.posterior.log_class_probs(x, own)
        return {
            "labelled_reconstruction": -self.model.log_likelihood(x, z)[0],
            "cross_entropy": -log_probs.gather(1, labels.unsqueeze(1)).squeeze(1),
        }

    def discriminator_terms(self, z: Tensor, probs: Tensor, draws: Draws) -> Terms:
        """The cross-entropies of prior samples, as many of each class, and of latents `z` [C, N, D] weighted by q(c | x) [C, N]."""
        classes, rows, _ = z.shape
        rows, first = distributed.whole_batch(rows, draws)  # every part sees all prior samples: classes need equally many
        per_class = rows_per_class(rows, classes)
        labels = class_major(classes, per_class, z.device)
        real = self.model.prior.sample(len(labels), first, labels, dtype=z.dtype, device=z.device).unflatten(0, (classes, per_class))
        told = softplus(-self.discriminator(self._with_class(real), self._dropout(first, _REAL)))
        fooled = softplus(self.discriminator(self._with_class(z), self._dropout(draws, _FAKE))).squeeze(-1)
        values = {"discriminator_real": told.flatten(), "discriminator_fake": (probs * fooled).sum(0)}
        return Terms(values, dict.fromkeys(values, 1.0))

    def _with_class(self, z: Tensor) -> Tensor:
        """Latents [C, N, D] with the one-hot code of their class behind."""
        code = one_hot(torch.arange(len(z), device=z.device), len(z)).to(z).unsqueeze(1)
        return torch.cat((z, code.expand(*z.shape[:-1], -1)), -1)

    def _dropout(self, draws: Draws, place: int) -> Draws | None:
        return draws.importance(place) if self.training else None
