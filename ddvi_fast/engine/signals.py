"""Signals: the first asks a run to stop after its step, a second Ctrl-C stops it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A signal stopped the run, which can be resumed."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"stopped after step {step}; the same command resumes the run")


class StopRequest:
    """Context that records SIGTERM and SIGINT in `asked`; a second SIGINT ends the process as usual.

    Outside of the main thread, where Python receives no signals, it says what the context of the main thread has recorded.
    """

    _of_main: StopRequest | None = None

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[signal.Signals, object] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal has asked the run to stop."""
        if threading.current_thread() is threading.main_thread():
            return self._asked
        return StopRequest._of_main is not None and StopRequest._of_main._asked

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._record) for number in SIGNALS}
            self._outer, StopRequest._of_main = StopRequest._of_main, self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            StopRequest._of_main = self._outer

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        # The system's default action from here on: it also works inside a library call that does not return.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
