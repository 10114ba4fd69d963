"""The policy of mixed precision, in one place.

Matrix products of dense networks, and the hidden products of a chain's denoiser, run in the narrow type, by torch's autocast. All
else is float32: parameters, Adam and its state, gradients and their exchange, the first and last layer of a denoiser, noise,
schedules, densities, and every sum. That holds for every family: its flows, Hamiltonian steps and path integrals evaluate densities
outside of autocast's reach or widen what they take from a network.

``fp16`` has few exponents, so its loss is scaled up before backward and gradients down after it. The scale halves after a step
whose gradients overflow, which is left out, and doubles after 2,000 steps without.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ddvi_fast import _checks

NARROW = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = tuple(NARROW)


def products_in(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """Makes the context in which losses are computed.

    Example:
        >>> with products_in("bf16", torch.device("cpu"))():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    narrow = NARROW[_checks.choice(precision, PRECISIONS, "precision")]
    if narrow is None:
        return nullcontext
    # Without autocast's cache of narrow weights, which an optimiser's step makes stale.
    return lambda: torch.autocast(device.type, narrow, cache_enabled=False)


@dataclass
class LossScale:
    """The factor on an fp16 loss.

    Args:
        value: now.
        growth_steps: good steps after which it doubles.
        good_steps: since it last changed.

    Example:
        >>> scale = LossScale(8.0, growth_steps=2)
        >>> for overflow in (True, False, False, False):
        ...     scale.update(overflow)
        >>> scale.value
        8.0
    """

    value: float = 2.0**16
    growth_steps: int = 2000
    good_steps: int = 0

    def update(self, overflow: bool) -> None:
        """Note how a step went.

        Raises:
            InputError: gradients overflow at the smallest scale too, so that they are at fault themselves.
        """
        if overflow:
            _checks.require(self.value > 1.0, "gradient", "finite numbers at a loss scale of 1", "overflow in fp16", "precision=bf16 may help")
            self.value, self.good_steps = self.value / 2, 0
            return
        self.good_steps += 1
        if self.good_steps == self.growth_steps:
            self.value, self.good_steps = self.value * 2, 0
