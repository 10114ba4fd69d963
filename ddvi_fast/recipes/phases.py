"""Phases of training: objective, length, learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ddvi_fast import _checks
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.objectives import Objective
from ddvi_fast.posteriors import Posterior

LR_SCHEDULES = ("constant", "cosine", "step")
STEP_AT = 0.75  # fraction of the phase after which the schedule "step" divides the rate by ten


@dataclass(frozen=True)
class Optimisation:
    """Learning rates and gradient clipping of a phase, for Adam.

    Args:
        lr: Peak learning rate.
        lr_schedule: ``"constant"``, ``"cosine"`` (decay to zero over the phase) or ``"step"`` (a tenth in its last quarter).
        warmup_fraction: Fraction of the phase, in [0, 1), in which the rate rises linearly from zero.
        max_norm: Largest norm of the gradient, above which it is scaled down; None for no clipping.
        factors: Factors on the rate of the parameters whose name contains a word, by default ten for
            learned schedules and variances.

    Raises:
        InputError: A value out of its range.
    """

    lr: float = 1e-3
    lr_schedule: str = "cosine"
    warmup_fraction: float = 0.0
    max_norm: float | None = 50.0
    factors: dict[str, float] = field(default_factory=lambda: {"learned_schedule": 10.0, "log_variance_factors": 10.0})

    def __post_init__(self) -> None:
        _checks.choice(self.lr_schedule, LR_SCHEDULES, "lr_schedule")
        _checks.require(self.lr > 0, "lr", "a positive number", self.lr)
        _checks.require(0 <= self.warmup_fraction < 1, "warmup_fraction", "a number in [0, 1)", self.warmup_fraction)
        _checks.require(self.max_norm is None or self.max_norm > 0, "max_norm", "None or a positive number", self.max_norm)

    def rate(self, fraction: float) -> float:
        """Learning rate after a `fraction` of the phase, in [0, 1]."""
        if fraction < self.warmup_fraction:
            return self.lr * fraction / self.warmup_fraction
        if self.lr_schedule == "constant":
            return self.lr
        if self.lr_schedule == "step":
            return self.lr if fraction < STEP_AT else 0.1 * self.lr
        progress = (fraction - self.warmup_fraction) / (1 - self.warmup_fraction)
        return self.lr * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress, dtype=torch.float64, device="cpu")).item())

    def factor(self, name: str) -> float:
        """Factor on the learning rate of the parameter called `name`."""
        return next((factor for word, factor in self.factors.items() if word in name), 1.0)


@dataclass(frozen=True)
class Phase:
    """A stretch of training under one objective.

    Args:
        name: Name of the phase in logs.
        objective: Objective to minimize.
        epochs: Number of epochs. An epoch is one pass over the data, or `steps_per_epoch` batches.
        optimisation: Learning rates and clipping.
        steps_per_epoch: Batches in an epoch; None for one pass over the data.
        frozen: Modules that are not trained in the first `frozen_epochs` epochs.
        frozen_epochs: Number of epochs in which `frozen` is not trained.
    """

    name: str
    objective: Objective
    epochs: int
    optimisation: Optimisation = field(default_factory=Optimisation)
    steps_per_epoch: int | None = None
    frozen: Sequence[nn.Module] = ()
    frozen_epochs: int = 0

    def num_steps(self, batches: int) -> int:
        """Number of batches in the phase, where one pass over the data has `batches`."""
        return self.epochs * (self.steps_per_epoch or batches)


@dataclass(frozen=True)
class Experiment:
    """A model, its posterior, and the phases that train them."""

    model: LatentVariableModel
    posterior: Posterior
    phases: Sequence[Phase]

    def modules(self) -> dict[str, nn.Module]:
        """The trained modules by the names they have in checkpoints."""
        return {"model": self.model, "posterior": self.posterior}

    def to(self, device: torch.device | str) -> Experiment:
        """Move the networks, and what the objectives own, to `device` in place; returns the experiment."""
        for module in (self.model, self.posterior, *(phase.objective for phase in self.phases)):
            module.to(device)
        return self

    def eval(self) -> Experiment:
        """Put model and posterior into evaluation mode; returns the experiment."""
        self.model.eval()
        self.posterior.eval()
        return self
