"""How the KL term enters over the epochs of a phase: its weight, and how the prior guides it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.objectives.base import Progress
from ddvi_fast.priors import Prior

KINDS = ("constant", "linear", "cyclic", "reverse_warmup")
CYCLES = 4
SILENT_EPOCHS = 5  # of reverse_warmup
_STAIRS = 40  # in which the blur narrows


def kl_weight(kind: str, epoch: float, epochs: int, weight: float = 1.0, *, fraction: float = 0.8, hold: float = 0.0) -> float:
    """The KL weight at `epoch` of `epochs`; the released code's four shapes.

    Args:
        kind: ``constant``; ``linear`` ramps from 0; ``cyclic`` ramps four times (Fu et al. 2019); ``reverse_warmup`` is 0 for 5 epochs.
        epoch: may be fractional.
        epochs: length of the phase.
        weight: the value at the end.
        fraction: of the phase by which the ramp has ended.
        hold: fraction of the phase at full weight before the ramp begins, while new parts of a model settle.

    Example:
        >>> [kl_weight("linear", epoch, 10, fraction=0.4) for epoch in (0, 2, 4, 9)]
        [0.0, 0.5, 1.0, 1.0]
    """
    _checks.choice(kind, KINDS, "kl_weight")
    _checks.require(0 <= hold < fraction <= 1, "hold, fraction", "0 <= hold < fraction <= 1", (hold, fraction))
    if kind == "constant":
        return weight
    if kind == "reverse_warmup":
        return weight if epoch >= SILENT_EPOCHS else 0.0
    ramp, since = (fraction - hold) * epochs, epoch - hold * epochs
    if since < 0 or since >= ramp:
        return weight
    return weight * min(1.0, since / ramp if kind == "linear" else _cycle_fraction(since, ramp / CYCLES))


def _cycle_fraction(since: float, period: float) -> float:
    """Position in the current cycle, whose first 80% ramp; cycles start at whole epochs."""
    start = max(int(cycle * period) for cycle in range(CYCLES) if int(cycle * period) <= since)
    return (since - start) / (0.8 * period)


@dataclass(frozen=True)
class PriorGuide:
    """How the prior's density enters while training; bounds that are reported always use the prior itself.

    A thin prior gives latents beside it a KL of thousands of nats and a score to match, from which a posterior only recoils. So
    the prior is blurred early in a phase, and no sample's score may exceed a limit. A limited score is not the bound's gradient: it
    lets a share of the samples stay beside the prior for good, so the limit is lifted where latents have settled.

    Args:
        blur: width of the blur, falling in 40 stairs to a hundredth of it and then to nothing.
        fraction: of the phase by which the blur is gone.
        max_score: limit of the norm of each sample's `d log p(z) / dz`; None for none.
        max_score_fraction: of the phase in which that limit holds.
        power: with more than 1 the blur narrows slowly at first: the prior is wide, and latents can still change places, for longer.
        joint: the limit holds for the sum of that score and `d log p(x|z) / dz` (`ELBO` alone). A score limited by itself is outvoted
            by the data beside a thin prior, and latents stay there; their sum leads back to it however short it is cut.
    """

    blur: float = 0.0
    fraction: float = 0.5
    max_score: float | None = None
    max_score_fraction: float = 1.0
    power: float = 1.0
    joint: bool = False

    def __post_init__(self) -> None:
        _checks.require(self.power > 0, "prior_blur_power", "a positive number", self.power)
        _checks.require(self.blur >= 0, "prior_blur", "a width of at least 0", self.blur)
        _checks.require(0 < self.fraction <= 1, "prior_blur_fraction", "a number in (0, 1]", self.fraction)
        _checks.require(self.max_score is None or self.max_score > 0, "prior_max_score", "None or a positive number", self.max_score)
        _checks.require(self.max_score is not None or not self.joint, "prior_max_score", "a number, to limit it jointly", self.max_score)
        _checks.require(0 <= self.max_score_fraction <= 1, "prior_max_score_fraction", "a number in [0, 1]", self.max_score_fraction)

    def width(self, fraction: float) -> float:
        """The blur's width at `fraction` of the phase."""
        if self.blur == 0 or fraction >= self.fraction:
            return 0.0
        return self.blur * 0.01 ** ((math.floor(_STAIRS * fraction / self.fraction) / _STAIRS) ** self.power)

    def _width_at(self, progress: Progress) -> float:
        return self.width(progress.fraction)

    def limit(self, fraction: float) -> float:
        """The limit of a score at `fraction` of the phase, infinite where there is none."""
        lifted = self.max_score_fraction < 1 and fraction >= self.max_score_fraction
        return math.inf if self.max_score is None or lifted else self.max_score

    def _limit_at(self, progress: Progress) -> float:
        return self.limit(progress.fraction)

    def blurred(self, prior: Prior, progress: Progress) -> Prior:
        """The prior as blurred as it is by then."""
        return prior.blurred(progress.fixed(self._width_at))

    def log_prob(self, prior: Prior, z: Tensor, progress: Progress, labels: Tensor | None = None) -> Tensor:
        """log p(z), or log p(z | labels), in nats under the blurred prior, [..., D] -> [...], its gradient to `z` limited."""
        prior = self.blurred(prior, progress)
        limit = self.limit_at(progress)
        if math.isinf(limit) or not torch.is_grad_enabled():
            return prior.log_prob(z, labels)
        leaf = z.detach().requires_grad_()
        log_prob = prior.log_prob(leaf, labels)
        (score,) = torch.autograd.grad(log_prob.sum(), leaf, retain_graph=True)
        return log_prob + following(z, score, limit)

    def limit_at(self, progress: Progress) -> float:
        """The limit by then, the same for many steps."""
        return progress.fixed(self._limit_at)


def following(z: Tensor, slope: Tensor, limit: float) -> Tensor:
    """Zeros [...], whose gradient to `z` [..., D] is `slope`, each row of which is at most `limit` long."""
    if not math.isinf(limit):
        slope = slope * (limit / slope.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1)
    return ((z - z.detach()) * slope).sum(-1)
