"""The command `ddvi-fast reproduce`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddvi_fast import _checks
from ddvi_fast.cli._registrations import register
from ddvi_fast.cli.arguments import Parser
from ddvi_fast.config import names

FIXED_DECODER, SBIBM, ANCESTRY_MISSING = "fixed-decoder", "sbibm", "ancestry-missing"
SEEDS = 3  # default number of runs of a cell
JOBS = "runs at a time: each in a process with one thread (default: one a core), on a GPU all in one process, each on its own stream (default: 8)"
DESCRIPTION = """Train every missing run of a table, then write the table and the picture of all runs.

A finished run is never repeated, an interrupted one is started anew, and a run that is impossible has its reason in the table.

With --choose, try the choices of a table for every row on held-out training examples instead, and write the best ones to choices.json, which
later calls with the same --output use."""


def main(arguments: Sequence[str]) -> None:
    """Run `ddvi-fast reproduce`."""
    options = _parse(arguments)
    if options.table not in _ALONE:
        names.check_overrides(options.overrides)
    register()
    # The folder of the data is a matter of this machine, and no part of the recorded command.
    command = " ".join(["ddvi-fast", "reproduce", *(shlex.quote(word) for word in arguments if not word.startswith("data_dir="))])
    stated = {**vars(options), "command": command, "report": lambda line: print(line, flush=True)}
    written = _ALONE.get(options.table, _of_runs)(stated)
    print(written[0].with_suffix(".md").read_text(encoding="utf-8"))
    for path in written:
        print(f"written: {path}")


def _of_runs(stated: dict[str, Any]) -> list[Path]:
    """Write a table of training runs."""
    from ddvi_fast.paper.choose import choose
    from ddvi_fast.paper.reproduce import reproduce

    _leave_out(stated, ("budgets",))
    seeds = _given(stated.pop("seeds"), SEEDS)
    return choose(**stated) if stated.pop("choose") else reproduce(**stated, seeds=seeds)


def _of_one_decoder(stated: dict[str, Any]) -> list[Path]:
    """Write the table of posteriors of one frozen decoder."""
    from ddvi_fast.paper.fixed_decoder import reproduce

    _leave_out(stated, (*_OF_RUNS, "budgets"), "its settings are those of paper.fixed_decoder.Settings")
    del stated["table"]
    seeds = _given(stated.pop("seeds"), SEEDS)
    return reproduce(**stated, seeds=seeds)


def _of_sbibm(stated: dict[str, Any]) -> list[Path]:
    """Write the table of sbibm."""
    from ddvi_fast.paper.sbibm import BUDGETS, reproduce

    _leave_out(stated, _OF_RUNS)
    del stated["table"]
    seeds, budgets = _given(stated.pop("seeds"), 1), _given(stated.pop("budgets"), BUDGETS)
    return reproduce(**stated, seeds=seeds, budgets=budgets)


def _of_missing_genotypes(stated: dict[str, Any]) -> list[Path]:
    """Write the table of places of people of whom few variants are called."""
    from ddvi_fast.paper.ancestry_missing import reproduce

    _leave_out(stated, (*_OF_RUNS, "budgets", "rows", "seeds"), "its settings are those of paper.ancestry_missing.Settings")
    del stated["table"]
    return reproduce(**stated)


_OF_RUNS = ("choose", "epochs", "max_minutes", "jobs", "columns")
_ALONE = {FIXED_DECODER: _of_one_decoder, SBIBM: _of_sbibm, ANCESTRY_MISSING: _of_missing_genotypes}  # tables that are not of training runs


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _leave_out(stated: dict[str, Any], options: Sequence[str], hint: str = "") -> None:
    """Refuse options that a table does not have."""
    for name in options:
        _checks.require(not stated.pop(name), f"--{name.replace('_', '-')}", f"no such option for {stated['table']}", "one", hint)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    tables = sorted([*names.choices("reproduce"), *_ALONE])
    parser = Parser(prog="ddvi-fast reproduce", description=DESCRIPTION)
    parser.add_argument("table", metavar="TABLE", choices=tables, help=", ".join(tables))
    parser.add_argument("overrides", nargs="*", metavar="name=value", help="settings of all runs, such as data_dir=... or evaluation.limit=500")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--seeds", type=int, metavar="N", help=f"runs of each cell, with seeds 0, 1, ... (default {SEEDS}, of {SBIBM} 1)")
    kind.add_argument("--choose", action="store_true", help="choose the settings of the rows on a validation split; write choices.json")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, metavar="N", help="epochs of each run and stage")
    length.add_argument("--max-minutes", type=float, metavar="X", help="minutes of training of each run, estimated from its first steps")
    parser.add_argument("--jobs", type=int, metavar="N", help=JOBS)
    parser.add_argument("--rows", type=_split, metavar="NAME,NAME", help="only these rows of the table")
    parser.add_argument("--columns", type=_split, metavar="NAME,NAME", help="only these columns of the table")
    parser.add_argument("--budgets", type=_numbers, metavar="N,N", help=f"numbers of simulations of {SBIBM} (default 1000,10000,100000)")
    parser.add_argument("--runs", metavar="FOLDER", help="folder of the runs (default runs/reproduce)")
    parser.add_argument("--output", metavar="FOLDER", help="folder of the table and the picture (default: beside the runs)")
    options = parser.parse_intermixed_args(list(arguments))
    for override in options.overrides:
        _checks.require("=" in override, "reproduce", "one table, then name=value", override)
    return options


def _numbers(text: str) -> list[int]:
    return [int(number) for number in _split(text)]


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
