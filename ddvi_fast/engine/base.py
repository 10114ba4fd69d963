"""The interface of an engine: it owns devices, precision and optimisers, so that the loop need not know them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast._checks import InputError
from ddvi_fast.objectives import Objective, Progress, Terms
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

    def state(self) -> dict[str, Tensor]:
        """The optimisers' state by the names of parameters; in every process, if there are several."""

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave, of this engine or another."""


class NonFinite(InputError):
    """A loss or gradient that is not finite. Parameters are as they were before the update that met it.

    Args:
        what: ``loss`` or ``gradient``.
        names: the terms at fault, or the parameters.
        rows: of the whole batch, where a term is not finite by itself.
    """

    place: Any = None  # the step that met it, as the loop knows it

    def __init__(self, what: str, names: Sequence[str], rows: Sequence[int] = ()) -> None:
        self.what, self.names, self.rows = what, list(names), list(rows)
        where = ", ".join(self.names[:4]) + (" ..." if len(self.names) > 4 else "")
        super().__init__(f"{what}: expected a finite number, got NaN or infinity in {where or 'the sum'} (a smaller lr or max_norm may help)")


def bad_terms(terms: Terms) -> list[str]:
    """Names of terms that are not finite."""
    return [name for name, value in terms.values.items() if not bool(torch.isfinite(value).all())]


def bad_rows(terms: Terms, rows: int) -> Tensor:
    """Which of the batch's rows have a term that is not finite, bool [rows]; terms of anything else do not tell."""
    bad = torch.zeros(rows, dtype=torch.bool)
    for value in terms.values.values():
        if value.shape == (rows,):
            bad |= ~torch.isfinite(value.detach()).cpu()
    return bad


def by_factor(parameters: Iterable[nn.Parameter], names: Mapping[int, str], optimisation: Optimisation) -> list[dict[str, Any]]:
    """Groups of an optimiser, one for each factor of the learning rate; `names` of parameters by their id."""
    members: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        members.setdefault(optimisation.factor(names[id(parameter)]), []).append(parameter)
    return [{"params": group, "factor": factor} for factor, group in members.items()]


def set_trainable(modules: Iterable[nn.Module], trainable: bool) -> None:
    """Freeze or thaw modules, as warm-up phases do."""
    for module in modules:
        module.requires_grad_(trainable)
