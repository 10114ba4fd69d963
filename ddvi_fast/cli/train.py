"""The command `ddvi-fast train`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddvi_fast import _checks
from ddvi_fast.cli._registrations import register
from ddvi_fast.cli.arguments import Parser
from ddvi_fast.cli.main import EXIT_STOPPED
from ddvi_fast.config import names

if TYPE_CHECKING:
    from ddvi_fast.config.schema import Config

_MANY = 1 << 10  # more threads than any machine has use for
EPILOG = """Settings are written name=value: dataset, prior, method and recipe choose a file each, --settings lists the run's remaining settings.
  ddvi-fast train dataset=mnist prior=pinwheel epochs=5
  ddvi-fast train --paper mnist diff_vae_warmup pinwheel epochs=1
  ddvi-fast train --replay RUN/failed-step"""


def main(arguments: Sequence[str]) -> int:
    """Run `ddvi-fast train` and return its exit code."""
    options = _parse(arguments)
    if options.replay is not None:
        return _replay(options)
    settings = _of_paper(options.settings) if options.paper else options.settings
    names.check_overrides(settings)
    register()
    from ddvi_fast.config.compose import compose
    from ddvi_fast.recipes.settings import check_settings
    from ddvi_fast.training.honoured import check_honoured

    config = compose(settings)
    if options.list:
        return _list(config)
    check_settings([setting.partition("=")[0] for setting in settings], config)
    check_honoured([setting.partition("=")[0] for setting in options.settings if "=" in setting], config)  # not those of the paper's names
    _use_threads(config.threads)
    return _dry_run(config) if options.dry_run else _train(config)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="ddvi-fast train", description="Train and evaluate one run.", epilog=EPILOG)
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings of the run")
    parser.add_argument("--dry-run", action="store_true", help="print settings, parameters, memory and time of the run; write nothing")
    parser.add_argument("--settings", dest="list", action="store_true", help="print the settings that the run has, with their values")
    parser.add_argument("--paper", action="store_true", help="begin with DATASET METHOD PRIOR, the names of the paper's released code")
    parser.add_argument("--replay", metavar="FOLDER", help="recompute a step whose loss or gradient was not finite, from the folder RUN/failed-step")
    return parser.parse_intermixed_args(list(arguments))


def _of_paper(arguments: Sequence[str]) -> list[str]:
    """The settings that three names of the paper stand for, with the further settings among the arguments."""
    given = [argument for argument in arguments if "=" not in argument]
    _checks.require(len(given) == 3, "--paper", "DATASET METHOD PRIOR [name=value ...]", " ".join(arguments) or "nothing at all")
    from ddvi_fast.paper.commands import overrides_of

    dataset, method, prior = given
    return overrides_of(dataset, method, prior, [argument for argument in arguments if "=" in argument])


def _list(config: Config) -> int:
    for group in names.GROUPS:
        print(f"# {group}: {', '.join(names.choices(group))}")
    from ddvi_fast.recipes.settings import shown

    print(json.dumps(shown(config, dataclasses.asdict(config)), indent=2))
    return 0


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        # More of them than a system can start would end the process.
        torch.set_num_threads(_checks.integer(threads, "threads", 1, _MANY))


def _train(config: Config) -> int:
    from ddvi_fast.cli.tables import print_result
    from ddvi_fast.distributed import speaks
    from ddvi_fast.engine.signals import Stopped
    from ddvi_fast.plots.run import draw_run
    from ddvi_fast.training.run import run

    try:
        result = run(config, draw_run)
    except Stopped as stopped:
        if speaks():
            print(f"ddvi-fast: {stopped}", file=sys.stderr)
        return EXIT_STOPPED
    if speaks():
        print_result(result)
    return 0


def _dry_run(config: Config) -> int:
    """Print what a run will need, its settings first."""
    from ddvi_fast.training.estimate import dry_run, duration

    estimate = dry_run(config)
    print(json.dumps(estimate["config"], indent=2))
    print(f"run folder        {estimate['run_dir']} (nothing written)")
    print(f"examples          {estimate['examples']['train']:,} for training, {estimate['examples']['test']:,} for testing")
    for name, count in estimate["parameters"].items():
        print(f"parameters        {count:>12,}  {name}")
    for name, size in estimate["bytes"].items():
        print(f"memory            {size / 1e6:>9,.2f} MB  {name}")
    for phase in estimate["phases"]:
        print(f"phase             {phase['name']}: {phase['steps']:,} steps of {1000 * phase['seconds_a_step']:.1f} ms, measured on ten steps")
    print(f"training          about {duration(estimate['seconds'])} on this machine, without evaluation")
    return 0


def _replay(options: argparse.Namespace) -> int:
    """Print the means of all terms of a step that was not finite, update by update, and what is not finite."""
    _checks.require(not options.settings, "--replay", "no settings beside it", " ".join(options.settings))
    register()
    from ddvi_fast.config.compose import from_dict
    from ddvi_fast.engine import failed_step
    from ddvi_fast.training.replay import replay
    from ddvi_fast.training.run import load_dataset

    config = from_dict(failed_step.read(Path(options.replay)).state["config"])
    found = replay(options.replay, load_dataset(config))
    for number, means in enumerate(found.terms):
        print(f"step {found.step + 1}, update {number + 1}: " + "  ".join(f"{name} {value:.6g}" for name, value in means.items()))
    print(f"not finite: {', '.join(found.names)}" if found.names else "all terms and gradients are finite here")
    if found.examples:
        print(f"training examples: {', '.join(map(str, found.examples))}")
    return 0
