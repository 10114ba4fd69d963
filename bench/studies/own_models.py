"""Posteriors of the four example models compared with reference posteriors: C2ST, MMD, moments, calibration and seconds.

    python -m bench.studies.own_models run two_moons diffusion --seed 0     # one cell: minutes of one core
    python -m bench.studies.own_models table                                # writes the table of all cells

Each cell is a file in `--cells`; `table` collects them in bench/results/own_models.json and .md. Reference posteriors are read from `--data`;
`python -m examples.references` makes that of the logistic regression. `npse` needs sbi.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import records
from bench.studies import own_models_npse
from ddvi_fast import _markdown
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.inference import Architecture, FittedPosterior, Training
from ddvi_fast.inference.compare import c2st, mmd, moment_errors
from ddvi_fast.inference.diagnostics import LEVELS, Diagnostics
from examples import eight_schools, gaussian_mixture, logistic_regression, references, two_moons

EXAMPLES = ("two_moons", "gaussian_mixture", "eight_schools", "logistic_regression")
METHODS = {"diffusion": "diffusion", "flow": "flow (splines)", "gaussian": "mean-field Gaussian", "npse": "NPSE (sbi)"}
SIMULATORS = {"two_moons": two_moons, "gaussian_mixture": gaussian_mixture}
SINGLE = {"eight_schools": eight_schools, "logistic_regression": logistic_regression}
DRAWS, TRUTHS, RANKED = 2000, 500, 199  # draws compared, truths and draws for calibration
# A step of the flow is expensive: 36,000 steps of the chain take 20 to 40% more seconds than 8,000 of the flow. Long chains do not slow training
# down, because each row takes part in one step.
TRAINING = {"diffusion": {"steps": 36000, "lr": 2e-3}, "flow": {"steps": 8000}, "gaussian": {"steps": 8000}}
# The noise of a step has one width for all states, so that steps must be small while a state may still end in a narrow or in a wide mode. The
# first step's width is a fifth of that of the narrowest mode, in the coordinates of the chain.
SIZES = {"width": 128, "hidden": (128, 128), "end": 8.0}
CHAINS = {"two_moons": {"num_steps": 240, "start": 0.005}, "gaussian_mixture": {"num_steps": 400, "start": 0.02}}
SINGLE_TRAINING = Training(steps=2000, batch_size=256)  # the bound needs whole chains at every step, so that chains are smaller


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=Path, default=Path("runs/own_models"), help="folder of the cells")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the reference posteriors")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="compute a cell, unless it is there")
    run.add_argument("example", choices=EXAMPLES)
    run.add_argument("method", choices=METHODS)
    run.add_argument("--seed", type=int, default=0)
    commands.add_parser("table", help="write the results and the table")
    options = parser.parse_args(arguments)
    if options.command == "run":
        path = options.cells / f"{options.example}-{options.method}-{options.seed}.json"
        if not path.exists():
            found = cell(options.example, options.method, options.seed, options.data)
            path.parent.mkdir(parents=True, exist_ok=True)
            made = environment()
            head = {"commit": made["commit"], "processor": made["machine"]["processor"], "torch": made["versions"]["torch"]}
            path.write_text(json.dumps({"example": options.example, "method": options.method, "seed": options.seed, **found, **head}))
        return 0
    cells = [records.read(path) for path in sorted(options.cells.glob("*.json"))]
    records.write(records.RESULTS / "own_models.json", {"kind": "bench.studies.own_models", "cells": cells})
    return 0


def cell(example: str, method: str, seed: int, data: Path) -> dict[str, Any]:
    """All metrics of one method on one example."""
    torch.set_num_threads(1)
    start = time.process_time()
    if method == "npse":
        posterior = own_models_npse.fit(SIMULATORS[example], seed)
    elif example in SIMULATORS:
        training = Training(batch_size=512, **TRAINING[method])
        posterior = SIMULATORS[example].fit(training=training, architecture=_architecture(method, example), seed=seed)
    else:
        posterior = SINGLE[example].fit(training=SINGLE_TRAINING, architecture=Architecture(family=method), seed=seed)
    seconds = time.process_time() - start
    compare = _simulator if example in SIMULATORS else _single
    return {**compare(example, posterior, data), "seconds": seconds}


def _architecture(method: str, example: str) -> Architecture:
    """The same sizes for every family, as far as it has them."""
    sizes = SIZES | CHAINS[example]
    names = {"diffusion": tuple(sizes), "flow": ("width", "hidden"), "gaussian": ("hidden",)}[method]
    return Architecture(family=method, **{name: sizes[name] for name in names})


def _simulator(example: str, posterior: Any, data: Path) -> dict[str, Any]:
    """Metrics over all observations with a reference posterior, and calibration over simulations."""
    pairs, weighted = [], []
    for number in range(1, references.OBSERVATIONS[example] + 1):
        x = references.observation(data, example, number)
        pairs.append((posterior.sample(DRAWS, x), references.simulator_draws(data, example, number)[:DRAWS]))
        if isinstance(posterior, FittedPosterior):
            weighted.append(posterior.importance_sample(x=x))
    return {**_distances(pairs), **_weights(weighted), **_calibration(posterior.diagnostics(TRUTHS, RANKED))}


def _single(example: str, posterior: FittedPosterior, data: Path) -> dict[str, Any]:
    """Metrics and calibration for the one data set."""
    if example == "eight_schools":
        reference = references.eight_schools_draws(data)
        names, some = _schools, {name: _spread(value, TRUTHS) for name, value in reference.items()}
    else:
        reference = references.logistic_regression_draws(records.RESULTS.parent / "references")
        names, some = (lambda z: z), _spread(reference, TRUTHS)
    pairs = [(names(posterior.sample(DRAWS)), _spread(names(reference), DRAWS))]
    calibration = _calibration(posterior.diagnostics(num_samples=RANKED, reference=some))
    return {**_distances(pairs), **_weights([posterior.importance_sample()]), **calibration}


def _spread(draws: Tensor, count: int) -> Tensor:
    """`count` draws of a Markov chain [N, ...] at equal distances, because neighbours are not independent."""
    return draws[:: len(draws) // count][:count]


def _schools(z: dict[str, Tensor]) -> Tensor:
    """Effects, mean and spread [K, 10], in the coordinates of the reference."""
    return torch.cat((eight_schools.EightSchools.effects(z), z["mu"].unsqueeze(1), z["tau"].unsqueeze(1)), 1)


def _distances(pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Means over observations, and the C2ST of each."""
    tests, moments = [c2st(*pair) for pair in pairs], [moment_errors(*pair) for pair in pairs]
    return {
        "c2st": statistics.mean(tests),
        "c2st_each": tests,
        "mmd": statistics.mean(mmd(*pair) for pair in pairs),
        "mean_error": statistics.mean(mean for mean, _ in moments),
        "deviation_error": statistics.mean(deviation for _, deviation in moments),
    }


def _weights(weighted: list[Any]) -> dict[str, Any]:
    if not weighted:
        return {}
    shares = [sample.effective_sample_size / len(sample.log_ratios) for sample in weighted]
    return {"effective": statistics.mean(shares), "pareto_k": statistics.median(sample.pareto_k for sample in weighted)}


def _calibration(diagnostics: Diagnostics) -> dict[str, Any]:
    """Coverage by level and parameter, and the largest deviation in standard errors."""
    coverage = {str(level): diagnostics.coverage(level) for level in LEVELS}
    errors = [
        abs(value - diagnostics.nominal(level)) / diagnostics.standard_error(level) for level in LEVELS for value in coverage[str(level)].values()
    ]
    return {"coverage": coverage, "coverage_error": max(errors), "coverage_standard_error": {str(x): diagnostics.standard_error(x) for x in LEVELS}}


HEADINGS = (
    "model", "posterior", "C2ST", "MMD", "mean", "deviation", "coverage 50 / 80 / 90 %", "worst, s.e.", "ESS", "Pareto k", "CPU seconds",
)  # fmt: skip
NOTES = (
    "The chain's length, first noise, rate and steps for the two simulators were chosen on these comparisons; the flow's steps are the default.",
    f"NPSE has sbi's settings, {own_models_npse.SIMULATIONS:,} simulations and at most {own_models_npse.EPOCHS} epochs; "
    "the others draw new simulations at every step.",
)


def markdown(record: dict[str, Any]) -> str:
    """Means over seeds, with the standard deviation of C2ST."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {(example, method): [] for example in EXAMPLES for method in METHODS}
    for one in record["cells"]:
        found[one["example"], one["method"]].append(one)
    rows = [[example.replace("_", " "), METHODS[method], *_row(cells)] for (example, method), cells in found.items() if cells]
    made = sorted({(one["commit"] or "none", one["processor"]) for one in record["cells"]})
    notes = [f"Commit {commit[:10]}, {processor}, one thread." for commit, processor in made]
    return "\n".join(["# Posteriors of own models", "", _markdown.table(HEADINGS, rows), "", *notes, *NOTES, ""])


def _row(cells: list[dict[str, Any]]) -> list[str]:
    def mean(name: str) -> float:
        return statistics.mean(found[name] for found in cells)

    tests = [found["c2st"] for found in cells]
    spread = f" ± {statistics.stdev(tests):.3f}" if len(tests) > 1 else ""
    joint = " / ".join(f"{statistics.mean(found['coverage'][str(level)]['joint'] for found in cells):.3f}" for level in LEVELS)
    weights = [f"{mean('effective'):.0%}", f"{mean('pareto_k'):.2f}"] if "effective" in cells[0] else ["", ""]
    errors = [f"{mean(name):.3f}" for name in ("mmd", "mean_error", "deviation_error")]
    return [f"{mean('c2st'):.3f}{spread}", *errors, joint, f"{mean('coverage_error'):.1f}", *weights, f"{mean('seconds'):.0f}"]


if __name__ == "__main__":
    sys.exit(main())
