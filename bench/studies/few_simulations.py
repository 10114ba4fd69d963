"""Fits to a fixed number of simulations of four small problems with exact reference draws: C2ST of the defaults, and of what they replace.

    python -m bench.studies.few_simulations run --numbers 1000 --variants defaults     # every cell that is not there: minutes of one core each
    python -m bench.studies.few_simulations table                                      # writes bench/results/few_simulations.json and .md

The defaults of `fit_posterior(num_simulations=...)` were chosen on these problems. A cell is a file in `--cells`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import records
from bench.studies.few_simulations_tasks import TASKS
from ddvi_fast import _markdown
from ddvi_fast.inference import Architecture, Model, fit_posterior
from ddvi_fast.inference.compare import c2st
from ddvi_fast.inference.model import seeded
from ddvi_fast.rng import Draws

VARIANTS = {"defaults": Architecture(), "one chain": Architecture(ensemble=1), "twenty steps": Architecture(num_steps=20, end=3.0)}
OBSERVATIONS, DRAWS = 2, 1000


def cell(name: str, number: int, variant: str, seed: int) -> dict[str, Any]:
    """C2ST at some observations, and the CPU seconds and calls of the simulator, of one fit."""
    torch.set_num_threads(1)
    task, calls = TASKS[name](), []

    def simulate(n: int) -> tuple[Tensor, Tensor]:
        calls.append(n)
        return task.simulate(n)

    start = time.process_time()
    fitted = fit_posterior(Model(simulate=simulate), support=task.support, num_simulations=number, architecture=VARIANTS[variant], seed=seed)
    seconds = time.process_time() - start
    with seeded(Draws(123), torch.device("cpu")):
        _, data = task.simulate(OBSERVATIONS)
        references = [task.reference(x, DRAWS) for x in data]
    found = [c2st(fitted.sample(len(reference), x=x), reference) for x, reference in zip(data, references, strict=True)]
    return {"task": name, "number": number, "variant": variant, "seed": seed, "c2st": found, "simulated": sum(calls), "seconds": seconds}


def markdown(record: dict[str, Any]) -> str:
    """The table of all cells."""
    order = [list(TASKS), list(VARIANTS)]
    cells = sorted(record["cells"], key=lambda found: (order[0].index(found["task"]), found["number"], order[1].index(found["variant"])))
    rows = [
        [found["task"], f"{found['number']:,}", f"{found['simulated']:,}", found["variant"], f"{statistics.fmean(found['c2st']):.3f}",
         " ".join(f"{value:.3f}" for value in found["c2st"]), f"{found['seconds']:.0f}"]
        for found in cells
    ]  # fmt: skip
    made = sorted({(found["commit"] or "none", found["processor"]) for found in cells})
    about = [
        f"C2ST of {DRAWS:,} draws at {OBSERVATIONS} observations each; 0.5 is the best. Simulated: what the simulator counted.",
        *(f"Commit {commit[:10]}, {processor}, one thread." for commit, processor in made),
    ]
    headings = ("problem", "simulations", "simulated", "variant", "C2ST", "by observation", "CPU seconds")
    return "\n".join(["# Fits to few simulations", "", *about, "", _markdown.table(headings, rows), ""])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=Path("runs/few_simulations"), help="folder of the cells")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="compute the cells that are not there")
    run.add_argument("--tasks", nargs="+", default=tuple(TASKS), choices=TASKS)
    run.add_argument("--numbers", nargs="+", type=int, default=(1000, 10_000))
    run.add_argument("--variants", nargs="+", default=tuple(VARIANTS), choices=VARIANTS)
    run.add_argument("--seed", type=int, default=0)
    commands.add_parser("table", help="write the results and the table")
    options = parser.parse_args(arguments)
    if options.command == "run":
        for number, variant, name in ((n, v, t) for n in options.numbers for v in options.variants for t in options.tasks):
            _run(
                options.cells / f"{name.replace(' ', '_')}-{number}-{variant.replace(' ', '_')}-{options.seed}.json",
                name,
                number,
                variant,
                options.seed,
            )
        return 0
    cells = [records.read(path) for path in sorted(options.cells.glob("*.json"))]
    records.write(records.RESULTS / "few_simulations.json", {"kind": "bench.studies.few_simulations", "cells": cells})
    return 0


def _run(path: Path, name: str, number: int, variant: str, seed: int) -> None:
    if found := records.keep_cell(path, lambda: cell(name, number, variant, seed)):
        print(path.stem, *(f"{value:.3f}" for value in found["c2st"]), f"{found['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
