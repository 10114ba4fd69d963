"""Progress displays: a bar on a terminal, a bar in a notebook, or plain lines at intervals."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Mapping
from html import escape
from importlib.util import find_spec
from typing import Protocol, TextIO

from torch import Tensor

_SHOWN_TERMS = 4
_REDRAWN = 0.25  # seconds between two updates of a notebook's bar


class Display(Protocol):
    """Interface of a progress display."""

    def update(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        """Show that `step` steps are done; without `values` the last ones remain."""

    def close(self) -> None:
        """End the display; a second call does nothing."""


def display(progress: str, stream: TextIO, total: int | None, done: int = 0, interval: float = 10.0, label: str = "") -> Display:
    """Make a progress display.

    Args:
        progress: ``"off"`` for none, ``"on"`` for a bar, ``"auto"`` for a bar on a terminal or in a notebook and lines elsewhere. One of
            several processes that share a terminal writes lines, too, and so does ``"auto"`` if rich is not installed.
        stream: Stream of a terminal's bar or of the lines.
        total: Steps of the whole run (int), or None if unknown.
        done: Steps that are done already (int, default 0).
        interval: Seconds between two lines (float, default 10).
        label: Label of the lines of one of several processes.
    """
    if progress == "off":
        return _Silent()
    if in_notebook():
        return _Notebook(total, done)
    beside_others = multiprocessing.parent_process() is not None
    if progress == "on" or (stream.isatty() and not beside_others and find_spec("rich") is not None):
        return _Bar(stream, total, done, force=progress == "on")
    return _Lines(stream, total, done, interval, label if beside_others else "")


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


def numbers(terms: Mapping[str, float | Tensor]) -> dict[str, float]:
    """Terms as Python numbers."""
    return {name: float(value) for name, value in terms.items()}


class _Silent:
    def update(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Close nothing."""


class _Counter:
    """Steps, phase and terms that were shown last, and the rate since the start."""

    def __init__(self, total: int | None, done: int) -> None:
        self._total, self._first, self._started = total, done, time.monotonic()
        self._step, self._phase, self._values = done, "", {}

    def _count(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        self._step, self._phase, self._values = step, phase, dict(values) or self._values

    def _rate(self) -> float:
        return (self._step - self._first) / max(time.monotonic() - self._started, 1e-9)

    def _left(self) -> str:
        """The remaining time in words; the empty string where it is unknown."""
        rate = self._rate()
        return "" if self._total is None or rate == 0 else f"{_clock((self._total - self._step) / rate)} left"


class _Lines(_Counter):
    """One plain line every `interval` seconds, for logs of batch systems."""

    def __init__(self, stream: TextIO, total: int | None, done: int, interval: float, label: str) -> None:
        super().__init__(total, done)
        self._stream, self._interval, self._label = stream, interval, f"{label}  " if label else ""
        self._last_time, self._last_step = self._started, done

    def update(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        self._count(step, phase, values)
        if time.monotonic() - self._last_time >= self._interval:
            self._print()

    def close(self) -> None:
        if self._step != self._last_step:
            self._print()

    def _print(self) -> None:
        self._last_time, self._last_step = time.monotonic(), self._step
        count = f"{self._step}" if self._total is None else f"{self._step}/{self._total}"
        parts = (f"{self._label}{self._phase}", f"step {count}", f"{self._rate():.4g} steps/s", self._left(), _terms_text(self._values))
        print("  ".join(part for part in parts if part), file=self._stream, flush=True)


class _Bar(_Counter):
    """A bar with phase, steps, rate, remaining time and the last terms."""

    def __init__(self, stream: TextIO, total: int | None, done: int, force: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        columns = (
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} steps/s"),
            TimeRemainingColumn(),
            # On a narrow terminal this column shrinks, not the bar.
            TextColumn("{task.fields[terms]}", style="dim", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        )
        console = Console(file=stream, force_terminal=True if force else None)
        self._bar = Progress(*columns, console=console, refresh_per_second=5, expand=True)
        self._task = self._bar.add_task("", total=total, completed=done, rate="-", terms="")
        super().__init__(total, done)
        self._bar.start()

    def update(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        self._count(step, phase, values)
        fields = {"rate": f"{self._rate():.4g}"} | ({"terms": _terms_text(values)} if values else {})
        self._bar.update(self._task, completed=step, description=phase, **fields)

    def close(self) -> None:
        self._bar.stop()


class _Notebook(_Counter):
    """A bar that is updated in place, without widgets."""

    def __init__(self, total: int | None, done: int) -> None:
        from IPython.display import HTML
        from IPython.display import display as show

        super().__init__(total, done)
        self._html, self._drawn = HTML, 0.0
        self._handle = show(HTML(self._text()), display_id=True)

    def update(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        self._count(step, phase, values)
        if time.monotonic() - self._drawn >= _REDRAWN:
            self.close()

    def close(self) -> None:
        self._drawn = time.monotonic()
        self._handle.update(self._html(self._text()))

    def _text(self) -> str:
        known = self._total is not None
        bar = f'<progress value="{self._step}" max="{self._total}"></progress>' if known else ""
        count = f"{self._step}/{self._total}" if known else f"{self._step} steps"
        words = " ".join(part for part in (escape(self._phase), bar, count, f"{self._rate():.4g} steps/s", self._left()) if part)
        return f"<div>{words} <small>{escape(_terms_text(self._values))}</small></div>"


def _terms_text(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:_SHOWN_TERMS])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
