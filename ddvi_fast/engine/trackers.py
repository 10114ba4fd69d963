"""Experiment trackers: Weights & Biases or MLflow, behind one interface.

Each reads its server, account and project from its own environment variables (``WANDB_MODE``, ``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI``,
``MLFLOW_EXPERIMENT_NAME``, ...). A run that is resumed or evaluated again continues there too: its folder holds its name at the tracker.
"""

from __future__ import annotations

import math
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from ddvi_fast import _checks, _files

TRACKERS = ("wandb", "mlflow")
FILE = "tracker.json"  # in the run's folder: which tracker, and the run's name there
_PROJECT = "ddvi_fast"
_PARAMETERS = 100  # of one call of MLflow's


class Tracker(Protocol):
    """Interface of an experiment tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log metrics of a step; steps increase."""

    def summarise(self, metrics: Mapping[str, float]) -> None:
        """Log metrics of the whole run; a second call replaces them."""

    def close(self, failed: bool = False) -> None:
        """End logging, for now."""


def open_tracker(name: str | None, folder: str | Path, settings: Mapping[str, Any]) -> Tracker | None:
    """Open the tracker of a run; a run that it knows already is continued.

    Args:
        name: ``"wandb"``, ``"mlflow"`` or None.
        folder: Folder of the run, whose name is shown.
        settings: Settings of the run, nested.

    Returns:
        The tracker, or None without a name.

    Raises:
        InputError: An unknown name, a library that is not installed, or a server that cannot be reached.
    """
    if name is None:
        return None
    folder, make = Path(folder), {"wandb": _WeightsAndBiases, "mlflow": _MLflow}[_checks.choice(name, TRACKERS, "tracker")]
    try:
        return ErrorTolerantTracker(make(folder, settings, _known(folder, name)), name)
    except ImportError as error:
        _checks.fail("tracker", f"{name} to be installed", str(error), f"pip install {name}, or tracker=null")
    except Exception as error:  # whatever a library or its server finds wrong
        reason = " ".join(str(error).split())
        _checks.fail("tracker", f"{name} to accept a run", f"{type(error).__name__}, {reason}", "tracker=null goes without")


class ErrorTolerantTracker:
    """A tracker whose errors do not end the run: the first one is printed, and the run continues without the tracker."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker: Tracker | None = tracker
        self._name = name

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log values at a step, unless an earlier call failed."""
        self._call("log", step, values)

    def summarise(self, metrics: Mapping[str, float]) -> None:
        """Log final metrics, unless an earlier call failed."""
        self._call("summarise", metrics)

    def close(self, failed: bool = False) -> None:
        """Close the tracker; a second call does nothing."""
        self._call("close", failed)
        self._tracker = None

    def _call(self, method: str, *arguments: Any) -> None:
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, method)(*arguments)
        except Exception as error:  # of a library, a network, a server
            self._tracker = None
            reason = " ".join(str(error).split())
            print(f"ddvi-fast: {self._name} logging failed ({type(error).__name__}: {reason}); continuing without it", file=sys.stderr, flush=True)


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of nested settings, as the command line has them.

    Example:
        >>> dict(flattened({"seed": 0, "prior": {"name": "square", "options": {}}}))
        {'seed': 0, 'prior.name': 'square'}
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _known(folder: Path, name: str) -> str | None:
    """The run's name at the tracker, or None."""
    try:
        known = _files.read_json(folder / FILE).get(name)
    except _checks.InputError:
        return None
    return known if isinstance(known, str) else None


def _remember(folder: Path, name: str, identity: str) -> None:
    _files.write_json(folder / FILE, {name: identity})


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


class _WeightsAndBiases:
    def __init__(self, folder: Path, settings: Mapping[str, Any], known: str | None) -> None:
        import wandb

        identity = known or uuid.uuid4().hex[:12]
        self._run = wandb.init(
            project=None if "WANDB_PROJECT" in os.environ else _PROJECT, name=folder.name, id=identity, resume="allow",
            config=dict(flattened(settings)), reinit="create_new", settings=wandb.Settings(console="off"),
        )  # fmt: skip
        _remember(folder, "wandb", identity)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # After a resume from an earlier checkpoint the server ignores the steps that it has; they are the same.
        self._run.log(_finite(values), step=step)

    def summarise(self, metrics: Mapping[str, float]) -> None:
        self._run.summary.update(_finite(metrics))

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))


class _MLflow:
    def __init__(self, folder: Path, settings: Mapping[str, Any], known: str | None) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        if known is not None:
            self._run, self._last = known, self._last_step(known)
            self._client.update_run(known, status="RUNNING")
            return
        self._run, self._last = self._client.create_run(self._experiment(), run_name=folder.name).info.run_id, -1
        _remember(folder, "mlflow", self._run)
        parameters = iter(flattened(settings))
        while some := list(islice(parameters, _PARAMETERS)):
            self._write(parameters=some)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step > self._last:  # after a resume from an earlier checkpoint the server has the others already
            self._write(_finite(values), step)

    def summarise(self, metrics: Mapping[str, float]) -> None:
        self._write(_finite(metrics), max(self._last, 0))

    def close(self, failed: bool = False) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found is not None else self._client.create_experiment(name)

    def _last_step(self, run: str) -> int:
        names = self._client.get_run(run).data.metrics
        return max((metric.step for name in names for metric in self._client.get_metric_history(run, name)), default=-1)

    def _write(self, values: Mapping[str, float] | None = None, step: int = 0, parameters: Sequence[tuple[str, Any]] = ()) -> None:
        from mlflow.entities import Metric, Param

        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in (values or {}).items()]
        self._client.log_batch(self._run, metrics=metrics, params=[Param(name, str(value)) for name, value in parameters])
