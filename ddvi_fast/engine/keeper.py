"""What happens between steps: checkpoints, a moving average of the weights, and stopping when asked to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, distributed
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.base import Engine
from ddvi_fast.engine.checkpoints import Checkpoints, tensors_of
from ddvi_fast.engine.interrupts import Stopped, StopRequest
from ddvi_fast.engine.loop import Start
from ddvi_fast.engine.recorder import Recorder
from ddvi_fast.recipes.phases import Phase

_PARTS = ("weights", "average", "adam", "log")  # first names of a checkpoint's tensors


class Average:
    """An exponential moving average of weights, `decay` a step.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> average = Average({"w": layer.weight}, decay=0.75)
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
        self.restart()
        self._weight = 1 - decay

    def restart(self) -> None:
        """Begin with the weights as they are."""
        self.tensors = {name: value.detach().clone() for name, value in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of a step."""
        torch._foreach_lerp_(list(self.tensors.values()), [value.detach() for value in self._weights.values()], self._weight)

    @torch.no_grad()
    def put_in_place(self) -> None:
        """Make the average the weights."""
        for name, value in self.tensors.items():
            self._weights[name].copy_(value)


def weights_of(modules: Mapping[str, nn.Module], phases: Sequence[Phase]) -> dict[str, Tensor]:
    """All tensors of a run by name: those of `modules`, and what the objectives of its `phases` own beside."""
    owners = {f"phase{number}": phase.objective for number, phase in enumerate(phases)}
    return tensors_of({**modules, **owners})


class Keeper:
    """Called between steps; every process has one, and the first one writes.

    Args:
        modules: whose weights are kept, by name; `phases` add what their objectives own beside.
        phases: of the run.
        recorder: whose sums are kept.
        checkpoints: where to; None keeps nothing.
        every: steps from one checkpoint to the next.
        stop: asked after each step.
        average_decay: of the weights' moving average, which takes their place in the end; None for none.
        about: asked at each checkpoint for what else it should say.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        phases: Sequence[Phase],
        recorder: Recorder,
        checkpoints: Checkpoints | None,
        every: int,
        stop: StopRequest,
        average_decay: float | None = None,
        about: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        _checks.require(every >= 1, "checkpoint_steps", "at least 1, or null", every)
        self._weights = weights_of(modules, phases)
        self._recorder, self._checkpoints, self._every, self._stop = recorder, checkpoints, every, stop
        self._average = None if average_decay is None else Average(self._weights, average_decay)
        self._ask_about, self._best = about, None
        self.about: dict[str, Any] = {}  # what the checkpoint said that was loaded

    def start(self) -> Start | None:
        """Load the newest checkpoint that is whole; None, and nothing loaded, where there is none."""
        found = None if self._checkpoints is None else self._checkpoints.newest()
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
        self._recorder.load_state(parts["log"])
        self._best, self._recorder.last_bound, self.about = found.state["best"], found.state["bound"], found.state["about"]
        return Start(found.state["step"], parts["adam"])

    def begin(self, start: Start) -> None:
        """Begin after `start.step` instead of the first step, with the weights that the modules have; that is kept at once."""
        if self._average is not None:
            self._average.restart()
        if self._checkpoints is not None:
            self._save(start.step, start.adam)

    def __call__(self, step: int, engine: Engine) -> None:
        """After a step.

        Raises:
            Stopped: a signal came; a checkpoint of this step is on the disk.
            OSError: a signal came, and the checkpoint cannot be written.
        """
        if self._average is not None:
            self._average.update()
        stopping = distributed.any_process(self._stop.asked)
        if self._checkpoints is not None and (stopping or step % self._every == 0):
            self._save(step, engine.state())
        if stopping:
            self.finish_writing()
            raise Stopped(step)

    def _save(self, step: int, adam: Mapping[str, Tensor]) -> None:
        parts = {"weights": self._weights, "adam": adam, "log": self._recorder.state()}
        parts["average"] = {} if self._average is None else self._average.tensors
        bound = self._recorder.last_bound
        best = bound is not None and (self._best is None or bound < self._best)
        self._best = bound if best else self._best
        if distributed.is_first():
            state = {"step": step, "bound": bound, "best": self._best, "about": dict(self._ask_about())}
            self._checkpoints.save(step, {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}, state, best)

    def finish_writing(self) -> None:
        """Until checkpoints are on the disk; OSError if the last one is not."""
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def finish(self) -> None:
        """The run is trained: the average, if there is one, takes the weights' place."""
        self.finish_writing()
        if self._average is not None:
            self._average.put_in_place()
