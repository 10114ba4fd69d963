"""The interface of an engine: it owns devices, precision and optimisers, so that the loop need not know them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.objectives import Objective, Progress
from ddvi_fast.rng import Draws

LR_SCHEDULES = ("constant", "cosine", "step")
STEP_AT = 0.75  # of the phase


@dataclass(frozen=True)
class Optimisation:
    """How parameters move.

    Args:
        lr: peak learning rate of Adam.
        lr_schedule: ``constant``, ``cosine`` decay to zero over the phase, or ``step``, a tenth in its last quarter.
        warmup_fraction: of the phase in which the rate rises linearly from zero.
        max_norm: clip the gradient's norm; None for no clipping.
        factors: on the rate of parameters whose name contains a word, such as ``learned_schedule``.
    """

    lr: float = 1e-3
    lr_schedule: str = "cosine"
    warmup_fraction: float = 0.0
    max_norm: float | None = None
    factors: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _checks.choice(self.lr_schedule, LR_SCHEDULES, "lr_schedule")
        _checks.require(self.lr > 0, "lr", "a positive number", self.lr)
        _checks.require(0 <= self.warmup_fraction < 1, "warmup_fraction", "a number in [0, 1)", self.warmup_fraction)
        _checks.require(self.max_norm is None or self.max_norm > 0, "max_norm", "None or a positive number", self.max_norm)

    def rate(self, fraction: float) -> float:
        """The learning rate at `fraction` of the phase."""
        if fraction < self.warmup_fraction:
            return self.lr * fraction / self.warmup_fraction
        if self.lr_schedule == "constant":
            return self.lr
        if self.lr_schedule == "step":
            return self.lr if fraction < STEP_AT else 0.1 * self.lr
        progress = (fraction - self.warmup_fraction) / (1 - self.warmup_fraction)
        return self.lr * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress, dtype=torch.float64)).item())

    def factor(self, name: str) -> float:
        """The factor on the rate of the parameter called `name`."""
        return next((factor for word, factor in self.factors.items() if word in name), 1.0)


class Engine(Protocol):
    """One phase's optimisers around its objective."""

    objective: Objective
    device: torch.device

    def run(self, x: Tensor, progress: Progress, draws: Draws) -> dict[str, Tensor]:
        """All updates of one batch; returns the terms' means, on the device."""

    def check(self) -> None:
        """Raise if a loss since the last check was not finite."""

    def refresh(self) -> None:
        """Something in the objective changed between steps, such as what is frozen."""

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimiser of each group, for checkpoints."""


def set_trainable(modules: Iterable[nn.Module], trainable: bool) -> None:
    """Freeze or thaw modules, as warm-up phases do."""
    for module in modules:
        module.requires_grad_(trainable)
