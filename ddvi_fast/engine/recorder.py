"""From the loop's news to the run's log, whose sums a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ddvi_fast import distributed
from ddvi_fast.engine.base import Engine
from ddvi_fast.engine.logs import RunLog

BOUND = ("reconstruction", "kl", "bound", "class_kl")  # terms whose plain sum is minus the bound
_COUNT = "count"


class Recorder:
    """A record an epoch, the bar at every step; of several processes the first writes.

    Args:
        log: None in the other processes.
    """

    def __init__(self, log: RunLog | None) -> None:
        self.log = log
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self.last_bound: float | None = None  # minus the mean bound of the last epoch, nats per example

    def step(self, step: int, phase: str, epoch: float, terms: Mapping[str, Tensor]) -> None:
        # Sums stay on the device: reading every step's terms back would stall it.
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in terms.items()}
        self._count += 1
        if self.log is not None:
            self.log.advance(step, phase=phase)

    def epoch(self, step: int, phase: str, epoch: int, engine: Engine) -> None:
        means = distributed.means_over_processes({name: total / self._count for name, total in self._sums.items()})
        parts = [float(means[name]) for name in BOUND if name in means]
        self.last_bound = sum(parts) if parts else None
        if self.log is not None:
            self.log.log(step, epoch=epoch, phase=phase, terms=means)
        self._sums, self._count = {}, 0

    def state(self) -> dict[str, Tensor]:
        """What the epoch has summed up so far, over all processes; each of them must call it."""
        sums = distributed.means_over_processes(self._sums)
        return {**sums, _COUNT: torch.tensor(self._count)}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with an epoch."""
        self._sums = {name: value.clone() for name, value in tensors.items() if name != _COUNT}
        self._count = int(tensors[_COUNT])
