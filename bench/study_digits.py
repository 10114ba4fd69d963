"""Gaussian against diffusion posterior on digits: three priors, several seeds, one recipe, exact evidence.

    python bench/study_digits.py --seeds 5        # about twenty minutes on two cores

Runs that an earlier call finished are read back, not repeated, so a study that was cut short goes on where it stood. Writes
bench/results/digits_posteriors.json and the table digits_posteriors.md made from it. `--table` only rewrites the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from ddvi_fast import InputError
from ddvi_fast.config.compose import compose
from ddvi_fast.config.schema import Config
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.training.jobs import run_all

RESULTS = Path(__file__).parent / "results"
PRIORS = ("pinwheel", "swiss_roll", "square")
METHODS = {"vae": "Gaussian", "ddvi": "diffusion"}
# name -> (heading, digits, whether higher is better); the last is not compared
FIGURES = {
    "evidence": ("evidence", 2, True),
    "elbo": ("ELBO", 2, True),
    "gap": ("gap", 2, False),
    "iwae": ("IWAE-1000", 2, True),
    "latent_nll": ("latent NLL", 2, False),
    "knn_accuracy": ("KNN-20 accuracy", 3, True),
    "mmd": ("MMD", 3, False),
    "seconds": ("seconds", 0, None),
}
Cell = tuple[str, str, int]  # prior, method, seed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=None, help="runs at a time; one a core if left out")
    parser.add_argument("--runs", type=Path, default=Path("runs/study_digits"), help="folder of the runs")
    parser.add_argument("--table", action="store_true", help="only rewrite the table from the results file")
    options = parser.parse_args()
    path = RESULTS / "digits_posteriors.json"
    if not options.table:
        cells = [(prior, method, seed) for prior in PRIORS for method in METHODS for seed in range(options.seeds)]
        record = {**environment(), "command": " ".join(["python", *sys.argv]), "runs": _run(cells, options.runs, options.jobs)}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    record = json.loads(path.read_text(encoding="utf-8"))
    text = table(record)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _run(cells: list[Cell], folder: Path, jobs: int | None) -> list[dict[str, Any]]:
    """The figures of every cell, in order; only those that no earlier call finished are trained."""
    configs = {cell: _config(cell, folder) for cell in cells}
    missing = [cell for cell in cells if _finished(configs[cell]) is None]
    print(f"{len(cells) - len(missing)} of {len(cells)} runs are there already", flush=True)
    if missing:
        for number, result in run_all([configs[cell] for cell in missing], jobs):
            print(missing[number], {name: round(result.metrics[name], 3) for name in FIGURES}, flush=True)
    return [{"prior": prior, "method": method, "seed": seed, **_finished(configs[prior, method, seed])} for prior, method, seed in cells]


def _config(cell: Cell, folder: Path) -> Config:
    prior, method, seed = cell
    quiet = ["progress=off", "tensorboard=false", "figures=false"]
    setting = {"swiss_roll": "swiss_roll_noisy"}.get(prior, prior)
    config = compose([f"prior={setting}", f"method={method}", f"seed={seed}", f"split_seed={seed}", *quiet])
    # A run that was cut short left no evaluation: it is started anew.
    return dataclasses.replace(config, run_dir=str(folder / f"{prior}-{method}-{seed}"), overwrite=True)


def _finished(config: Config) -> dict[str, float] | None:
    """The figures of a run that ended, if it had the settings that are asked for now."""
    folder = Path(config.run_dir)
    if not (folder / "evaluation.json").exists():
        return None
    same = json.loads((folder / "config.json").read_text(encoding="utf-8")) == dataclasses.asdict(config)
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8")) if same else None


def table(record: dict[str, Any]) -> str:
    """Mean and standard deviation over seeds as Markdown; the better mean of each pair is bold."""
    runs, headings = record["runs"], [heading for heading, _, _ in FIGURES.values()]
    seeds = len({run["seed"] for run in runs})
    lines = [
        "# Gaussian against diffusion posterior on digits",
        "",
        f"Test set, nats per example, mean ± standard deviation over {seeds} seeds (weights, order, noise and split).",
        f"`{record['command']}`, commit {str(record.get('commit'))[:10]}, torch {record['versions']['torch']}; one core a run.",
        "",
        f"| prior | posterior | {' | '.join(headings)} |",
        f"| --- | --- | {' | '.join('---' for _ in headings)} |",
    ]
    for prior in PRIORS:
        by_method = {method: [run for run in runs if run["prior"] == prior and run["method"] == method] for method in METHODS}
        for method, label in METHODS.items():
            cells = [_cell(by_method, method, name) for name in FIGURES]
            lines.append(f"| {prior} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(by_method: dict[str, list[dict[str, Any]]], method: str, name: str) -> str:
    _, digits, higher = FIGURES[name]
    means = {key: statistics.fmean(run[name] for run in runs) for key, runs in by_method.items()}
    values = [run[name] for run in by_method[method]]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    text = f"{means[method]:.{digits}f} ± {spread:.{digits}f}"
    best = higher is not None and means[method] == (max if higher else min)(means.values())
    return f"**{text}**" if best else text


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"study_digits: {error}")
