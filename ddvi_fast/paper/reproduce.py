"""One command for each table: train every cell that is missing, then write the table and the picture of all cells.

A cell that ended is never repeated, one that was cut short is started anew, and one that cannot be run says why in the table.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ddvi_fast import _checks, _files, _json, metrics, plots
from ddvi_fast._arguments import Parser
from ddvi_fast._checks import InputError
from ddvi_fast.engine.run_folder import RunFolder, environment
from ddvi_fast.genomes import maps as genome_maps
from ddvi_fast.paper import table_spec as grid
from ddvi_fast.paper import tables
from ddvi_fast.paper.embedding_baselines import LATENTS, run
from ddvi_fast.paper.table_spec import Cell, Table
from ddvi_fast.recipes.build import build
from ddvi_fast.training.evaluate import evaluated, sample_prior
from ddvi_fast.training.jobs import in_processes
from ddvi_fast.training.run import load_dataset, restore

FAILURE = "failure.txt"


def reproduce(arguments: Sequence[str]) -> Path:
    """Run `ddvi-fast reproduce` with its command-line arguments; returns the folder of the finished table.

    Raises:
        InputError: bad arguments or settings, or another call at work in the same folder.
    """
    options, overrides = _parse(arguments)
    table = grid.part(grid.load(options.table), options.rows, options.columns)
    folder = Path("runs/reproduce" if options.runs is None else options.runs) / table.name
    output = folder if options.output is None else Path(options.output)
    cells = grid.cells(table, options.seeds, folder, overrides, options.epochs, options.max_minutes)
    # Where the data lie is this machine's affair.
    stated = [shlex.quote(argument) for argument in arguments if not argument.startswith("data_dir=")]
    command = " ".join(["ddvi-fast", "reproduce", *stated])
    with _files.locked(folder, "reproduce"):
        for cell in _run_missing(cells, options.jobs):
            print(_news(cell, table), flush=True)
            _write(table, cells, options, command, output)
        written = _write(table, cells, options, command, output)
    pictures = _people(table, cells, output) or _picture(table, cells, options.max_minutes, output)
    print(written.with_suffix(".md").read_text(encoding="utf-8"))
    for path in (written, written.with_suffix(".md"), written.with_suffix(".tex"), *pictures):
        print(f"written: {path}")
    return output


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(prog="ddvi-fast reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", metavar="TABLE", choices=grid.names(), help=", ".join(grid.names()))
    parser.add_argument("overrides", nargs="*", help="settings of all runs, such as data_dir=... or evaluation.limit=500")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each cell, with seeds 0, 1, ... (default 3)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="epochs of each run and stage")
    length.add_argument("--max-minutes", type=float, help="minutes of training of each run, by a timing of its first steps")
    parser.add_argument("--jobs", type=int, help="runs at a time, each in a process of one thread (default: one a core)")
    parser.add_argument("--rows", type=_names, help="some of the table's rows alone, as NAME,NAME")
    parser.add_argument("--columns", type=_names, help="some of its columns alone")
    parser.add_argument("--runs", help="folder of the runs (default runs/reproduce)")
    parser.add_argument("--output", help="folder of the table and the picture (default: beside the runs)")
    options = parser.parse_intermixed_args(arguments)
    for override in options.overrides:
        _checks.require("=" in override, "reproduce", "one table, then name=value", override)
    return options, options.overrides


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _run_missing(cells: Sequence[Cell], jobs: int | None) -> Iterator[Cell]:
    """Train the cells that are not finished, seed by seed, so that there is soon a whole table of fewer seeds; yields each as it ends."""
    missing = sorted((cell for cell in cells if not cell.finished), key=lambda cell: cell.seed)
    print(f"{len(cells) - len(missing)} of {len(cells)} runs are there already", flush=True)
    for number, _ in in_processes(run_cell, missing, jobs):
        yield missing[number]


def run_cell(cell: Cell) -> None:
    """Train and evaluate one cell, and keep the latents of its test set; a cell that cannot be run leaves the reason."""
    _clear(cell.folder)
    try:
        run(cell.config)
        if cell.seed == 0 and cell.config.latent_dim == 2 and cell.config.method.task != "map":
            _keep_latents(cell)
    except InputError as error:
        cell.folder.mkdir(parents=True, exist_ok=True)
        (cell.folder / FAILURE).write_text(f"{error}\n", encoding="utf-8")


def _clear(folder: Path) -> None:
    """Remove what an earlier attempt left before it could mark the folder as a run's: a failure, empty folders."""
    (folder / FAILURE).unlink(missing_ok=True)
    if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
        shutil.rmtree(folder)


@torch.no_grad()
def _keep_latents(cell: Cell) -> None:
    dataset = load_dataset(cell.config)
    experiment = build(cell.config, dataset)
    restore(experiment, RunFolder.open(cell.folder), cell.config.device)
    with evaluated(cell.config, experiment):
        latents = metrics.encode(experiment.posterior, dataset.inputs(split="test"))
    prior, prior_labels = sample_prior(cell.config, experiment.model)
    stored = {"latents": latents, "labels": dataset.test_labels, "prior": prior, "prior_labels": prior_labels}
    arrays = {name: value.cpu().numpy() for name, value in stored.items() if value is not None}
    np.savez_compressed(cell.folder / LATENTS, class_names=np.array(dataset.class_names, dtype=str), **arrays)


def _news(cell: Cell, table: Table) -> str:
    where = f"{table.name} {cell.row} {cell.column} seed {cell.seed}"
    if not cell.finished:
        return f"{where}: not run: {_failure(cell)}"
    figures_of_merit = cell.figures()
    shown = ", ".join(f"{tables.COLUMNS[name]} {figures_of_merit[name]:.3f}" for name in table.figures if name in figures_of_merit)
    return f"{where}: {shown}"


def _failure(cell: Cell) -> str | None:
    path = cell.folder / FAILURE
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _write(table: Table, cells: Sequence[Cell], options: argparse.Namespace, command: str, output: Path) -> Path:
    """table.json, table.md and table.tex of what has been run so far."""
    runs = [
        {"row": cell.row, "column": cell.column, "seed": cell.seed, **({"figures": cell.figures()} if cell.finished else {"failure": _failure(cell)})}
        for cell in cells
    ]
    labels = {column: grid.column_label(table, column, options.max_minutes) for column in table.columns}
    dataset = cells[0].config.dataset.name
    record = {
        "table": table.name,
        "title": grid.title(table, dataset),
        "note": table.note,
        "command": command,
        **{name: value for name, value in environment().items() if name != "command"},
        "rows": {name: entry.label for name, entry in table.rows.items()},
        "columns": labels,
        "figures": list(table.figures),
        "settings": _settings(cells),
        "paper": grid.paper_figures(table, dataset),
        "others": [table.others, table.others_note],
        "runs": runs,
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / "table.json"
    for suffix, text in ((".json", _json.lines(record) + "\n"), (".md", tables.markdown(record)), (".tex", tables.latex(record))):
        _files.write_text(path.with_suffix(suffix), text)
    return path


def _settings(cells: Sequence[Cell]) -> dict[str, dict[str, str]]:
    """Of each row and column, the settings that differ from the defaults, as they are written on the command line."""
    found: dict[str, dict[str, str]] = {}
    for cell in cells:
        stated = " ".join(override for override in cell.overrides if not override.startswith("data_dir="))
        found.setdefault(cell.row, {})[cell.column] = stated
    return found


def _picture(table: Table, cells: Sequence[Cell], max_minutes: float | None, output: Path) -> list[Path]:
    """Latents of the test set by class: a row for each of the table's columns (priors), methods side by side, the prior last."""
    panels, names = {}, ()
    for cell in cells:
        path = cell.folder / LATENTS
        if cell.seed == 0 and path.is_file():
            column = grid.column_label(table, cell.column, max_minutes)
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: torch.from_numpy(stored[name]) for name in stored.files if name != "class_names"}
                names = tuple(stored["class_names"])
            panels[column, table.rows[cell.row].label] = (arrays["latents"], arrays.get("labels"))
            if "prior" in arrays:
                panels[column, "prior"] = (arrays["prior"], arrays.get("prior_labels"))
    if not panels:
        return []
    rows = [grid.column_label(table, column, max_minutes) for column in table.columns]
    columns = [*(entry.label for entry in table.rows.values()), "prior"]
    title = grid.title(table, cells[0].config.dataset.name)
    return [plots.grid(output / "latents.png", rows, columns, panels, title, class_names=names or None, overwrite=True)]


def _people(table: Table, cells: Sequence[Cell], output: Path) -> list[Path]:
    """Of genotypes, the first column's maps side by side."""
    first = [cell for cell in cells if cell.seed == 0 and cell.column == next(iter(table.columns)) and (cell.folder / LATENTS).is_file()]
    if not first or first[0].config.dataset.name not in genome_maps.DATASETS:
        return []
    maps = {}
    for cell in first:
        with np.load(cell.folder / LATENTS, allow_pickle=False) as stored:
            maps[table.rows[cell.row].label] = stored["latents"]
    return genome_maps.compare(first[0].config, load_dataset(first[0].config), maps, output, table.title)
