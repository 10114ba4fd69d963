"""Semi-supervised learning: a bound on data without labels, which sums over classes, and on the few with (docs/method.md, section 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, distributed, ops, rng
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import fixed_statistics
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.ddvi import Sleep, uniform_timesteps
from ddvi_fast.objectives.elbo import KLSchedule
from ddvi_fast.objectives.weights import PriorGuide
from ddvi_fast.posteriors.class_conditional import ClassConditional, ClassDiffusion, class_major, rows_per_class
from ddvi_fast.rng import Draws

LABELLED = rng.ORDER + (1 << 15)  # which labelled examples join a batch; its neighbours below belong to augmentation


class LabelledExamples(nn.Module):
    """The examples whose label is known, drawn class-balanced beside each batch of the others.

    Args:
        x: [L, ...].
        labels: int64 [L], every class among them.
        num_classes: C.
        augment: `augment(x, draws)`, applied to what is drawn.
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
        """Examples [C M, ...] in class-major order and their labels [C M]: `per_class` of each class, with replacement."""
        labels = class_major(self.num_classes, per_class, self.x.device)
        place = rng.uniform(draws, (len(labels), 1), LABELLED, device=self.x.device).squeeze(1)
        counts = self.counts[labels]
        within = torch.minimum((place * counts).long(), counts - 1)
        x = self.x[self.starts[labels] + within]
        return (x if self.augment is None else self.augment(x, draws)), labels


_RAMP = 0.5  # of a phase, in which q(c | x) begins to follow the unlabelled bound


@dataclass(frozen=True)
class ClassWeights:
    """How labels enter.

    Args:
        cross_entropy: weight of `-log q(c | x)` on labelled examples.
        labelled: weight of the labelled examples' bound.
        fantasies: weight of `-log q(c | x)` on fantasies, whose class is known too.
        unlabelled: share of the unlabelled bound's gradient that q(c | x) takes, reached linearly over the first half of the phase. Early
            on the classes' decoders are alike and know nothing, and a likelihood of many pixels is far surer than it is right.
        consistency: weight, reached linearly over the first half of the phase, of the cross-entropy between q(c | x) as it is in training,
            with noise and dropout, and the class it thinks most probable without (Lee 2013). Nothing without either.
        balance: weight of the divergence of the batch's mean q(c | x) from uniform classes: without labels, one cluster may swallow all.
        batch_fraction: labelled examples for each row of the batch.
    """

    cross_entropy: float = 10.0
    labelled: float = 1.0
    fantasies: float = 0.0
    unlabelled: float = 1.0
    consistency: float = 0.0
    balance: float = 0.0
    batch_fraction: float = 0.25

    def __post_init__(self) -> None:
        for name in ("cross_entropy", "labelled", "fantasies", "unlabelled", "consistency", "balance"):
            _checks.require(getattr(self, name) >= 0, f"semi.{name}", "a number of at least 0", getattr(self, name))
        _checks.require(self.unlabelled <= 1, "semi.unlabelled", "a share of at most 1", self.unlabelled)
        _checks.require(self.batch_fraction > 0, "semi.batch_fraction", "a positive number", self.batch_fraction)

    def share(self, progress: Progress) -> float:
        """The share of the unlabelled bound's gradient that q(c | x) takes now."""
        return self.unlabelled * _ramp(progress)

    def agreement(self, progress: Progress) -> float:
        """The weight of `consistency` now."""
        return self.consistency * _ramp(progress)

    def follow(self, log_probs: Tensor, progress: Progress) -> Tensor:
        """`log_probs` unchanged, with that share of their gradient."""
        share = progress.varying(self.share)
        return share * log_probs + (1 - share) * log_probs.detach()


def _ramp(progress: Progress) -> float:
    return min(1.0, progress.fraction / _RAMP)


class SemiSupervised(Objective):
    """Minimise minus the bound of `q(z, c | x) = q(c | x) q(z | x, c)`, plus cross-entropy, plus the sleep term of each class.

    Without a label, `log p(x) >= sum_c q(c|x) E_q(z|x,c)[ log p(x|z) + log p(z|c) + log_ratio_c + log p(c) - log q(c|x) ]`; with
    label c, `log p(x, c) >= E_q(z|x,c)[ log p(x|z) + log p(z|c) + log_ratio_c ] + log p(c)`. All classes of a batch are one grouped
    call of the chain. Without labelled examples this is a mixture with a latent cluster.

    Terms, nats per example: `reconstruction`, `kl` (latents), `class_kl` (to uniform classes) and `consistency` of unlabelled data,
    `balance` of a batch, where it has a weight; `labelled_reconstruction`, `labelled_kl`, `cross_entropy` of labelled data; `sleep`,
    `sleep_top`, `sleep_class` of fantasies.

    Args:
        model: its prior is cut into classes.
        posterior: over latent and class, with a density.
        labelled: the examples with labels, or None.
        kl: how the weight of both divergences of latents moves; that of classes is 1.
        guide: how the prior enters while training.
        weights: how labels enter.
        sleep: how fantasies enter, for a diffusion posterior; they share the batch's size over the classes.
        num_samples: importance samples a row and class, averaged.
    """

    def __init__(
        self,
        model: LatentVariableModel,
        posterior: ClassConditional,
        labelled: LabelledExamples | None = None,
        kl: KLSchedule = KLSchedule(),
        guide: PriorGuide = PriorGuide(),
        weights: ClassWeights = ClassWeights(),
        sleep: Sleep | None = None,
        num_samples: int = 1,
    ) -> None:
        super().__init__()
        posterior.require_density()
        model.prior.require_density()
        _checks.require(not guide.joint, "guide.joint", "false, for classes", guide.joint)
        if sleep is not None:
            family = posterior.family
            _checks.require(isinstance(family, ClassDiffusion), "sleep", "None without a diffusion posterior", type(family).__name__)
            _checks.require(not sleep.alternating, "sleep.alternating", "false, for classes", True)
            for name, only in (("mixed", 0), ("data", 0), ("decoder", 0), ("timesteps", 1)):
                _checks.require(getattr(sleep, name) == only, f"sleep.{name}", f"{only}, for classes", getattr(sleep, name))
        self.model, self.posterior, self.labelled, self.kl, self.guide = model, posterior, labelled, kl, guide
        self.weights, self.sleep, self.num_samples = weights, sleep, num_samples

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        yield Update("wake", lambda: self.terms(x, progress, draws))

    def terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        """All terms of a batch `x` [N, ...] without labels."""
        values = self.unlabelled_terms(x, progress, draws)
        kl, share = self.kl.at(progress), self.weights.labelled
        weights = {"reconstruction": 1.0, "kl": kl, "class_kl": 1.0, "balance": self.weights.balance}
        weights["consistency"] = progress.varying(self.weights.agreement)
        # Every part of a batch takes all of its labelled examples and fantasies: they are few, and classes need equally many.
        rows, first = distributed.whole_batch(len(x), draws)
        if self.labelled is not None:
            per_class = rows_per_class(round(rows * self.weights.batch_fraction), self.posterior.num_classes)
            # The batch itself takes the first importance samples of these rows, one for each class and sample.
            own = first.importance(self.posterior.num_classes * self.num_samples)
            values |= self.labelled_terms(*self.labelled.draw(per_class, own), progress, own, per_class)
            weights |= {"labelled_reconstruction": share, "labelled_kl": share * kl, "cross_entropy": self.weights.cross_entropy}
        if self.sleep is not None and (self.sleep.active or self.weights.fantasies > 0):
            values |= self.sleep_terms(x, first, rows)
            weights |= {"sleep": self.sleep.weight, "sleep_top": self.sleep.top_weight, "sleep_class": self.weights.fantasies}
        return Terms(values, weights)

    def unlabelled_terms(self, x: Tensor, progress: Progress, draws: Draws) -> dict[str, Tensor]:
        """Terms [N] of data `x` [N, ...], summed over classes under q(c | x)."""
        noisy = self.posterior.log_class_probs(x, draws)
        log_probs = noisy.mT if self.labelled is None else self.weights.follow(noisy.mT, progress)  # [C, N]
        z, log_ratio = self.posterior.sample_classes(x, self.num_samples, draws)
        labels = torch.arange(len(z), device=z.device).view(-1, 1, 1)
        log_prior = self.guide.log_prob(self.model.prior, z, progress, labels)
        probs = log_probs.exp()
        return {
            "reconstruction": -(probs * self.model.log_likelihood(x, z).mean(1)).sum(0),
            "kl": -(probs * (log_prior + log_ratio).mean(1)).sum(0),
            "class_kl": (probs * log_probs).sum(0) + math.log(len(z)),
            **imbalance(probs, self.weights),
            **disagreement(self.posterior, x, noisy, self.weights),
        }

    def labelled_terms(self, x: Tensor, labels: Tensor, progress: Progress, draws: Draws, per_class: int | None = None) -> dict[str, Tensor]:
        """Terms [L] of data with `labels` [L]; `per_class` says that they are class-major, so many of each."""
        z, log_ratio = self.posterior.sample_of_class(x, labels.unsqueeze(0), draws, per_class)
        log_prior = self.guide.log_prob(self.model.prior, z, progress, labels)
        log_probs = self.posterior.log_class_probs(x, draws)
        return {
            "labelled_reconstruction": -self.model.log_likelihood(x, z)[0],
            "labelled_kl": -(log_prior + log_ratio)[0],
            "cross_entropy": -log_probs.gather(1, labels.unsqueeze(1)).squeeze(1),
        }

    @torch.no_grad()
    def _fantasies(self, like: Tensor, draws: Draws, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [C M, D], their data and classes, class-major, `rows` in all or a few more."""
        classes = self.posterior.num_classes
        labels = class_major(classes, rows_per_class(rows, classes), like.device)
        z = self.model.prior.sample(len(labels), draws, labels, dtype=like.dtype, device=like.device)
        x = self.model.likelihood.sample(self.model.decoder(z), draws)
        return z, x.view(len(x), *like.shape[1:]), labels

    def sleep_terms(self, like: Tensor, draws: Draws, rows: int | None = None) -> dict[str, Tensor]:
        """Fit every class's posterior to fantasies of that class, `rows` of them (as many as `like` has): one grouped call of the denoisers."""
        family = self.posterior.family
        z, x, labels = self._fantasies(like, draws, len(like) if rows is None else rows)
        with fixed_statistics(self.posterior):
            encoded = self.posterior.encode_of_class(x, labels, draws)
            log_probs = self.posterior.log_class_probs(x, draws)
        t = uniform_timesteps(draws, len(z), family.schedule.num_steps, z.device)
        exact = self.sleep.loss == "kl"
        return {
            "sleep": family.step_divergence(encoded.context, z, t, draws)
            if exact
            else family.denoising_loss(encoded.context, z, t, draws, self.sleep.loss),
            "sleep_top": -family.top_log_prob(encoded.mean, encoded.log_var, z, draws),
            "sleep_class": -log_probs.gather(1, labels.unsqueeze(1)).squeeze(1),
        }


def disagreement(posterior: ClassConditional, x: Tensor, noisy: Tensor, weights: ClassWeights) -> dict[str, Tensor]:
    """The term `consistency` [N] of log q(c | x) [N, C] as it is in training, if it has a weight."""
    if weights.consistency == 0:
        return {}
    with torch.no_grad(), fixed_statistics(posterior):
        believed = posterior.log_class_probs(x).argmax(1, keepdim=True)
    return {"consistency": -noisy.gather(1, believed).squeeze(1)}


def imbalance(probs: Tensor, weights: ClassWeights) -> dict[str, Tensor]:
    """The term `balance`, a scalar, of q(c | x) [C, N], if it has a weight: of the mean over the whole batch."""
    return {} if weights.balance == 0 else {"balance": divergence_from_uniform(distributed.batch_mean(probs.mean(1)))}


def divergence_from_uniform(probs: Tensor) -> Tensor:
    """KL of probabilities [C] from uniform ones in nats, a scalar."""
    return (probs * torch.log(probs.clamp(min=1e-12))).sum() + math.log(len(probs))


@torch.no_grad()
def class_log_joint_bound(
    model: LatentVariableModel, posterior: ClassConditional, x: Tensor, num_samples: int = 1, draws: Draws | None = None
) -> Tensor:
    """Estimates of a bound on log p(x, c) for every class, nats [C, N]: `E[ log p(x|z) + log p(z|c) + log_ratio_c ] + log p(c)`.

    Their softmax over classes classifies by the generative model alone, without q(c | x).
    """
    posterior.require_density()
    z, log_ratio = posterior.sample_classes(x, num_samples, draws)
    labels = torch.arange(len(z), device=z.device).view(-1, 1, 1)
    weights = model.log_likelihood(x, z) + model.prior.log_prob(z, labels) + log_ratio - math.log(len(z))
    return ops.log_mean_exp(weights, 1)
