"""Semi-supervised adversarial autoencoder with a discriminator of latent and class (Makhzani et al. 2016, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ddvi_fast import _checks, distributed
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.objectives.adversarial import DiscriminatorObjective
from ddvi_fast.objectives.base import Progress, Terms, Update
from ddvi_fast.objectives.semisupervised import ClassWeights, LabelledExamples, balance_term, consistency_term, cross_entropy
from ddvi_fast.posteriors.class_conditional import ClassConditional, class_major, rows_per_class
from ddvi_fast.rng import Draws


class AdversarialSemiSupervised(DiscriminatorObjective):
    """Reconstruction summed over classes under q(c | x), and a discriminator that matches the latents of each class to its partition of the prior.

    It is not a bound. Terms, nats per example: `reconstruction`, `class_kl` (to uniform classes), `balance`, `consistency` and `generator`
    of unlabelled data; `labelled_reconstruction` and `cross_entropy` of labelled data; `discriminator_real` and `discriminator_fake`
    (cross-entropies).

    Args:
        model: The latent-variable model. Its prior is partitioned into classes; it is only sampled and may have no density.
        posterior: Posterior over latent and class; its density is not used.
        discriminator: Network from `[z, one-hot c]` [N, D + C] to a logit [N, 1], called as `discriminator(inputs, draws)`.
        labelled: The labelled examples, or None for a latent cluster.
        weights: Weights of the terms that concern classes. Default: `ClassWeights()`.
        weight: Weight of the generator's loss relative to the reconstruction (float, default 10).

    Raises:
        InputError: If `weight` is not positive.
    """

    @_checks.typed
    def __init__(
        self, model: LatentVariableModel, posterior: ClassConditional, discriminator: nn.Module, labelled: LabelledExamples | None = None,
        weights: ClassWeights = ClassWeights(), weight: float = 10.0,
    ) -> None:  # fmt: skip
        super().__init__(model, posterior, discriminator, weight)
        self.labelled, self.weights = labelled, weights

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        noisy = self.posterior.log_class_probs(x, draws)
        log_probs = noisy.mT if self.labelled is None else self.weights.follow(noisy.mT, progress)  # [C, N]
        z = self.posterior.sample_classes(x, 1, draws).z[:, 0]  # [C, N, D]
        yield Update("wake", lambda: self._with_consistency(self.wake_terms(x, z, log_probs, draws), x, noisy, progress))
        yield Update("discriminator", lambda: self.discriminator_terms(z.detach(), log_probs.detach().exp(), draws))

    def wake_terms(self, x: Tensor, z: Tensor, log_probs: Tensor, draws: Draws) -> Terms:
        """Compute the terms of encoders, classifier and decoder.

        Args:
            x: Data [N, ...].
            z: Latents [C, N, D] of every class.
            log_probs: log q(c | x) [C, N].
            draws: Position of the batch's first row in the random stream.
        """
        probs = log_probs.exp()
        values = {
            "reconstruction": -(probs * self.model.log_likelihood(x, z)).sum(0),
            "class_kl": (probs * log_probs).sum(0) + math.log(len(z)),
            **balance_term(probs, self.weights),
            "generator": (probs * self.generator_loss(_with_class(z), draws)).sum(0),
        }
        weights = {"reconstruction": 1.0, "class_kl": 1.0, "balance": self.weights.balance, "generator": self.weight}
        if self.labelled is not None:
            values |= self._labelled_terms(len(x), draws)
            weights |= {"labelled_reconstruction": self.weights.labelled, "cross_entropy": self.weights.cross_entropy}
        return Terms(values, weights)

    def _with_consistency(self, terms: Terms, x: Tensor, noisy: Tensor, progress: Progress) -> Terms:
        weight = progress.varying(self.weights.agreement)
        return Terms({**terms.values, **consistency_term(self.posterior, x, noisy, self.weights)}, {**terms.weights, "consistency": weight})

    def _labelled_terms(self, rows: int, draws: Draws) -> dict[str, Tensor]:
        rows, first = distributed.whole_batch(rows, draws)
        per_class = rows_per_class(round(rows * self.weights.batch_fraction), self.posterior.num_classes)
        own = first.lane("real").importance(self.posterior.num_classes)
        x, labels = self.labelled.draw(per_class, own)
        z = self.posterior.sample_of_class(x, labels.unsqueeze(0), own).z
        log_probs = self.posterior.log_class_probs(x, own)
        return {"labelled_reconstruction": -self.model.log_likelihood(x, z)[0], "cross_entropy": cross_entropy(log_probs, labels)}

    def discriminator_terms(self, z: Tensor, probs: Tensor, draws: Draws) -> Terms:
        """Compute the discriminator's cross-entropies on as many prior samples of each class and on latents.

        Args:
            z: Latents [C, N, D] of every class.
            probs: q(c | x) [C, N], the weights of the latents.
            draws: Position of the batch's first row in the random stream.
        """
        classes, rows, _ = z.shape
        rows, first = distributed.whole_batch(rows, draws)  # every process uses all prior samples, since classes need equally many
        per_class = rows_per_class(rows, classes)
        labels = class_major(classes, per_class, z.device)
        real = self.model.prior.sample(len(labels), first, labels, dtype=z.dtype, device=z.device).unflatten(0, (classes, per_class))
        values = {
            "discriminator_real": self.real_loss(_with_class(real), first).flatten(),
            "discriminator_fake": (probs * self.fake_loss(_with_class(z), draws)).sum(0),
        }
        return Terms(values, dict.fromkeys(values, 1.0))


def _with_class(z: Tensor) -> Tensor:
    """Latents [C, N, D] followed by the one-hot code of their class, [C, N, D + C]."""
    code = one_hot(torch.arange(len(z), device=z.device), len(z)).to(z).unsqueeze(1)
    return torch.cat((z, code.expand(*z.shape[:-1], -1)), -1)
