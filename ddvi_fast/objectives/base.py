"""What an objective hands to the training loop: updates, each a set of named per-sample terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddvi_fast.rng import Draws


@dataclass(frozen=True)
class Progress:
    """How far a phase has come; `epoch` counts within the phase and may be fractional."""

    epoch: float
    epochs: int

    @property
    def fraction(self) -> float:
        """In [0, 1]."""
        return self.epoch / max(1, self.epochs)


@dataclass(frozen=True)
class Terms:
    """Named terms [N] in nats per example, and the weights under which they are minimised.

    Terms stay apart until `total`, so that the log shows each of them unweighted.
    """

    values: Mapping[str, Tensor]
    weights: Mapping[str, float]

    def total(self) -> Tensor:
        """The scalar to minimise: the weighted sum of means."""
        return torch.stack([self.weights[name] * value.mean() for name, value in self.values.items() if self.weights[name] != 0]).sum()

    def means(self) -> dict[str, Tensor]:
        """Unweighted means, for the log."""
        return {name: value.detach().mean() for name, value in self.values.items()}


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
