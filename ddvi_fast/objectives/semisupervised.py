"""Semi-supervised learning: a bound on unlabelled data that sums over classes, and a bound on labelled data (docs/method.md, section 4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, distributed, ops, rng
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import fixed_statistics
from ddvi_fast.objectives.base import Objective, Progress, Terms
from ddvi_fast.objectives.elbo import ELBO
from ddvi_fast.objectives.wake_sleep import WakeSleep
from ddvi_fast.posteriors.class_conditional import ClassConditional, class_major, rows_per_class
from ddvi_fast.rng import Draws


class LabelledExamples(nn.Module):
    """The labelled examples, from which each batch of unlabelled data gets a class-balanced sample.

    Args:
        x: Examples [L, ...].
        labels: Their classes, int64 [L]. Every class must occur.
        num_classes: Number of classes, C (int).
        augment: Function `augment(x, draws)` that is applied to the sampled examples, or None (default).

    Raises:
        InputError: If the number of labels differs from that of examples, or if a class is missing.

    Example:
        >>> examples = LabelledExamples(torch.rand(4, 5), torch.tensor([0, 1, 1, 0]), num_classes=2)
        >>> x, labels = examples.draw(3, Draws(0))
        >>> x.shape, labels.tolist()
        (torch.Size([6, 5]), [0, 0, 0, 1, 1, 1])
    """

    @_checks.typed
    def __init__(self, x: Tensor, labels: Tensor, num_classes: int, augment: Callable[[Tensor, Draws], Tensor] | None = None) -> None:
        super().__init__()
        _checks.require(len(x) == len(labels), "labels", f"{len(x)} labels, one for each example", labels)
        counts = torch.bincount(labels, minlength=num_classes)
        _checks.require(len(counts) == num_classes and bool(counts.min() > 0), "labels", f"each of {num_classes} classes", counts.tolist())
        order = torch.argsort(labels, stable=True)
        self.num_classes, self.augment = num_classes, augment
        self.register_buffer("x", x[order], persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("starts", torch.cumsum(counts, 0) - counts, persistent=False)

    def draw(self, per_class: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Draw examples with replacement.

        Args:
            per_class: Number of examples of each class, M (int).
            draws: Position in the random stream.

        Returns:
            Examples [C M, ...] in class-major order and their labels, int64 [C M].
        """
        labels = class_major(self.num_classes, per_class, self.x.device)
        uniform = rng.uniform(draws, (len(labels), 1), rng.LABELLED, device=self.x.device).squeeze(1)
        counts = self.counts[labels]
        within = torch.minimum((uniform * counts).long(), counts - 1)
        x = self.x[self.starts[labels] + within]
        return (x if self.augment is None else self.augment(x, draws)), labels


_RAMP = 0.5  # fraction of the phase after which `unlabelled` and `consistency` are reached


@_checks.typed
@dataclass(frozen=True)
class ClassWeights:
    """Weights of the terms that concern classes.

    Args:
        cross_entropy: Weight of `-log q(c | x)` on labelled examples (float, default 10).
        labelled: Weight of the bound on labelled examples (float, default 1).
        unlabelled: Fraction of the unlabelled bound's gradient that q(c | x) takes, reached linearly over the first half of the phase (float
            in [0, 1], default 0.1). Before the decoders of the classes differ, the likelihood of many pixels is confident and
            uninformative about the class.
        consistency: Weight of the cross-entropy between q(c | x) in training mode and its most probable class in evaluation mode (Lee 2013,
            "Pseudo-Label"), reached linearly over the first half of the phase (float, default 10). It needs noise or dropout in the
            classifier.
        balance: Weight of the KL divergence of the batch's mean q(c | x) from uniform classes (float, default 0). Without labels it keeps
            one cluster from taking all data.
        batch_fraction: Labelled examples per row of the batch (float, default 0.5).

    Raises:
        InputError: If a value is out of range.
    """

    cross_entropy: float = 10.0
    labelled: float = 1.0
    unlabelled: float = 0.1
    consistency: float = 10.0
    balance: float = 0.0
    batch_fraction: float = 0.5

    def __post_init__(self) -> None:
        for name in ("cross_entropy", "labelled", "unlabelled", "consistency", "balance"):
            _checks.require(getattr(self, name) >= 0, f"semi.{name}", "a number of at least 0", getattr(self, name))
        _checks.require(self.unlabelled <= 1, "semi.unlabelled", "a fraction of at most 1", self.unlabelled)
        _checks.require(self.batch_fraction > 0, "semi.batch_fraction", "a positive number", self.batch_fraction)

    def share(self, progress: Progress) -> float:
        """Return the fraction of the unlabelled bound's gradient that q(c | x) takes at `progress`."""
        return self.unlabelled * _ramp(progress)

    def agreement(self, progress: Progress) -> float:
        """Return the weight of the consistency term at `progress`."""
        return self.consistency * _ramp(progress)

    def follow(self, log_probs: Tensor, progress: Progress) -> Tensor:
        """Return `log_probs` with their gradient scaled by `share(progress)`."""
        share = progress.varying(self.share)
        return share * log_probs + (1 - share) * log_probs.detach()


def _ramp(progress: Progress) -> float:
    return min(1.0, progress.fraction / _RAMP)


class SemiSupervised(Objective):
    """Minus the bound of `q(z, c | x) = q(c | x) q(z | x, c)`, plus cross-entropy (docs/method.md, section 4).

    Without a label the bound is `E[ log p(x|z) + log_prior_ratio ] <= log p(x)`, where a row draws its classes; q(c | x) takes the
    score-function gradient of `ELBO`. With label c it is `E_q(z|x,c)[ log p(x|z) + log_prior_ratio ] + log p(c) <= log p(x, c)`. Without
    labelled examples this is a mixture with a latent cluster.

    Terms, nats per example: those of `inner` and `consistency` of unlabelled data, `balance` of a batch (a scalar, if it has a weight);
    `labelled_reconstruction`, `labelled_kl`, `cross_entropy` of labelled data.

    Args:
        inner: The bound on unlabelled data with the terms that fit the posterior to pairs. Its posterior is a `ClassConditional` whose bound
            has at least 2 samples.
        labelled: The labelled examples, or None (default) for a latent cluster.
        weights: Weights of the terms that concern classes. Default: `ClassWeights()`.

    Raises:
        InputError: If the posterior has no classes, or if the bound has one sample.
    """

    @_checks.typed
    def __init__(self, inner: WakeSleep, labelled: LabelledExamples | None = None, weights: ClassWeights = ClassWeights()) -> None:
        super().__init__()
        posterior, wake = inner.posterior, inner.wake
        _checks.require(isinstance(posterior, ClassConditional), "posterior", "a ClassConditional", type(posterior).__name__)
        _checks.require(isinstance(wake, ELBO) and wake.num_samples > 1, "inner", "an ELBO of at least 2 samples", wake.num_samples)
        self.inner, self.labelled, self.weights = inner, labelled, weights

    @property
    def model(self) -> LatentVariableModel:
        """The latent-variable model."""
        return self.inner.wake.model

    @property
    def posterior(self) -> ClassConditional:
        """The posterior over latent and class."""
        return self.inner.posterior

    def terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        """Compute all terms of a batch `x` [N, ...] of unlabelled data."""
        unlabelled = self.unlabelled_terms(x, progress, draws)
        weights = {**unlabelled.weights, "balance": self.weights.balance, "consistency": progress.varying(self.weights.agreement)}
        if self.labelled is None:
            return Terms(unlabelled.values, weights)
        # Every process uses all labelled examples of the batch: they are few, and classes need equally many.
        rows, first = distributed.whole_batch(len(x), draws)
        per_class = rows_per_class(round(rows * self.weights.batch_fraction), self.posterior.num_classes)
        own = first.lane("labelled")
        values = self.labelled_terms(*self.labelled.draw(per_class, own), own)
        share = self.weights.labelled
        weights |= {"labelled_reconstruction": share, "labelled_kl": share * weights["kl"], "cross_entropy": self.weights.cross_entropy}
        return Terms({**unlabelled.values, **values}, weights)

    def unlabelled_terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        """Compute the terms [N] of unlabelled data `x` [N, ...]; q(c | x) takes a fraction of the gradient of its bound."""
        encoded = self.posterior.encode(x, draws)
        followed = encoded.log_probs if self.labelled is None else self.weights.follow(encoded.log_probs, progress)
        terms = self.inner.wake_terms(x, encoded._replace(log_probs=followed), progress, draws)
        values = balance_term(followed.exp().mT, self.weights) | consistency_term(self.posterior, x, encoded.log_probs, self.weights)
        return Terms({**terms.values, **values}, terms.weights)

    def labelled_terms(self, x: Tensor, labels: Tensor, draws: Draws) -> dict[str, Tensor]:
        """Compute the terms [L] of labelled data.

        Args:
            x: Data [L, ...].
            labels: Their classes, int64 [L].
            draws: Position of the first row in the random stream.
        """
        z, _, log_prior_ratio = self.posterior.sample_of_class(x, labels.unsqueeze(0), draws)
        log_probs = self.posterior.log_class_probs(x, draws)
        return {
            "labelled_reconstruction": -self.model.log_likelihood(x, z)[0],
            "labelled_kl": -log_prior_ratio[0],
            "cross_entropy": cross_entropy(log_probs, labels),
        }


def cross_entropy(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Return `-log q(c | x)` [N] in nats from log-probabilities [N, C] and classes, int64 [N]."""
    return -log_probs.gather(1, labels.unsqueeze(1)).squeeze(1)


def consistency_term(posterior: ClassConditional, x: Tensor, noisy: Tensor, weights: ClassWeights) -> dict[str, Tensor]:
    """Return the term `consistency` [N] of data `x` [N, ...] if it has a weight; `noisy` is log q(c | x) [N, C] in training mode."""
    if weights.consistency == 0:
        return {}
    with torch.no_grad(), fixed_statistics(posterior):
        pseudo_labels = posterior.log_class_probs(x).argmax(1)
    return {"consistency": cross_entropy(noisy, pseudo_labels)}


def balance_term(probs: Tensor, weights: ClassWeights) -> dict[str, Tensor]:
    """Return the term `balance`, a scalar, if it has a weight: the divergence from uniform of q(c | x) [C, N], averaged over the whole batch."""
    return {} if weights.balance == 0 else {"balance": divergence_from_uniform(distributed.batch_mean(probs.mean(1)))}


def divergence_from_uniform(probs: Tensor) -> Tensor:
    """Return the KL divergence of probabilities [C] from the uniform distribution in nats, a scalar."""
    return (probs * torch.log(probs.clamp(min=1e-12))).sum() + math.log(len(probs))


@torch.no_grad()
def class_log_joint_bound(
    model: LatentVariableModel, posterior: ClassConditional, x: Tensor, num_samples: int = 1, draws: Draws | None = None
) -> Tensor:
    """Estimate a bound on log p(x, c) for every class: `E[ log p(x|z) + log p(z|c) + log_ratio_c ] + log p(c)`.

    The softmax over classes classifies by the generative model alone, without q(c | x).

    Args:
        model: The latent-variable model, whose prior is partitioned into classes.
        posterior: Posterior over latent and class, with a density.
        x: Data [N, ...].
        num_samples: Importance samples per row and class (int, default 1).
        draws: Position of the first row in the random stream. Default: `Draws(0)`.

    Returns:
        Log-mean-exp over the samples, nats [C, N].

    Raises:
        InputError: If the posterior has no density.
    """
    posterior.require_density()
    z, _, log_prior_ratio = posterior.sample_classes(x, num_samples, draws)
    weights = model.log_likelihood(x, z) + log_prior_ratio - math.log(len(z))
    return ops.log_mean_exp(weights, 1)
