"""The table `ddvi-fast reproduce sbibm`: amortized posteriors of the tasks of sbibm from a fixed number of simulations.

One posterior is fitted for each task, number of simulations and seed, and judged at the observations of the task by the metric of sbibm. A fit and an
observation that are there are not repeated.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _checks, _files
from ddvi_fast.config.names import put, split
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.inference import FittedPosterior, Model, fit_posterior, load
from ddvi_fast.paper import record_files, sbibm_table
from ddvi_fast.paper.sbibm_tasks import OBSERVATIONS, TASKS, Task, files

NAME = "sbibm"
BUDGETS = (1000, 10_000, 100_000)
DRAWS = 10_000  # draws of the posterior, as many as there are reference draws


@dataclass(frozen=True)
class Cell:
    """A posterior of the table.

    Args:
        task: Name of the task.
        budget: Number of simulations.
        seed: Seed of simulations and fit.
        folder: Folder of the posterior and its figures.
    """

    task: str
    budget: int
    seed: int
    folder: Path

    def fit(self) -> None:
        """Fit the posterior, unless it is there."""
        if (self.folder / "fit.json").is_file():
            return
        task, counter = TASKS[self.task](), []
        start = time.process_time()
        fitted = fit_posterior(Model(simulate=counted(task, counter)), support=task.support, num_simulations=self.budget, seed=self.seed)
        seconds = time.process_time() - start
        fitted.save(self.folder / "posterior", overwrite=True)
        made = environment()
        made_by = {"commit": made["commit"], "processor": made["machine"]["processor"], "torch": made["versions"]["torch"]}
        _files.write_json(self.folder / "fit.json", {"simulated": sum(counter), "seconds": seconds, "notices": fitted.notices, **made_by})

    def judge(self, observation: int) -> None:
        """Compare the posterior of an observation with its reference draws, unless that was done."""
        path = self.folder / f"observation-{observation}.json"
        if path.is_file():
            return
        task, start = TASKS[self.task](), time.process_time()
        posterior: FittedPosterior = load(self.folder / "posterior")
        draws = posterior.sample(DRAWS, x=task.observed(observation), seed=observation)
        accuracy = c2st(task.reference(observation), draws)
        _files.write_json(path, {"c2st": accuracy, "seconds": time.process_time() - start})

    def figures(self) -> dict[str, Any] | None:
        """What is known of the cell; None before its posterior is judged at an observation."""
        found = {number: self.folder / f"observation-{number}.json" for number in OBSERVATIONS}
        judged = {str(number): _files.read_json(path) for number, path in found.items() if path.is_file()}
        if not judged:
            return None
        about = {name: value for name, value in dataclasses.asdict(self).items() if name != "folder"}
        return {**about, **_files.read_json(self.folder / "fit.json"), "c2st": {number: one["c2st"] for number, one in judged.items()}}


def counted(task: Task, counter: list[int]) -> Callable[[int], tuple[Tensor, Tensor]]:
    """The simulator of a task, which adds the number of simulations of each call to `counter`."""

    def simulate(n: int) -> tuple[Tensor, Tensor]:
        counter.append(n)
        return task.simulate(n)

    return simulate


def c2st(reference: Tensor, draws: Tensor, seed: int = 1, folds: int = 5) -> float:
    """Compute the classifier two-sample test of sbibm, `sbibm.metrics.c2st(reference, draws)`.

    It has the classifier of `inference.compare.c2st` with scikit-learn's own limits of training.
    """
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    mean, deviation, width = reference.mean(0), reference.std(0), 10 * reference.shape[1]
    both = torch.cat(((reference - mean) / deviation, (draws - mean) / deviation)).numpy()
    labels = torch.cat((torch.zeros(len(reference), device="cpu"), torch.ones(len(draws), device="cpu"))).numpy()
    network = MLPClassifier((width, width), activation="relu", solver="adam", max_iter=10_000, random_state=seed)
    return float(cross_val_score(network, both, labels, cv=KFold(folds, shuffle=True, random_state=seed)).mean())


def reproduce(
    overrides: Sequence[str] = (),
    *,
    budgets: Sequence[int] = BUDGETS,
    seeds: int = 1,
    rows: Sequence[str] | None = None,
    runs: str | Path | None = None,
    output: str | Path | None = None,
    command: str = "",
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Fit and judge what is missing, then write the table of all that is there, and of cells that an earlier table in the same place has.

    Args:
        overrides: ``observations=N``, the number of observations of each task, the first ones (default 10).
        budgets: Numbers of simulations (ints, default 1,000, 10,000 and 100,000).
        seeds: Number of posteriors of each cell, with seeds 0, 1, ... (int, default 1).
        rows: Names of tasks (list of str, default all).
        runs: Folder of the posteriors (path, default `runs/reproduce`).
        output: Folder of the table (path, default: beside the posteriors).
        command: Command line to record in the table (str).
        report: Function that is called with a line of text after each observation.

    Returns:
        The written files, table.json and table.md.

    Raises:
        InputError: Bad arguments, or the package sbibm is not installed.
    """
    observations = _observations(overrides)
    names = [_checks.choice(name, TASKS, "--rows") for name in rows or TASKS]
    budgets = [_checks.integer(budget, "--budgets", 2) for budget in budgets]
    files(NAME)
    folder = Path("runs/reproduce" if runs is None else runs) / NAME
    output = folder if output is None else Path(output)

    each = itertools.product(range(_checks.integer(seeds, "--seeds", 1)), names, budgets)
    cells = [Cell(task, number, seed, folder / f"{task}-{number}-{seed}") for seed, task, number in each]
    with _files.locked(folder, "reproduce"):
        for cell in cells:
            cell.fit()
            for observation in OBSERVATIONS[:observations]:
                cell.judge(observation)
                found = cell.figures()["c2st"][str(observation)]
                report(f"{NAME} {cell.task} {cell.budget:,} seed {cell.seed} observation {observation}: C2ST {found:.3f}")
        return _write([Cell(*_named(path), path) for path in sorted(folder.glob("*-*-*")) if path.is_dir()], output, command)


def _named(path: Path) -> tuple[str, int, int]:
    """Task, number of simulations and seed of a cell's folder."""
    task, budget, seed = path.name.rsplit("-", 2)
    return task, int(budget), int(seed)


def _observations(overrides: Sequence[str]) -> int:
    """The number of observations that overrides state."""
    stated: dict[str, str] = {}
    for name, text in map(split, overrides):
        put(stated, _checks.choice(name, ("observations",), NAME), text)
    text = stated.get("observations", str(len(OBSERVATIONS)))
    _checks.require(text.isdigit() and 1 <= int(text) <= len(OBSERVATIONS), "observations", f"a number from 1 to {len(OBSERVATIONS)}", text)
    return int(text)


def _write(cells: Sequence[Cell], output: Path, command: str) -> list[Path]:
    """Write the table of all cells that are judged, and of those that it has and whose posteriors are not among them."""
    made, path = environment(), output / "table.json"
    found = [*(_files.read_json(path)["cells"] if path.is_file() else []), *(cell.figures() for cell in cells)]
    record = {
        "kind": sbibm_table.__name__,
        "command": command,
        **{name: value for name, value in made.items() if name != "command"},
        "cells": list({(one["task"], one["budget"], one["seed"]): one for one in found if one is not None}.values()),
    }
    return record_files.write(path, record, md=sbibm_table.markdown(record))
