"""What an objective hands to the training loop: updates, each a set of named per-sample terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ddvi_fast.rng import Draws


@dataclass(frozen=True)
class Progress:
    """How far a phase has come; `epoch` counts within the phase and may be fractional.

    Whatever moves with time is asked of `varying` or `fixed`, so that a training step can be recorded once and replayed: then the
    first gives a scalar on the device, and a change of the second makes the engine record the step anew.

    Args:
        epoch: how far.
        epochs: length of the phase.
        num_steps: the same length in training steps; None if nobody counts them.
    """

    epoch: float
    epochs: int
    num_steps: int | None = None

    @property
    def fraction(self) -> float:
        """In [0, 1]."""
        return self.epoch / max(1, self.epochs)

    def varying(self, number: Callable[[Progress], float]) -> float | Tensor:
        """`number(self)`, which may differ at every step."""
        return number(self)

    def fixed(self, number: Callable[[Progress], float]) -> float:
        """`number(self)`, which stays the same for many steps and is needed on the host."""
        return number(self)


@dataclass(frozen=True)
class Terms:
    """Named terms [N] in nats per example, and the weights under which they are minimised.

    Terms stay apart until `total`, so that the log shows each of them unweighted.
    """

    values: Mapping[str, Tensor]
    weights: Mapping[str, float | Tensor]

    def total(self) -> Tensor:
        """The scalar to minimise: the weighted sum of means."""
        return torch.stack([self.weights[name] * mean for name, mean in self._means.items() if self._counts(name)]).sum()

    @cached_property
    def _means(self) -> dict[str, Tensor]:
        return {name: value.mean() for name, value in self.values.items()}

    def _counts(self, name: str) -> bool:
        # The value of a weight on a device is not known here; one on the host that is zero spares its term's gradient.
        return isinstance(self.weights[name], Tensor) or self.weights[name] != 0

    def means(self) -> dict[str, Tensor]:
        """Unweighted means, for the log."""
        return {name: mean.detach() for name, mean in self._means.items()}


@dataclass(frozen=True)
class Update:
    """One optimiser step: the name of its parameter group, and the terms to minimise, computed when called."""

    group: str
    terms: Callable[[], Terms]


class Objective(nn.Module):
    """An objective owns the modules it trains."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters of each kind of update; every group has an optimiser of its own."""
        return {"wake": [parameter for parameter in self.parameters() if parameter.requires_grad]}

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        """The updates of one batch `x` [N, ...], in order; rows stand at `draws` in the run."""
        raise NotImplementedError
