"""The demo: a Gaussian and a diffusion posterior trained alike on digits, compared against the exact evidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ddvi_fast import _checks, metrics, plots
from ddvi_fast.config.compose import compose
from ddvi_fast.config.schema import Config
from ddvi_fast.paper.tables import print_table
from ddvi_fast.recipes.build import build
from ddvi_fast.training.evaluate import sample_prior
from ddvi_fast.training.jobs import run_all
from ddvi_fast.training.run import Result, load_dataset, restore

METHODS = {"Gaussian posterior": "vae", "diffusion posterior": "ddvi"}


def demo(overrides: Sequence[str]) -> None:
    """Train both posteriors and print one table and the paths of the pictures; `overrides` go to both runs."""
    folder = _vacant(Path("runs"), "demo")
    configs = [_config(method, folder, overrides) for method in METHODS.values()]
    print(f"training {' and '.join(METHODS)} on {configs[0].dataset.name}, {configs[0].prior.name} prior, into {folder}", flush=True)
    results: dict[int, Result] = dict(run_all(configs))
    ordered = [results[number] for number in range(len(configs))]
    print_table([(label, result.metrics) for label, result in zip(METHODS, ordered, strict=True)])
    for path in [_compare(configs, ordered, folder), *(path for result in ordered for path in result.figures)]:
        print(f"figure: {path}")


def _config(method: str, folder: Path, overrides: Sequence[str]) -> Config:
    for override in overrides:
        name = override.partition("=")[0]
        _checks.require(name not in ("method", "run_dir"), "demo", "settings other than method and run_dir", override)
    config = compose([*overrides, f"method={method}"])
    return dataclasses.replace(config, run_dir=str(folder / method))


def _compare(configs: Sequence[Config], results: Sequence[Result], folder: Path) -> Path:
    """Latents of both methods side by side, the prior last."""
    panels = []
    for label, config, result in zip(METHODS, configs, results, strict=True):
        dataset = load_dataset(config)
        experiment = build(config, dataset)
        restore(experiment, result.folder, config.device)
        panels.append((label, metrics.encode(experiment.posterior, dataset.inputs(split="test")), dataset.test_labels))
    panels.append(("prior", *sample_prior(config, experiment.model)))
    return plots.comparison(folder / "comparison.png", panels, f"{dataset.name}: latents of the test set, by class")


def _vacant(parent: Path, name: str) -> Path:
    """The first of `name`, `name-2`, `name-3`, ... that does not exist: an earlier demo stays as it was."""
    number, path = 1, parent / name
    while path.exists():
        number += 1
        path = parent / f"{name}-{number}"
    return path
