"""The command `ddvi-fast demo`: two posteriors, trained alike on digits and compared with the exact evidence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddvi_fast import _checks
from ddvi_fast.cli._registrations import register
from ddvi_fast.cli.arguments import Parser
from ddvi_fast.config import names

if TYPE_CHECKING:
    from ddvi_fast.config.schema import Config
    from ddvi_fast.training.run import Result

EPOCHS = 150
# A Gaussian over the latents, as in a variational autoencoder, and a diffusion in the coordinates of prior and encoder.
METHODS = {"Gaussian, latent": ("vae", "latent"), "diffusion, prior+encoder": ("ddvi", "prior+encoder")}
_OWN = ("method", "method.coordinates", "run_dir")


def main(arguments: Sequence[str]) -> None:
    """Run `ddvi-fast demo`: train both posteriors, print one table and the paths of the pictures."""
    parser = Parser(prog="ddvi-fast demo", description="Train two posteriors on digits and compare them, in a few minutes.")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings of both runs, such as seed=1")
    settings = parser.parse_args(list(arguments)).settings
    names.check_overrides(settings)
    for setting in settings:
        _checks.require(setting.partition("=")[0] not in _OWN, "demo", f"settings other than {', '.join(_OWN)}", setting)
    if settings:  # the import of torch takes seconds, in which an unchanged demo says already what it will do
        register()
        _configs(settings, Path("runs"))
    count = max(1, len(os.sched_getaffinity(0)))
    at_once = "one after the other" if count == 1 else "both at a time"
    print(f"demo: two trainings of {EPOCHS} epochs on digits, {at_once}, then one table and pictures; a few minutes on two processors", flush=True)
    register()
    demo(settings)


def demo(settings: Sequence[str]) -> None:
    """Train both posteriors with further settings, print one table and the paths of the pictures."""
    from ddvi_fast.cli.tables import print_table
    from ddvi_fast.training.jobs import in_processes

    folder = _vacant(Path("runs"), "demo")
    configs = _configs(settings, folder)
    print(f"training {' and '.join(METHODS)} on {configs[0].dataset.name}, {configs[0].prior.name} prior, into {folder}", flush=True)
    results: dict[int, Result] = dict(in_processes(_train, configs))
    ordered = [results[number] for number in range(len(configs))]
    print_table([(label, result.metrics) for label, result in zip(METHODS, ordered, strict=True)])
    for path in [_compare(ordered, folder), *(path for result in ordered for path in result.figures)]:
        print(f"figure: {path}")


def _configs(settings: Sequence[str], folder: Path) -> list[Config]:
    """The configurations of both runs, at least one of which honours each setting."""
    from ddvi_fast.config.compose import compose
    from ddvi_fast.training.honoured import check_some

    configs = [
        compose([*settings, f"method={method}", f"method.coordinates={coordinates}", f"run_dir={folder / method}"], [f"epochs={EPOCHS}"])
        for method, coordinates in METHODS.values()
    ]
    check_some([setting.partition("=")[0] for setting in settings], configs)
    return configs


def _train(config: Config) -> Result:
    """Train one run in a process of its own."""
    register()
    from ddvi_fast.plots.run import draw_run
    from ddvi_fast.training.run import train_run

    return train_run(config, draw_run)


def _compare(results: Sequence[Result], folder: Path) -> Path:
    """Draw the latents of both methods side by side, the prior last."""
    from ddvi_fast import metrics, plots
    from ddvi_fast.training.evaluate import sample_prior
    from ddvi_fast.training.run import Run

    panels = []
    for label, result in zip(METHODS, results, strict=True):
        run = Run.load(result.folder)
        panels.append((label, metrics.encode(run.experiment.posterior, run.dataset.inputs(split="test")), run.dataset.test_labels))
    panels.append(("prior", *sample_prior(run.config, run.experiment.model)))
    return plots.comparison(folder / "comparison.png", panels, f"{run.dataset.name}: latents of the test set, by class")


def _vacant(parent: Path, name: str) -> Path:
    """The first of `name`, `name-2`, `name-3`, ... that does not exist, so that an earlier demo stays as it is."""
    number, path = 1, parent / name
    while path.exists():
        number += 1
        path = parent / f"{name}-{number}"
    return path
