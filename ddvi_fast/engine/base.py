"""The interface of an engine: it owns devices, precision and optimisers, so that the loop need not know them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ddvi_fast._checks import InputError
from ddvi_fast.objectives import Objective, Progress, Terms
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws


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
