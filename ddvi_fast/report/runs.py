"""Run folders as a report needs them, and the differences between runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddvi_fast import _checks
from ddvi_fast.engine.callbacks import BOUND
from ddvi_fast.engine.logs import read_metrics
from ddvi_fast.engine.run_folder import EVALUATION, RunFolder
from ddvi_fast.engine.run_settings import OUTPUT

SEED = "seed"


@dataclass(frozen=True)
class Run:
    """One run: folder, resolved settings by dotted name, environment, records of training, metrics (`figures`; empty if not evaluated)."""

    folder: RunFolder
    name: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    records: list[dict[str, Any]]
    figures: dict[str, float]

    @property
    def kind(self) -> tuple[tuple[str, str], ...]:
        """Settings that the run shares with those that differ from it only in the seed."""
        return tuple((name, json.dumps(value)) for name, value in self.settings.items() if name != SEED)


def read_run(path: str | Path) -> Run:
    """Read the run at `path`.

    Raises:
        InputError: There is no run, or it has neither been trained for an epoch nor evaluated.
    """
    folder = RunFolder.open(path)
    records = read_metrics(folder.metrics) if folder.metrics.exists() else []
    figures = folder.evaluation() if (folder.path / EVALUATION).exists() else {}
    _checks.require(bool(records or figures), f"run folder {path}", "a run with at least one epoch", "one without")
    return Run(folder, folder.path.resolve().name, flat(folder.config), folder.environment(), records, figures)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, without those of the place and the output of a run.

    Example:
        >>> flat({"seed": 1, "prior": {"name": "square"}, "run_dir": "runs/a"})
        {'seed': 1, 'prior.name': 'square'}
    """
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        elif prefix or name not in (*OUTPUT, "max_minutes", "max_passes"):
            found[prefix + name] = value
    return found


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings that differ between runs, with the value of each run; None where it has none."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: row for name, row in values.items() if any(value != row[0] for value in row)}


def groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Groups of runs that differ only in the seed, in the order given."""
    found: dict[tuple, list[Run]] = {}
    for run in runs:
        found.setdefault(run.kind, []).append(run)
    return list(found.values())


def curves(runs: Sequence[Run]) -> dict[str, list[tuple[list[float], list[float]]]]:
    """Each named term over steps, one curve per run; the first is ``minus the bound``, the sum of its terms."""
    names = dict.fromkeys(name for run in runs for record in run.records for name in record if name not in _RESERVED)
    terms = {name: [_curve(run, name) for run in runs] for name in names}
    summed = [([r["step"] for r in rows], [_bound(r) for r in rows]) for rows in ([r for r in run.records if _bounded(r)] for run in runs)]
    return ({"minus the bound": summed} if any(steps for steps, _ in summed) else {}) | terms


_RESERVED = ("step", "epoch", "phase", "seconds", "non_finite")


def _curve(run: Run, name: str) -> tuple[list[float], list[float]]:
    rows = [(record["step"], record[name]) for record in run.records if record.get(name) is not None]
    return [step for step, _ in rows], [value for _, value in rows]


def _bounded(record: Mapping[str, Any]) -> bool:
    return any(record.get(name) is not None for name in BOUND)


def _bound(record: Mapping[str, Any]) -> float:
    return sum(record[name] for name in BOUND if record.get(name) is not None)
