"""The command line: `ddvi-fast COMMAND [name=value ...]`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ddvi_fast import InputError, _checks
from ddvi_fast.distributed import speaks

EXIT_BAD_INPUT = 2
EXIT_NON_FINITE = 65  # a loss or gradient; a bundle of the step is in the run's folder
EXIT_NOT_WRITTEN = 74  # a full or broken disk
EXIT_STOPPED = 75  # by a signal, after a checkpoint: the same command goes on
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141  # whoever read the output, such as `head`, has left
_DRY = "--dry-run"

USAGE = """usage: ddvi-fast COMMAND [name=value ...]

  train      train and evaluate one run      ddvi-fast train dataset=mnist prior=pinwheel epochs=5
             with --dry-run: resolved settings, parameters, memory and time, by ten steps; nothing is written
  evaluate   evaluate a run's weights again  ddvi-fast evaluate run_dir=runs/... overwrite=true
  demo       Gaussian against diffusion posterior on digits, in a few minutes
  reproduce  one of the paper's tables        ddvi-fast reproduce mnist --seeds 3 --epochs 10 --jobs 2
  paper      the released code's command      ddvi-fast paper mnist diff_vae_warmup pinwheel epochs=1   (as ./run.sh)
  replay     a step that was not finite, once more   ddvi-fast replay RUN/failed-step
  settings   every setting with its default
  data       genotype files into packed stores  ddvi-fast data import FILE --out STORE | info STORE | simulate --out STORE
  report     runs side by side in one HTML file  ddvi-fast report RUN... [output=report.html] [overwrite=true]
  doctor     what there is, what will be used and why, and what to do   ddvi-fast doctor [--json] [--quick] [data_dir=PATH]
  bench      speed and memory against plain PyTorch ddvi-fast bench [quick|targets|full] [--threads N] [--output NAME]
  export     a run's posterior as a program of torch alone   ddvi-fast export run_dir=runs/... [output=FILE] [num_samples=K]
  completion completion for bash, zsh or fish  ddvi-fast completion bash > ~/.local/share/bash-completion/completions/ddvi-fast

Settings are Hydra overrides; `dataset`, `prior`, `method` and `recipe` choose files, `ddvi-fast settings` lists the rest."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input (one line on standard error), 130 for Ctrl-C,
    141 where nobody reads on.

    Training has more: 65 for a loss that is not finite, 74 for a disk that cannot be written, 75 where a signal stopped it and it can
    go on, 76 where another process was lost.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else EXIT_BAD_INPUT
    try:
        command = _COMMANDS[_checks.choice(arguments[0], _COMMANDS, "command")]
        code = command(arguments[1:]) or 0
        sys.stdout.flush()
        return code
    except InputError as error:
        non_finite = hasattr(error, "place")  # which every process of a run meets
        if speaks() or not non_finite:
            print(f"ddvi-fast: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_NON_FINITE if non_finite else EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("ddvi-fast: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return EXIT_UNREAD


def _train(overrides: Sequence[str]) -> int:
    from ddvi_fast.config.compose import compose
    from ddvi_fast.engine.interrupts import Stopped
    from ddvi_fast.paper.embedding_baselines import run
    from ddvi_fast.paper.tables import print_result
    from ddvi_fast.recipes.settings import check_settings

    for override in overrides:
        if override.startswith("--"):
            _checks.choice(override, (_DRY,), "option")
    settings = [override for override in overrides if override != _DRY]
    import ddvi_fast.genomes
    import ddvi_fast.paper  # noqa: F401 - registers recipes

    config = compose(settings)
    check_settings([setting.partition("=")[0] for setting in settings], config)
    _use_threads(config.threads)
    if _DRY in overrides:
        from ddvi_fast.training.estimate import dry_run, print_estimate

        print_estimate(dry_run(config))
        return 0
    try:
        result = run(config)
    except Stopped as stopped:
        if speaks():
            print(f"ddvi-fast: {stopped}", file=sys.stderr)
        return EXIT_STOPPED
    except OSError as error:
        print(f"ddvi-fast: {error.filename or 'a file of the run'} cannot be written: {error.strerror}", file=sys.stderr)
        return EXIT_NOT_WRITTEN
    if speaks():
        print_result(result)
    return 0


def _replay(arguments: Sequence[str]) -> None:
    from ddvi_fast.config.compose import from_dict
    from ddvi_fast.engine import bundle
    from ddvi_fast.training.replay import print_replayed, replay
    from ddvi_fast.training.run import load_dataset

    _checks.require(len(arguments) == 1, "replay", "the folder of one failed step", " ".join(arguments) or "none")
    config = from_dict(bundle.read(Path(arguments[0])).state["config"])
    print_replayed(replay(arguments[0], load_dataset(config)))


def _evaluate(overrides: Sequence[str]) -> None:
    from ddvi_fast.paper.tables import print_result
    from ddvi_fast.training.run import evaluate_run

    options = _options(overrides, {"run_dir": None, "overwrite": "false"})
    print_result(evaluate_run(_run_dir(options), _overwrites(options)))


def _export(overrides: Sequence[str]) -> None:
    from ddvi_fast.training.exporting import export_run

    options = _options(overrides, {"run_dir": None, "output": None, "num_samples": "1", "overwrite": "false"})
    count = options["num_samples"] or ""
    _checks.require(count.isdecimal(), "num_samples", "a number", count)
    print(export_run(_run_dir(options), options["output"], num_samples=int(count), overwrite=_overwrites(options)))


def _reproduce(arguments: Sequence[str]) -> None:
    from ddvi_fast.paper.reproduce import reproduce

    reproduce(arguments)


def _paper(arguments: Sequence[str]) -> int:
    from ddvi_fast.paper.commands import overrides_of, split_arguments

    names, further = split_arguments(arguments)
    return _train(overrides_of(*names, further))


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        _checks.require(threads >= 1, "threads", "at least 1", threads)
        torch.set_num_threads(threads)


def _demo(overrides: Sequence[str]) -> None:
    from ddvi_fast.cli.demo import demo

    demo(overrides)


def _settings(overrides: Sequence[str]) -> None:
    import dataclasses
    import json

    from ddvi_fast.config.compose import GROUPS, choices, compose

    for group in GROUPS:
        print(f"# {group}: {', '.join(choices(group))}")
    print(json.dumps(dataclasses.asdict(compose(overrides)), indent=2))


def _bench(arguments: Sequence[str]) -> None:
    root = Path(__file__).resolve().parent.parent.parent
    found = (root / "bench" / "run.py").is_file()
    _checks.require(found, "bench", "a source tree, which has the folder bench/", f"an installed package in {root}", "clone the repository")
    # The benchmarks are no part of the package: they are imported from the tree around it.
    sys.path.insert(0, str(root))
    from bench.run import main as run_benchmarks

    run_benchmarks(arguments)


def _data(arguments: Sequence[str]) -> None:
    from ddvi_fast.genomes.command import main as run_data

    run_data(arguments)


def _doctor(arguments: Sequence[str]) -> int:
    from ddvi_fast.doctor import main as run_doctor

    return run_doctor(arguments)


def _report(arguments: Sequence[str]) -> None:
    from ddvi_fast.report import main as run_report

    run_report(arguments)


def _completion(arguments: Sequence[str]) -> None:
    from ddvi_fast.cli.completion import script

    _checks.require(len(arguments) == 1, "completion", "the name of a shell", " ".join(arguments) or "none")
    print(script(arguments[0], list(_COMMANDS)), end="")


def _options(overrides: Sequence[str], defaults: dict[str, str | None]) -> dict[str, str | None]:
    """Plain `name=value` options of a command that takes no configuration."""
    options = dict(defaults)
    for override in overrides:
        name, sign, value = override.partition("=")
        _checks.require(bool(sign), "option", "name=value", override)
        options[_checks.choice(name, defaults, "option")] = value
    return options


def _run_dir(options: dict[str, str | None]) -> str:
    path = options["run_dir"]
    _checks.require(bool(path), "run_dir", "the folder of a run (run_dir=...)", path)
    return path or ""


def _overwrites(options: dict[str, str | None]) -> bool:
    return _checks.choice(options["overwrite"], ("true", "false"), "overwrite") == "true"


_COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "replay": _replay,
    "demo": _demo,
    "reproduce": _reproduce,
    "paper": _paper,
    "settings": _settings,
    "data": _data,
    "bench": _bench,
    "doctor": _doctor,
    "report": _report,
    "export": _export,
    "completion": _completion,
}


if __name__ == "__main__":
    sys.exit(main())
