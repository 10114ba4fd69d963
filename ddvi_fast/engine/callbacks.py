"""Callbacks of the training loop: means of the terms, moving average of the weights, checkpoints and stopping."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, distributed
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.checkpoint_manager import CheckpointManager, tensors_of
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.logs import RunLog
from ddvi_fast.engine.loop import Callback, Start
from ddvi_fast.engine.signals import Stopped, StopRequest
from ddvi_fast.recipes.mapping import from_mapping
from ddvi_fast.recipes.phases import Phase

BOUND = ("reconstruction", "kl", "bound", "class_kl")  # terms whose plain sum is minus the bound
_COUNT = "count"
_PARTS = ("weights", "average", "adam", "log")  # first parts of the names of a checkpoint's tensors


class TermMeter(Callback):
    """Means of the terms over each epoch, which go to the run's log; its sums can be saved in a checkpoint.

    Args:
        log: Log of the run; None in all processes but the first.

    Attributes:
        last_bound: Minus the mean bound over the last epoch (float, nats per example), or None.
    """

    def __init__(self, log: RunLog | None = None) -> None:
        self.log = log
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self.last_bound: float | None = None

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
        """Sums over the epoch so far, over all processes; each of them must call it."""
        return {**distributed.means_over_processes(self._sums), _COUNT: torch.tensor(self._count, device="cpu")}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue an epoch from what `state` returned."""
        whole = _COUNT in tensors and all(value.numel() == 1 for value in tensors.values())
        _checks.require(whole, "checkpoint, log", f"numbers, and their {_COUNT}", ", ".join(tensors) or "none")
        self._sums = {name: value.clone() for name, value in tensors.items() if name != _COUNT}
        self._count = int(tensors[_COUNT])


class WeightEMA:
    """Exponential moving average of weights.

    Args:
        weights: Weights by name; those that are not floating-point are left out.
        decay: Decay of the average per step, in (0, 1).

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> average = WeightEMA({"w": layer.weight}, decay=0.75)
        >>> before = layer.weight.item()
        >>> with torch.no_grad():
        ...     _ = layer.weight.add_(4)
        >>> average.update()
        >>> round(average.tensors["w"].item() - before, 5)
        1.0
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        _checks.require(0 < decay < 1, "average_decay", "a number in (0, 1), or null", decay)
        self._weights = {name: value for name, value in weights.items() if value.is_floating_point()}
        self.tensors = {name: value.detach().clone() for name, value in self._weights.items()}
        self._weight = 1 - decay

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights of a step to the average."""
        torch._foreach_lerp_(list(self.tensors.values()), [value.detach() for value in self._weights.values()], self._weight)

    @torch.no_grad()
    def apply(self) -> None:
        """Copy the average into the weights."""
        for name, value in self.tensors.items():
            self._weights[name].copy_(value)


@dataclass(frozen=True)
class Position:
    """Plain values of a checkpoint: steps that are done, best and last bound, and what else its run knows."""

    step: int
    bound: float | None
    best: float | None
    about: dict[str, Any]


def weights_of(modules: Mapping[str, nn.Module], phases: Sequence[Phase]) -> dict[str, Tensor]:
    """All tensors of a run by name: those of `modules`, and those that only the objectives of `phases` own."""
    return tensors_of({**modules, **{f"phase{number}": phase.objective for number, phase in enumerate(phases)}})


class CheckpointCallback(Callback):
    """Saves checkpoints, averages weights, and stops the run when a signal asks for it. The first process writes.

    Args:
        modules: Modules by name whose weights are saved.
        phases: Phases of the run, whose objectives may own further weights.
        meter: Meter whose sums are saved.
        manager: CheckpointManager of the run, or None to save none.
        every: Number of steps between two checkpoints (int).
        stop: Request to stop, read after each step.
        average_decay: Decay of the moving average that replaces the weights at the end (float), or None for no average.
        about: Function that returns further plain values for the state of a checkpoint.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        phases: Sequence[Phase],
        meter: TermMeter,
        manager: CheckpointManager | None,
        every: int,
        stop: StopRequest,
        average_decay: float | None = None,
        about: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        _checks.require(every >= 1, "checkpoint_steps", "at least 1, or null", every)
        self._weights = weights_of(modules, phases)
        self._meter, self._manager, self._every, self._stop = meter, manager, every, stop
        self._average = None if average_decay is None else WeightEMA(self._weights, average_decay)
        self._ask_about, self._best = about, None
        self.about: dict[str, Any] = {}  # of the checkpoint that was loaded

    def resume(self) -> Start | None:
        """Load the newest checkpoint that is intact; None, and nothing is loaded, if there is none."""
        found = None if self._manager is None else self._manager.newest()
        if found is None:
            return None
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
        for full, value in found.tensors.items():
            part, _, name = full.partition("/")
            _checks.require(part in parts, f"checkpoint {found.name}", f"tensors of {', '.join(_PARTS)}", full)
            parts[part][name] = value
        checkpoint.load_tensors(parts["weights"], self._weights)
        if self._average is not None:
            checkpoint.load_tensors(parts["average"], self._average.tensors)
        position = from_mapping(Position, found.state, f"checkpoint {found.name}")
        self._meter.load_state(parts["log"])
        self._best, self._meter.last_bound, self.about = position.best, position.bound, position.about
        return Start(position.step, parts["adam"])

    def after_step(self, step: int, engine: Engine) -> None:
        """Update the average, save a checkpoint where one is due, and stop if a signal came.

        Raises:
            Stopped: A signal came; a checkpoint of this step is on the disk.
            OSError: A signal came, and the checkpoint cannot be written.
        """
        if self._average is not None:
            self._average.update()
        stopping = distributed.any_process(self._stop.asked)
        if self._manager is not None and (stopping or step % self._every == 0):
            self._save(step, engine.state())
        if stopping:
            self.finish_writing()
            raise Stopped(step)

    def _save(self, step: int, adam: Mapping[str, Tensor]) -> None:
        parts = {"weights": self._weights, "adam": adam, "log": self._meter.state()}
        parts["average"] = {} if self._average is None else self._average.tensors
        bound = self._meter.last_bound
        best = bound is not None and (self._best is None or bound < self._best)
        self._best = bound if best else self._best
        if distributed.is_first():
            state = asdict(Position(step, bound, self._best, dict(self._ask_about())))
            self._manager.save(step, {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}, state, best)

    def finish_writing(self) -> None:
        """Wait until checkpoints are on the disk; OSError if the last one is not."""
        if self._manager is not None:
            self._manager.wait()

    def finish(self) -> None:
        """End a trained run: the average, if there is one, replaces the weights."""
        self.finish_writing()
        if self._average is not None:
            self._average.apply()
