"""Reproduction of a table: train every cell that is missing, then write the table and the picture of all cells.

A finished cell is never repeated, an interrupted one is started anew, and a cell that is impossible has its reason in the table.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from ddvi_fast import _files, metrics, plots
from ddvi_fast._checks import InputError
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.genomes import maps as genome_maps
from ddvi_fast.paper import choices, record_files, tables
from ddvi_fast.paper import table_spec as grid
from ddvi_fast.paper.embedding_baselines import LATENTS, read_latents, write_latents
from ddvi_fast.paper.table_spec import FAILURE, Cell, Table
from ddvi_fast.plots.run import draw_run
from ddvi_fast.training.evaluate import evaluated, sample_prior
from ddvi_fast.training.honoured import check_some
from ddvi_fast.training.jobs import side_by_side
from ddvi_fast.training.run import Run, load_dataset, run


def reproduce(
    table: str,
    overrides: Sequence[str] = (),
    *,
    seeds: int = 3,
    epochs: int | None = None,
    max_minutes: float | None = None,
    jobs: int | None = None,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    runs: str | Path | None = None,
    output: str | Path | None = None,
    command: str = "",
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Train every cell of a table that is missing, then write the table and the picture of all cells.

    Args:
        table: Name of the table, a file of `conf/reproduce/` (str).
        overrides: Settings of all runs, ``name=value`` (list of str).
        seeds: Number of runs of each cell, with seeds 0, 1, ... (int, default 3).
        epochs: Epochs of each run and stage (int, default: the table's).
        max_minutes: Minutes of training of each run, instead of epochs (float, default: the table's).
        jobs: Number of runs at a time (int, default: one a core, and eight on a GPU, which runs them side by side in one process).
        rows, columns: Names of the rows and columns to run (list of str, default: all).
        runs: Folder of the runs (path, default `runs/reproduce`).
        output: Folder of the table and the picture (path, default: beside the runs). If `choose` has written choices.json there, every row
            and column has the settings that were chosen for it.
        command: Command line to record in the table (str).
        report: Function that is called with a line of text at the start and after each run.

    Returns:
        The written files: table.json, table.md, table.tex and pictures.

    Raises:
        InputError: bad arguments or settings, a cell's folder with a run of other settings, or another call at work in the same folder.
    """
    spec = grid.part(grid.load(table), rows, columns)
    if epochs is not None:
        spec = dataclasses.replace(spec, note=f"{spec.note} Here every run has {epochs} epochs per stage instead.".strip())
    folder = Path("runs/reproduce" if runs is None else runs) / spec.name
    output = folder if output is None else Path(output)
    record = choices.read(output, spec)
    used = choices.used(spec, record)
    chosen = {place: spec.choices[name].overrides for place, name in used.items() if name is not None}
    spec = dataclasses.replace(spec, note=f"{spec.note} {choices.note(spec, record)}".strip())
    cells = grid.cells(spec, seeds, folder, overrides, epochs, max_minutes, chosen)
    check_some([override.partition("=")[0] for override in overrides], [cell.config for cell in cells if cell.seed == 0])
    with _files.locked(folder, "reproduce"):
        grid.check_folders(cells)
        missing = sorted((cell for cell in cells if not cell.finished), key=lambda cell: cell.seed)  # soon a whole table of fewer seeds
        report(f"{len(cells) - len(missing)} of {len(cells)} runs already finished")
        for number, _ in side_by_side(run_cell, missing, jobs, cells[0].config.device):
            report(_outcome(missing[number], spec))
            _write(spec, cells, used, max_minutes, command, output)
        written = _write(spec, cells, used, max_minutes, command, output)
    pictures = [*(_people(spec, cells, output) or _picture(spec, cells, max_minutes, output)), *_curves(spec, cells, output)]
    return [*written, *pictures]


def run_cell(cell: Cell) -> None:
    """Train and evaluate one cell and save the latents of its test set; the reason why a cell is impossible is written to `FAILURE`."""
    _clear(cell.folder)
    try:
        run(cell.config, draw_run)
        if cell.seed == 0 and cell.config.latent_dim == 2 and cell.config.method.task != "map":
            _keep_latents(cell)
    except InputError as error:
        _files.write_text(cell.folder / FAILURE, f"{error}\n")


def _clear(folder: Path) -> None:
    """Remove the failure and the empty folders of an earlier attempt."""
    (folder / FAILURE).unlink(missing_ok=True)
    if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
        shutil.rmtree(folder)


@torch.no_grad()
def _keep_latents(cell: Cell) -> None:
    loaded = Run.load(cell.folder)
    dataset, experiment = loaded.dataset, loaded.experiment
    with evaluated(cell.config, experiment):
        latents = metrics.encode(experiment.posterior, dataset.inputs(split="test"))
    prior, prior_labels = sample_prior(cell.config, experiment.model)
    stored = {"latents": latents, "labels": dataset.test_labels, "prior": prior, "prior_labels": prior_labels}
    arrays = {name: value.cpu().numpy() for name, value in stored.items() if value is not None}
    write_latents(cell.folder, dataset.class_names, **arrays)


def _outcome(cell: Cell, table: Table) -> str:
    """One line with the metrics of a cell, or the reason why it was not run."""
    where = f"{table.name} {cell.row} {cell.column} seed {cell.seed}"
    if not cell.finished:
        return f"{where}: not run: {cell.failure}"
    values = cell.figures()
    shown = ", ".join(f"{tables.COLUMNS[name].heading} {values[name]:.3f}" for name in table.figures if name in values)
    return f"{where}: {shown}"


def _write(
    table: Table, cells: Sequence[Cell], used: Mapping[tuple[str, str], str | None], max_minutes: float | None, command: str, output: Path
) -> list[Path]:
    """Write table.json, table.md and table.tex of all finished runs."""
    runs = [
        {"row": cell.row, "column": cell.column, "seed": cell.seed, **({"figures": cell.figures()} if cell.finished else {"failure": cell.failure})}
        for cell in cells
    ]
    labels = {column: grid.column_label(table, column, max_minutes) for column in table.columns}
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
        **({"choices": {row: {column: used[row, column] for column in table.columns} for row in table.rows}} if used else {}),
        **({"split": "Validation examples"} if cells[0].config.dataset.validation else {}),
        "paper": grid.paper_figures(table, dataset),
        "others": [table.others, table.others_note],
        "runs": runs,
    }
    return record_files.write(output / "table.json", record, md=tables.markdown(record), tex=tables.latex(record))


def _settings(cells: Sequence[Cell]) -> dict[str, dict[str, str]]:
    """Settings of each row and column that differ from the defaults, as on the command line."""
    found: dict[str, dict[str, str]] = {}
    for cell in cells:
        stated = " ".join(override for override in cell.overrides if not override.startswith("data_dir="))
        found.setdefault(cell.row, {})[cell.column] = stated
    return found


def _picture(table: Table, cells: Sequence[Cell], max_minutes: float | None, output: Path) -> list[Path]:
    """Plot the latents of the test set by class: one row per column of the table (prior), methods side by side, the prior last."""
    panels, names = {}, ()
    for cell in cells:
        if cell.seed == 0 and (cell.folder / LATENTS).is_file():
            column = grid.column_label(table, cell.column, max_minutes)
            stored = read_latents(cell.folder)
            names = tuple(stored.pop("class_names"))
            arrays = {name: torch.from_numpy(value) for name, value in stored.items()}
            panels[column, table.rows[cell.row].label] = (arrays["latents"], arrays.get("labels"))
            if "prior" in arrays:
                panels[column, "prior"] = (arrays["prior"], arrays.get("prior_labels"))
    if not panels:
        return []
    rows = [grid.column_label(table, column, max_minutes) for column in table.columns]
    columns = [*(entry.label for entry in table.rows.values()), "prior"]
    title = grid.title(table, cells[0].config.dataset.name)
    return [plots.grid(output / "latents.png", rows, columns, panels, title, class_names=names or None, overwrite=True)]


def _curves(table: Table, cells: Sequence[Cell], output: Path) -> list[Path]:
    """Plot the first metric of the table against those of `table.curves`: a row of panels a data set, a line a method through its columns."""
    metric, datasets = table.figures[0], {cell.column: grid.dataset_name(cell.config.dataset.name) for cell in cells}
    panels: dict[tuple[str, str], dict[str, tuple[list[float], list[float]]]] = {}
    for row, column, cost in itertools.product(table.rows, table.columns, table.curves):
        done = [cell.figures() for cell in cells if (cell.row, cell.column) == (row, column) and cell.finished]
        found = [(figures[cost], figures[metric]) for figures in done if {cost, metric} <= figures.keys()]
        if found:
            lines = panels.setdefault((datasets[column], tables.COLUMNS[cost].heading), {})
            for line, values in zip(lines.setdefault(table.rows[row].label, ([], [])), zip(*found, strict=True), strict=True):
                line.append(statistics.fmean(values))
    if not panels:
        return []
    rows, costs = list(dict.fromkeys(datasets.values())), [tables.COLUMNS[cost].heading for cost in table.curves]
    title = grid.title(table, cells[0].config.dataset.name)
    return [plots.curves(output / "curves.png", rows, costs, panels, title, ylabel=tables.COLUMNS[metric].heading, overwrite=True)]


def _people(table: Table, cells: Sequence[Cell], output: Path) -> list[Path]:
    """For genotypes, the maps of the first column side by side."""
    first = [cell for cell in cells if cell.seed == 0 and cell.column == next(iter(table.columns)) and (cell.folder / LATENTS).is_file()]
    if not first or first[0].config.dataset.name not in genome_maps.DATASETS:
        return []
    maps = {table.rows[cell.row].label: read_latents(cell.folder)["latents"] for cell in first}
    return genome_maps.compare(first[0].config, load_dataset(first[0].config), maps, output, table.title)
