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
from ddvi_fast.objectives.annealing import KLSchedule, PriorGuide
from ddvi_fast.objectives.base import Objective, Progress, Terms
from ddvi_fast.objectives.wake_sleep import Sleep, chain_loss, uniform_timesteps
from ddvi_fast.posteriors import Diffusion
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


@dataclass(frozen=True)
class ClassWeights:
    """Weights of the terms that concern classes.

    Args:
        cross_entropy: Weight of `-log q(c | x)` on labelled examples (float, default 10).
        labelled: Weight of the bound on labelled examples (float, default 1).
        fantasies: Weight of `-log q(c | x)` on fantasies, whose class is known (float, default 0).
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
    fantasies: float = 0.0
    unlabelled: float = 0.1
    consistency: float = 10.0
    balance: float = 0.0
    batch_fraction: float = 0.5

    def __post_init__(self) -> None:
        for name in ("cross_entropy", "labelled", "fantasies", "unlabelled", "consistency", "balance"):
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
    """Minus the bound of `q(z, c | x) = q(c | x) q(z | x, c)`, plus cross-entropy, plus the sleep term of each class.

    Without a label, `log p(x) >= sum_c q(c|x) E_q(z|x,c)[ log p(x|z) + log p(z|c) + log_ratio_c + log p(c) - log q(c|x) ]`; with
    label c, `log p(x, c) >= E_q(z|x,c)[ log p(x|z) + log p(z|c) + log_ratio_c ] + log p(c)`. The chains of all classes are one grouped
    call. Without labelled examples this is a mixture with a latent cluster.

    Terms, nats per example: `reconstruction`, `kl` (latents), `class_kl` (to uniform classes) and `consistency` of unlabelled data,
    `balance` of a batch (a scalar, if it has a weight); `labelled_reconstruction`, `labelled_kl`, `cross_entropy` of labelled data; `sleep`,
    `sleep_top`, `sleep_class` of fantasies.

    Args:
        model: The latent-variable model. Its prior is partitioned into classes.
        posterior: Posterior over latent and class, with a density.
        labelled: The labelled examples, or None (default) for a latent cluster.
        kl: Schedule of the weight of both KL terms of latents. That of classes has weight 1.
        guide: Smoothing of the prior while training. Its `joint` must be False.
        weights: Weights of the terms that concern classes. Default: `ClassWeights()`.
        sleep: Settings of the sleep term for a diffusion posterior, or None (default). Each batch has about as many fantasies as rows,
            equally many of each class.
        num_samples: Posterior samples per row and class, averaged (int, default 1).

    Raises:
        InputError: If the posterior or the prior has no density, or if the sleep settings do not exist with classes.
    """

    def __init__(
        self, model: LatentVariableModel, posterior: ClassConditional, labelled: LabelledExamples | None = None, kl: KLSchedule = KLSchedule(),
        guide: PriorGuide = PriorGuide(), weights: ClassWeights = ClassWeights(), sleep: Sleep | None = None, num_samples: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        posterior.require_density(model.prior)
        if sleep is not None:
            family = posterior.family
            _checks.require(isinstance(family, Diffusion), "sleep", "None without a diffusion posterior", type(family).__name__)
            _checks.require(not sleep.alternating, "sleep.alternating", "false with classes", True)
            _checks.require(sleep.timesteps == 1, "sleep.timesteps", "1 with classes", sleep.timesteps)
        self.model, self.posterior, self.labelled, self.kl, self.guide = model, posterior, labelled, kl, guide
        self.weights, self.sleep, self.num_samples = weights, sleep, num_samples

    def terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        """Compute all terms of a batch `x` [N, ...] of unlabelled data."""
        values = self.unlabelled_terms(x, progress, draws)
        kl, share = self.kl.at(progress), self.weights.labelled
        weights = {"reconstruction": 1.0, "kl": kl, "class_kl": 1.0, "balance": self.weights.balance}
        weights["consistency"] = progress.varying(self.weights.agreement)
        # Every process uses all labelled examples and fantasies of the batch: they are few, and classes need equally many.
        rows, first = distributed.whole_batch(len(x), draws)
        if self.labelled is not None:
            per_class = rows_per_class(round(rows * self.weights.batch_fraction), self.posterior.num_classes)
            # The unlabelled rows use the importance-sample indices below, one per class and sample.
            own = first.importance(self.posterior.num_classes * self.num_samples)
            values |= self.labelled_terms(*self.labelled.draw(per_class, own), progress, own, per_class)
            weights |= {"labelled_reconstruction": share, "labelled_kl": share * kl, "cross_entropy": self.weights.cross_entropy}
        if self.sleep is not None and (self.sleep.active or self.weights.fantasies > 0):
            values |= self.sleep_terms(x, first, rows)
            weights |= {"sleep": self.sleep.weight, "sleep_top": self.sleep.top_weight, "sleep_class": self.weights.fantasies}
        return Terms(values, weights)

    def unlabelled_terms(self, x: Tensor, progress: Progress, draws: Draws) -> dict[str, Tensor]:
        """Compute the terms [N] of unlabelled data `x` [N, ...], summed over classes under q(c | x)."""
        noisy = self.posterior.log_class_probs(x, draws)
        log_probs = noisy.mT if self.labelled is None else self.weights.follow(noisy.mT, progress)  # [C, N]
        z, _, log_prior_ratio = self.posterior.sample_classes(x, self.num_samples, draws)
        probs = log_probs.exp()
        return {
            "reconstruction": -(probs * self.model.log_likelihood(x, z).mean(1)).sum(0),
            "kl": -(probs * log_prior_ratio.mean(1)).sum(0),
            "class_kl": (probs * log_probs).sum(0) + math.log(len(z)),
            **balance_term(probs, self.weights),
            **consistency_term(self.posterior, x, noisy, self.weights),
        }

    def labelled_terms(self, x: Tensor, labels: Tensor, progress: Progress, draws: Draws, per_class: int | None = None) -> dict[str, Tensor]:
        """Compute the terms [L] of labelled data.

        Args:
            x: Data [L, ...].
            labels: Their classes, int64 [L].
            progress: Position within the training phase.
            draws: Position of the first row in the random stream.
            per_class: Rows of each class if the rows are class-major (int), or None.
        """
        z, _, log_prior_ratio = self.posterior.sample_of_class(x, labels.unsqueeze(0), draws, per_class)
        log_probs = self.posterior.log_class_probs(x, draws)
        return {
            "labelled_reconstruction": -self.model.log_likelihood(x, z)[0],
            "labelled_kl": -log_prior_ratio[0],
            "cross_entropy": cross_entropy(log_probs, labels),
        }

    @torch.no_grad()
    def _fantasies(self, like: Tensor, draws: Draws, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents in the posterior's coordinates [C M, U], data [C M, ...] and classes [C M] of about `rows` fantasies, class-major."""
        classes = self.posterior.num_classes
        labels = class_major(classes, rows_per_class(rows, classes), like.device)
        made = self.model.prior.draw(len(labels), draws, labels, dtype=like.dtype, device=like.device)
        x = self.model.likelihood.sample(self.model.decoder(made.z), draws)
        return made.noise if self.posterior.pushes else made.z, x.view(len(x), *like.shape[1:]), labels

    def sleep_terms(self, like: Tensor, draws: Draws, rows: int | None = None) -> dict[str, Tensor]:
        """Compute the sleep terms of every class's posterior on fantasies of that class, in one grouped call of the denoisers.

        Args:
            like: Data [N, ...], whose shape, dtype and device the fantasies get.
            draws: Position of the batch's first row in the random stream.
            rows: Number of fantasies, rounded to equally many of each class (int). Default: N.
        """
        family = self.posterior.family
        u, x, labels = self._fantasies(like, draws, len(like) if rows is None else rows)
        with fixed_statistics(self.posterior):
            encoded = self.posterior.encode_of_class(x, labels, draws)
            log_probs = self.posterior.log_class_probs(x, draws)
        v = family.whitened(encoded, u).detach()
        t = uniform_timesteps(draws, len(v), family.schedule.num_steps, v.device)
        return {
            "sleep": chain_loss(family, encoded.context, v, t, draws, self.sleep.loss),
            "sleep_top": -family.start_log_prob(encoded, u, draws),
            "sleep_class": cross_entropy(log_probs, labels),
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
