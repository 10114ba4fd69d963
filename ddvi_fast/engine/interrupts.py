"""Signals ask a run to stop after its step; a second Ctrl-C stops it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run has stopped where it can go on, because a signal asked it to."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"stopped after step {step}; the same command goes on from there")


class StopRequest:
    """Inside it, SIGTERM and SIGINT are noted; a second SIGINT ends the process as it would without it.

    Outside of the main thread, where Python takes no signals, it notes nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        # The kernel's own way to die from here on: it works inside a library that does not come back, too.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
