"""How the weight of the KL term, and the blur of the prior, move over the epochs of a phase."""

from __future__ import annotations

from dataclasses import dataclass

from ddvi_fast import _checks

KINDS = ("constant", "linear", "cyclic", "reverse_warmup")
CYCLES = 4
SILENT_EPOCHS = 5  # of reverse_warmup


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
class Blur:
    """A width by which the prior is blurred early in a phase, falling to a hundredth of `width` and then to nothing.

    A thin prior gives latents beside it a KL of thousands of nats, from which a posterior only recoils; a blurred one
    draws them in first. Bounds that are reported always use the prior itself.
    """

    width: float = 0.0
    fraction: float = 0.5

    def __post_init__(self) -> None:
        _checks.require(self.width >= 0, "prior_blur", "a width of at least 0", self.width)
        _checks.require(0 < self.fraction <= 1, "prior_blur_fraction", "a number in (0, 1]", self.fraction)

    def at(self, fraction: float) -> float:
        """The width at `fraction` of the phase."""
        return self.width * 0.01 ** (fraction / self.fraction) if fraction < self.fraction else 0.0
