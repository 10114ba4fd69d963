"""Progress displays: a bar on a terminal, a bar in a notebook, or plain lines at intervals."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Mapping
from html import escape
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
            several processes that share a terminal writes lines, too.
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
    if progress == "on" or (stream.isatty() and not beside_others):
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


class _Lines:
    """One plain line every `interval` seconds, for logs of batch systems."""

    def __init__(self, stream: TextIO, total: int | None, done: int, interval: float, label: str) -> None:
        self._stream, self._total, self._interval, self._label = stream, total, interval, f"{label}  " if label else ""
        self._first, self._started = done, time.monotonic()
        self._last_time, self._last_step = self._started, done
        self._step, self._phase, self._values = done, "", {}

    def update(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        self._step, self._phase = step, phase
        self._values = dict(values) or self._values
        if time.monotonic() - self._last_time >= self._interval:
            self._print()

    def close(self) -> None:
        if self._step != self._last_step:
            self._print()

    def _print(self) -> None:
        now = time.monotonic()
        rate = (self._step - self._first) / max(now - self._started, 1e-9)
        self._last_time, self._last_step = now, self._step
        total = "" if self._total is None else f"/{self._total}"
        left = "" if self._total is None or rate == 0 else f"  {_clock((self._total - self._step) / rate)} left"
        line = f"{self._label}{self._phase}  step {self._step}{total}  {rate:.4g} steps/s{left}  {_terms_text(self._values)}"
        print(line.rstrip(), file=self._stream, flush=True)


class _Bar:
    """A bar with phase, steps, rate, remaining time and the last terms."""

    def __init__(self, stream: TextIO, total: int | None, done: int, force: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} steps/s"),
            TimeRemainingColumn(),
            # On a narrow terminal this column shrinks, not the bar.
            TextColumn("{task.fields[terms]}", style="dim", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        )
        console = Console(file=stream, force_terminal=True if force else None)
        self._bar = Progress(*columns, console=console, refresh_per_second=5, expand=True)
        self._task = self._bar.add_task("", total=total, completed=done, rate="-", terms="")
        self._first, self._started = done, time.monotonic()
        self._bar.start()

    def update(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        rate = (step - self._first) / max(time.monotonic() - self._started, 1e-9)
        fields = {"rate": f"{rate:.4g}"} | ({"terms": _terms_text(values)} if values else {})
        self._bar.update(self._task, completed=step, description=phase, **fields)

    def close(self) -> None:
        self._bar.stop()


class _Notebook:
    """A bar that is updated in place, without widgets."""

    def __init__(self, total: int | None, done: int) -> None:
        from IPython.display import HTML
        from IPython.display import display as show

        self._html, self._total, self._first, self._started = HTML, total, done, time.monotonic()
        self._step, self._phase, self._values, self._drawn = done, "", {}, 0.0
        self._handle = show(HTML(self._text()), display_id=True)

    def update(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        self._step, self._phase, self._values = step, phase, dict(values) or self._values
        if time.monotonic() - self._drawn >= _REDRAWN:
            self._draw()

    def close(self) -> None:
        self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._handle.update(self._html(self._text()))

    def _text(self) -> str:
        rate = (self._step - self._first) / max(time.monotonic() - self._started, 1e-9)
        known = self._total is not None
        left = f" {_clock((self._total - self._step) / rate)} left" if known and rate > 0 else ""
        bar = f'<progress value="{self._step}" max="{self._total}"></progress> ' if known else ""
        count = f"{self._step}/{self._total}" if known else f"{self._step} steps"
        return f"<div>{escape(self._phase)} {bar}{count} {rate:.4g} steps/s{left} <small>{escape(_terms_text(self._values))}</small></div>"


def _terms_text(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:_SHOWN_TERMS])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
