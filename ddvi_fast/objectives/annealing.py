"""Annealing of the KL weight and of the prior over a training phase."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.objectives.base import Progress
from ddvi_fast.posteriors import Posterior
from ddvi_fast.posteriors.base import PosteriorSample
from ddvi_fast.priors import Prior

KINDS = ("constant", "linear", "cyclic", "reverse_warmup")
CYCLES = 4
SILENT_EPOCHS = 5  # of reverse_warmup
_BLUR_STAIRS = 40  # widths that the blur takes


@_checks.typed
def kl_weight(kind: str, epoch: float, epochs: int, weight: float = 1.0, *, fraction: float = 0.4, hold: float = 0.0) -> float:
    """Return the KL weight at an epoch.

    Args:
        kind: Shape of the schedule. ``constant``: always `weight`. ``linear``: a ramp from 0. ``cyclic``: four ramps in turn (Fu et al.
            2019, "Cyclical annealing schedule"). ``reverse_warmup``: 0 during the first 5 epochs, then `weight`.
        epoch: Epochs completed (float, may be fractional).
        epochs: Length of the phase in epochs (int).
        weight: Final weight (float, default 1).
        fraction: Fraction of the phase after which the ramp has ended (float in (0, 1], default 0.4).
        hold: Fraction of the phase with the full weight before the ramp starts (float, default 0), so that new parts of a model can settle.

    Raises:
        InputError: If `kind` is unknown, or unless 0 <= hold < fraction <= 1.

    Example:
        >>> [kl_weight("linear", epoch, 10) for epoch in (0, 2, 4, 9)]
        [0.0, 0.5, 1.0, 1.0]
    """
    _checks.choice(kind, KINDS, "kl_weight")
    _checks.number(weight, "weight", at_least=0)
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
    """Position in the current cycle. The first 80% of a cycle ramp; cycles start at whole epochs."""
    start = max(int(cycle * period) for cycle in range(CYCLES) if int(cycle * period) <= since)
    return (since - start) / (0.8 * period)


@_checks.typed
@dataclass(frozen=True)
class KLSchedule:
    """Schedule of the KL weight over a training phase; see `kl_weight` for the shapes.

    Args:
        kind: Shape of the schedule: ``constant``, ``linear`` (default), ``cyclic`` or ``reverse_warmup``.
        weight: Final KL weight (float, default 1).
        fraction: Fraction of the epochs after which the ramp has ended (float, default 0.4).
        hold: Fraction of the epochs with the full weight before the ramp starts (float, default 0).
        whole_epochs: Change the weight once an epoch instead of at every step (bool, default False).

    Raises:
        InputError: As for `kl_weight`.

    Example:
        >>> KLSchedule("linear", weight=0.5).at(Progress(epoch=20, epochs=100))
        0.25
    """

    kind: str = "linear"
    weight: float = 1.0
    fraction: float = 0.4
    hold: float = 0.0
    whole_epochs: bool = False

    def __post_init__(self) -> None:
        kl_weight(self.kind, 0.0, 1, self.weight, fraction=self.fraction, hold=self.hold)

    def at(self, progress: Progress) -> float | Tensor:
        """Return the weight at `progress`: a float, or a scalar tensor on the device in a recorded step."""
        return progress.varying(self._number)

    def _number(self, progress: Progress) -> float:
        epoch = math.floor(progress.epoch) if self.whole_epochs else progress.epoch
        return kl_weight(self.kind, epoch, progress.epochs, self.weight, fraction=self.fraction, hold=self.hold)


@_checks.typed
@dataclass(frozen=True)
class PriorGuide:
    """Smoothing of the prior while training. Evaluation always uses the prior itself.

    Off the support of a narrow prior the gradient of the KL term explodes. The prior is therefore smoothed by Gaussian noise whose width
    falls to zero during the phase.

    Args:
        blur: Initial standard deviation of the noise, in units of z (float, default 0.3; 0 for none). It falls to a hundredth in 40 steps,
            then to 0.
        fraction: Fraction of the epochs after which the prior is not blurred any more (float, default 0.6).

    Raises:
        InputError: If a value is out of range.

    Example:
        >>> PriorGuide(blur=0.3, fraction=0.6).width(0.0)
        0.3
    """

    blur: float = 0.3
    fraction: float = 0.6

    def __post_init__(self) -> None:
        _checks.require(self.blur >= 0, "prior_blur", "a width of at least 0", self.blur)
        _checks.require(0 < self.fraction <= 1, "prior_blur_fraction", "a number in (0, 1]", self.fraction)

    def width(self, fraction: float) -> float:
        """Return the standard deviation of the blur at `fraction` of the phase."""
        if self.blur == 0 or fraction >= self.fraction:
            return 0.0
        return self.blur * 0.01 ** (math.floor(_BLUR_STAIRS * fraction / self.fraction) / _BLUR_STAIRS)

    def _width_at(self, progress: Progress) -> float:
        return self.width(progress.fraction)

    def blurred(self, prior: Prior, progress: Progress) -> Prior:
        """Return the prior with the blur of `progress`."""
        return prior.blurred(progress.fixed(self._width_at))

    def log_prob(self, prior: Prior, z: Tensor, progress: Progress, labels: Tensor | None = None) -> Tensor:
        """Return the blurred prior's log-density.

        Args:
            prior: The prior.
            z: Latents [..., D].
            progress: Position within the training phase.
            labels: Classes [...] to evaluate `log p(z | labels)`, or None for `log p(z)`.

        Returns:
            Log-densities [...] in nats.
        """
        return self.blurred(prior, progress).log_prob(z, labels)

    def log_prior_ratio(self, posterior: Posterior, prior: Prior, sample: PosteriorSample, progress: Progress) -> Tensor:
        """Return `log_prior_ratio` [...] of posterior samples in nats; outside the prior's coordinates the prior is blurred."""
        if posterior.pushes or sample.log_ratio is None:
            return posterior.log_prior_ratio(prior, sample)
        return self.log_prob(prior, sample.z, progress) + sample.log_ratio
