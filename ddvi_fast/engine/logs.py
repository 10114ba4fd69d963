"""What a run says while it goes: JSON lines for programs, TensorBoard and trackers for browsers, a progress bar for people."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.engine.trackers import Tracker

RESERVED = ("step", "epoch", "phase", "seconds", "non_finite")
_SHOWN_TERMS = 4


class RunLog:
    """Logger of one run; a context manager that closes its files and its bar whatever happens inside.

    Args:
        folder: the run's folder; metrics.jsonl and tensorboard/ are written into it.
        total_steps: length of the run, for the bar and the remaining time; None if it is not known.
        tensorboard: write event files too.
        tracker: hand every record on to it too, and close it at the end.
        progress: ``"on"`` draws a bar on `stream`, ``"off"`` says nothing, ``"auto"`` draws the bar on a terminal and
            otherwise writes one plain line every `interval` seconds, and one at the end.
        resume_from: steps done by the run that is continued. Records of later steps are dropped: they will come again.
        stream: where the bar or the lines go, standard error by default.

    Raises:
        InputError: the folder has a metrics.jsonl and `resume_from` is None; tensorboard asked for but not installed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with RunLog(folder, total_steps=2, tensorboard=False, progress="off") as log:
        ...     for step in (1, 2):
        ...         log.advance(step, phase="train")
        ...         log.log(step, epoch=0, phase="train", terms={"loss": 1 / step})
        >>> [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]
        [1.0, 0.5]
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        total_steps: int | None = None,
        tensorboard: bool = True,
        tracker: Tracker | None = None,
        progress: str = "auto",
        resume_from: int | None = None,
        interval: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        folder = Path(folder)
        _checks.choice(progress, ("auto", "on", "off"), "progress")
        metrics = folder / "metrics.jsonl"
        fresh = resume_from is not None or not metrics.exists()
        _checks.require(fresh, "run folder", f"a folder without {metrics.name}", str(folder), "resume_from continues it")
        writer_class = _summary_writer() if tensorboard else None
        folder.mkdir(parents=True, exist_ok=True)
        done = _drop_after(metrics, resume_from) if resume_from is not None else []
        before = done[-1]["seconds"] if done else 0.0  # the clock of a resumed run goes on where it stood
        self._started = time.monotonic() - before
        self._file = open(metrics, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self._writer = writer_class(str(folder / "tensorboard"), purge_step=resume_from) if writer_class else None
        self._tracker = tracker
        self._display = _display(progress, stream or sys.stderr, total_steps, resume_from or 0, interval)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=kind is not None)

    def advance(self, step: int, *, phase: str, terms: Mapping[str, float | Tensor] | None = None) -> None:
        """Say that `step` steps are done. Without `terms` it neither reads the device nor writes a file: call it every step."""
        self._display.update(step, phase, _numbers(terms or {}))

    def log(self, step: int, *, epoch: int, phase: str, terms: Mapping[str, float | Tensor]) -> None:
        """Write one record of named scalars (numbers or tensors of one element), to every place that is open.

        A value that is NaN or infinite is written as null, and its name listed under ``non_finite``.
        """
        for name in terms:
            _checks.require(name not in RESERVED, "terms", f"names other than {', '.join(RESERVED)}", name)
        values = _numbers(terms)
        lost = [name for name, value in values.items() if not math.isfinite(value)]
        record: dict[str, Any] = {"step": step, "epoch": epoch, "phase": phase, "seconds": round(time.monotonic() - self._started, 3)}
        record |= {name: None if name in lost else value for name, value in values.items()}
        if lost:
            record["non_finite"] = lost
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{name}/{phase}", value, step)
        if self._tracker is not None:
            self._tracker.log(step, {"epoch": epoch, **{f"{name}/{phase}": value for name, value in values.items()}})
        self._display.update(step, phase, values)

    def close(self, failed: bool = False) -> None:
        """Close bar, event file, tracker and metrics; a second call does nothing."""
        self._display.close()
        if self._tracker is not None:
            self._tracker.close(failed)
            self._tracker = None
        if self._writer is not None:
            self._writer.close()
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl, in order. A last line without its end, left by a run that was killed, is skipped.

    Raises:
        InputError: the file is missing, or a whole line is no record.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        _checks.fail(str(path), "a readable file", error.strerror)
    *lines, _unfinished = text.split("\n")
    return [_record(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        _checks.fail(where, "a JSON object", str(error))
    _checks.require(isinstance(record, dict) and "step" in record, where, "a record with a step", record)
    return record


def _drop_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Keep the records up to `step`, and return them."""
    if not path.exists():
        return []
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    fresh = path.with_name(f".{path.name}.partial")
    fresh.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    fresh.replace(path)
    return kept


def _numbers(terms: Mapping[str, float | Tensor]) -> dict[str, float]:
    return {name: float(value) for name, value in terms.items()}


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _checks.fail("tensorboard=true", "the package tensorboard", "none installed", "pip install tensorboard, or tensorboard=false")
    return SummaryWriter


class _Silent:
    def update(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        """Nothing is shown."""

    def close(self) -> None:
        """Nothing is open."""


class _Lines:
    """One plain line every `interval` seconds, for logs of batch systems."""

    def __init__(self, stream: TextIO, total: int | None, done: int, interval: float) -> None:
        self._stream, self._total, self._interval = stream, total, interval
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
        line = f"{self._phase}  step {self._step}{total}  {rate:.4g} steps/s{left}  {_terms_text(self._values)}"
        print(line.rstrip(), file=self._stream, flush=True)


class _Bar:
    """A bar with phase, count, rate, remaining time and the last terms."""

    def __init__(self, stream: TextIO, total: int | None, done: int, force: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} steps/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[terms]}", style="dim"),
        )
        console = Console(file=stream, force_terminal=True if force else None)
        self._bar = Progress(*columns, console=console, refresh_per_second=5)
        self._task = self._bar.add_task("", total=total, completed=done, rate="-", terms="")
        self._first, self._started = done, time.monotonic()
        self._bar.start()

    def update(self, step: int, phase: str, values: Mapping[str, float]) -> None:
        rate = (step - self._first) / max(time.monotonic() - self._started, 1e-9)
        fields = {"rate": f"{rate:.4g}"} | ({"terms": _terms_text(values)} if values else {})
        self._bar.update(self._task, completed=step, description=phase, **fields)

    def close(self) -> None:
        self._bar.stop()


def _display(progress: str, stream: TextIO, total: int | None, done: int, interval: float) -> _Silent | _Lines | _Bar:
    if progress == "off":
        return _Silent()
    if progress == "on" or stream.isatty():
        return _Bar(stream, total, done, force=progress == "on")
    return _Lines(stream, total, done, interval)


def _terms_text(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:_SHOWN_TERMS])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
