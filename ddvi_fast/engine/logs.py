"""Log of a run: JSON lines, TensorBoard, an experiment tracker and a progress display."""

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

from ddvi_fast import _checks, _files
from ddvi_fast.engine.progress import display, numbers
from ddvi_fast.engine.trackers import Tracker

PROGRESS = ("auto", "on", "off")
RESERVED = ("step", "epoch", "phase", "seconds", "non_finite")


class RunLog:
    """Logger of one run, a context manager that closes its files and its progress display.

    Args:
        folder: Folder of the run, which gets metrics.jsonl and tensorboard/.
        total_steps: Steps of the run, for the remaining time (int), or None if unknown.
        tensorboard: Whether to write event files (bool, default True).
        tracker: Experiment tracker that gets every record and is closed at the end, or None.
        progress: ``"on"`` draws a bar on `stream`, ``"off"`` prints nothing, ``"auto"`` draws the bar on a terminal and in a notebook, and
            otherwise writes one line every `interval` seconds, and one at the end.
        resume_from: Step at which a run is resumed (int), or None for a new run. Records of later steps are dropped, and damaged lines, of
            which a line on standard error tells.
        interval: Seconds between two lines (float, default 10).
        stream: Stream of the bar or the lines (default standard error).

    Raises:
        InputError: The folder has a metrics.jsonl and `resume_from` is None, or tensorboard is not installed.

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
        _checks.choice(progress, PROGRESS, "progress")
        metrics = folder / "metrics.jsonl"
        fresh = resume_from is not None or not metrics.exists()
        _checks.require(fresh, "run folder", f"a folder without {metrics.name}", str(folder))
        writer_class = _summary_writer() if tensorboard else None
        folder.mkdir(parents=True, exist_ok=True)
        done = _drop_after(metrics, resume_from) if resume_from is not None else []
        before = done[-1].get("seconds", 0.0) if done else 0.0  # the time of a resumed run continues
        self._started = time.monotonic() - before
        self._file = open(metrics, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self._writer = writer_class(str(folder / "tensorboard"), purge_step=resume_from) if writer_class else None
        self._tracker = tracker
        self._display = display(progress, stream or sys.stderr, total_steps, resume_from or 0, interval, folder.name)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=kind is not None)

    def advance(self, step: int, *, phase: str, terms: Mapping[str, float | Tensor] | None = None) -> None:
        """Show that `step` steps are done. Without `terms` this neither reads the device nor writes a file, so call it every step."""
        self._display.update(step, phase, numbers(terms or {}))

    def log(self, step: int, *, epoch: int, phase: str, terms: Mapping[str, float | Tensor]) -> None:
        """Write one record of scalars by name (numbers, or tensors of one element) to metrics.jsonl, TensorBoard and the tracker.

        A value that is NaN or infinite is written as null, and its name is listed under ``non_finite``.
        """
        for name in terms:
            _checks.require(name not in RESERVED, "terms", f"names other than {', '.join(RESERVED)}", name)
        values = numbers(terms)
        lost = [name for name, value in values.items() if not math.isfinite(value)]
        record: dict[str, Any] = {"step": step, "epoch": epoch, "phase": phase, "seconds": round(time.monotonic() - self._started, 3)}
        record |= {name: None if name in lost else value for name, value in values.items()}
        if lost:
            record["non_finite"] = lost
        with _files.naming(Path(self._file.name)):
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{name}/{phase}", value, step)
        if self._tracker is not None:
            self._tracker.log(step, {"epoch": epoch, **{f"{name}/{phase}": value for name, value in values.items()}})
        self._display.update(step, phase, values)

    def close(self, failed: bool = False) -> None:
        """Close display, event file, tracker and metrics; a second call does nothing."""
        self._display.close()
        if self._tracker is not None:
            self._tracker.close(failed)
            self._tracker = None
        if self._writer is not None:
            self._writer.close()
        self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl, in order. An incomplete last line, which a killed run leaves, is skipped.

    Raises:
        InputError: The file is missing, or a line is not a record.
    """
    return [_record(line, f"{path}, line {number}") for number, line in _lines(Path(path))]


def _lines(path: Path) -> list[tuple[int, str]]:
    """Numbers and contents of the complete lines."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        _checks.fail(str(path), "a readable file", error.strerror)
    *lines, _unfinished = text.split("\n")
    return list(enumerate(lines, 1))


def _record(line: str, where: str) -> dict[str, Any]:
    """A line as a record: a step, seconds and an epoch, a phase, and numbers or null by name."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        _checks.fail(where, "a JSON object", str(error))
    _checks.require(isinstance(record, dict) and "step" in record, where, "a record with a step", record)
    _checks.integer(record["step"], f"{where}, step", at_least=0)
    for name, value in record.items():
        if name == "phase":
            _checks.instance(value, str, f"{where}, phase", "a name")
        elif name == "non_finite":
            _checks.instance(value, list, f"{where}, {name}", "a list of names")
        elif value is not None or name in RESERVED:
            _checks.number(value, f"{where}, {name}")
    return record


def _drop_after(path: Path, step: int) -> list[dict[str, Any]]:
    """Keep the records up to `step`, and return them; tell of the lines that are no records."""
    if not path.exists():
        return []
    kept, damaged = [], []
    for number, line in _lines(path):
        try:
            kept.append(_record(line, path.name))
        except _checks.InputError:
            damaged.append(number)
    if damaged:
        shown = ", ".join(map(str, damaged[:8])) + (", ..." if len(damaged) > 8 else "")
        print(f"ddvi-fast: {path}: {len(damaged)} damaged lines dropped ({shown})", file=sys.stderr, flush=True)
    kept = [record for record in kept if record["step"] <= step]
    _files.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
    return kept


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        _checks.fail("tensorboard=true", "the package tensorboard", "none installed", "pip install tensorboard, or tensorboard=false")
    return SummaryWriter
