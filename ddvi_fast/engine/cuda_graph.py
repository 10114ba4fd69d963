"""CUDA graphs of a training step: recorded once and replayed with one launch, without host synchronization.

Quantities that change at every step reach the recording in device memory: the batch, the position of its draws, and the number of the step,
which selects learning rates and term weights from tables. A change of a quantity that is constant in the recording (the width of a blurred
prior) invalidates it, and the next step is recorded anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.objectives import Progress
from ddvi_fast.rng import Draws

WARM_UP_STEPS = 3  # that are not recorded: libraries choose algorithms, optimizers make their state

Step = Callable[[Tensor, "DeviceProgress", "rng.DeviceDraws"], dict[str, Tensor]]


class Recording(Protocol):
    """Interface of recorded work on a device."""

    def warm_up(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Run `work` without recording it."""

    def record(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Record `work` without running it; return the tensors that a replay fills."""

    def replay(self) -> None:
        """Run the recorded work."""


class CudaGraph:
    """A recording in a CUDA graph."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def warm_up(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        # Not on the default stream, from which a recording may not borrow memory or handles.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = work()
        torch.cuda.current_stream().wait_stream(stream)
        return result

    def record(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        with torch.cuda.graph(self._graph):
            return work()

    def replay(self) -> None:
        self._graph.replay()


class DeviceProgress:
    """`Progress` inside a recorded step: varying numbers come from tables on the device, indexed by a step on the device."""

    def __init__(self, num_steps: int, epochs: int, device: torch.device) -> None:
        self._num_steps, self._epochs = num_steps, epochs
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._now = Progress(0, epochs, num_steps)
        self._tables: dict[Callable, float | Tensor] = {}
        self._values: dict[Callable, Tensor] = {}  # of the current step
        self._fixed: dict[Callable, float] = {}

    def move_to(self, now: Progress) -> None:
        """Move to the position of `now`."""
        self._now = now
        self._values.clear()
        self._step.fill_(min(self._num_steps - 1, round(now.fraction * self._num_steps)))

    def varying(self, number: Callable[[Progress], float]) -> float | Tensor:
        """`number` at the current step: a scalar on the device, or on the host if it is the same at all steps."""
        if number not in self._tables:
            places = (self._epochs * step / self._num_steps for step in range(self._num_steps))
            values = [number(Progress(place, self._epochs, self._num_steps)) for place in places]
            self._tables[number] = values[0] if len(set(values)) == 1 else torch.tensor(values, device=self._step.device)
        table = self._tables[number]
        if isinstance(table, float | int):
            return table
        if number not in self._values:
            self._values[number] = table.index_select(0, self._step).squeeze(0)
        return self._values[number]

    def fixed(self, number: Callable[[Progress], float]) -> float:
        """`number` now, a constant of the recording."""
        self._fixed[number] = number(self._now)
        return self._fixed[number]

    def still_holds(self) -> bool:
        """Whether every constant of the recording is unchanged."""
        return all(number(self._now) == value for number, value in self._fixed.items())


class CapturedStep:
    """Calls a training step through a recording of it.

    Args:
        step: Function `step(x, progress, draws)`, which must not read from the device.
        device: Device of the step.
        make_recording: Function that makes an empty recording.
    """

    def __init__(self, step: Step, device: torch.device, make_recording: Callable[[], Recording] = CudaGraph) -> None:
        self._step, self._device, self._make_recording = step, device, make_recording
        self._warmed = 0
        self._x: Tensor | None = None
        self._progress: DeviceProgress | None = None
        self.forget()

    def forget(self) -> None:
        """Drop the recording, because a part of it has changed."""
        self._recording: Recording | None = None
        self._result: dict[str, Tensor] = {}

    def begin_anew(self) -> None:
        """Drop the recording and warm up again, because the step trains other parameters, whose optimizer state must exist before a recording."""
        self._warmed = 0
        self.forget()

    def __call__(self, x: Tensor, progress: Progress, draws: Draws) -> dict[str, Tensor]:
        """One step; the tensors returned are overwritten by the next."""
        self._move_to(x, progress, draws)
        if self._warmed < WARM_UP_STEPS:
            self._warmed += 1
            return self._make_recording().warm_up(self._work)
        if self._recording is not None and not self._progress.still_holds():
            self.forget()
        if self._recording is None:
            self._recording = self._make_recording()
            self._result = self._recording.record(self._work)
        self._recording.replay()
        return self._result

    def _move_to(self, x: Tensor, progress: Progress, draws: Draws) -> None:
        _checks.require(progress.num_steps is not None, "progress", "one that counts steps, to record a training step", progress)
        if self._x is None or self._x.shape != x.shape or self._x.dtype != x.dtype:
            self.forget()
            self._x = torch.empty_like(x, device=self._device)
            self._draws = rng.DeviceDraws(draws.state(self._device))
            self._progress = DeviceProgress(progress.num_steps, progress.epochs, self._device)
        self._x.copy_(x)
        self._draws.move_to(draws)
        self._progress.move_to(progress)

    def _work(self) -> dict[str, Tensor]:
        return self._step(self._x, self._progress, self._draws)
