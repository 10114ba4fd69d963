"""Choice of the settings of a table's rows: train what is missing on the validation split, then write what was tried and what was best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddvi_fast import _checks, _files
from ddvi_fast.engine.run_folder import environment
from ddvi_fast.paper import choices, record_files
from ddvi_fast.paper import table_spec as grid
from ddvi_fast.paper.choices import FIRST_SEED, VALIDATION, Trial
from ddvi_fast.paper.reproduce import run_cell
from ddvi_fast.paper.table_spec import Cell, Table
from ddvi_fast.training.honoured import check_some
from ddvi_fast.training.jobs import side_by_side


def choose(
    table: str,
    overrides: Sequence[str] = (),
    *,
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
    """Try every choice of a table for every row, and write the best of each row and column to choices.json and choices.md.

    A fraction of the training examples is held out and takes the place of the test set. `reproduce` with the same `output` uses the file.

    Args:
        table: Name of a table with choices, a file of `conf/reproduce/` (str).
        overrides: Settings of all runs, ``name=value`` (list of str).
        epochs: Epochs of each run and stage (int, default: `choose_epochs` of the table, or the table's).
        max_minutes: Minutes of training of each run, instead of epochs (float, default: the table's).
        jobs: Number of runs at a time (int, default: one a core, and eight on a GPU, which runs them side by side in one process).
        rows, columns: Names of the rows and columns to choose for (list of str, default: all). Others in the file remain.
        runs: Folder of the runs (path, default `runs/reproduce`).
        output: Folder of the files (path, default: beside the runs).
        command: Command line to record (str).
        report: Function that is called with a line of text at the start and after each run.

    Returns:
        The written files.

    Raises:
        InputError: A table without choices, bad arguments or settings, a cell's folder with a run of other settings, or another call at work in
            the same folder.
    """
    spec = grid.part(grid.load(table), rows, columns)
    own_validation = next((override for override in overrides if override.startswith("dataset.validation=")), None)
    _checks.require(own_validation is None, "override", "a setting that --choose does not make itself", own_validation)
    _checks.require(bool(spec.choices), "--choose", "a table with choices", table)
    own = [column for column in spec.columns if choices.source(spec, column) == column]
    _checks.require(bool(own), "--columns", f"one of {', '.join(spec.choose_columns or ())}, on which settings are chosen", ", ".join(spec.columns))
    spec = grid.part(spec, columns=own)
    length = spec.choose_epochs if epochs is None and max_minutes is None else epochs
    folder = Path("runs/reproduce" if runs is None else runs) / spec.name
    cells = grid.cells(spec, 1, folder, overrides, length, max_minutes)  # whatever is wrong with these is not the fault of a choice
    check_some([override.partition("=")[0] for override in overrides], [cell.config for cell in cells])
    trials = [
        choices.trial(spec, row, column, choice, folder, overrides, length, max_minutes)
        for row in spec.rows
        for column in spec.columns
        for choice in spec.choices
    ]
    labels = {column: grid.column_label(spec, column, max_minutes) for column in spec.columns}
    record = _Record(spec, labels, trials, length, command, folder if output is None else Path(output))
    with _files.locked(folder, "reproduce"):
        # Choices with equal settings have one run.
        grid.check_folders([cell for trial in trials for cell in trial.cells])
        runs_of = {cell.folder: (trial, cell) for trial in trials for cell in trial.cells}
        missing = sorted((pair for pair in runs_of.values() if not pair[1].finished), key=lambda pair: pair[1].seed)
        report(f"{len(runs_of) - len(missing)} of {len(runs_of)} runs already finished")
        for number, _ in side_by_side(run_cell, [cell for _, cell in missing], jobs, cells[0].config.device):
            report(_outcome(spec, *missing[number]))
            record.write()
        return record.write()


def _outcome(table: Table, trial: Trial, cell: Cell) -> str:
    """One line with the metrics that may decide, or the reason why the run is not possible."""
    where = f"{table.name} {trial.row} {trial.column} {trial.choice} seed {cell.seed}"
    if not cell.finished:
        return f"{where}: not possible: {cell.failure}"
    found = cell.figures()
    return f"{where}: {', '.join(f'{name} {found[name]:.3f}' for name in table.choose_by if name in found)}"


class _Record:
    """What choices.json holds: the trials of this call, and those of earlier calls for other rows and columns under the same conditions."""

    def __init__(self, table: Table, columns: Mapping[str, str], trials: Sequence[Trial], epochs: int | None, command: str, output: Path) -> None:
        self.table, self.columns, self.trials, self.output = table, columns, trials, output
        self.conditions = {
            "validation": VALIDATION,
            "seeds": list(range(FIRST_SEED, FIRST_SEED + table.choose_seeds)),
            "epochs": epochs,
            "choose_by": list(table.choose_by),
            "choices": choices.stated(table),
        }
        dataset = next((trial.cells[0].config.dataset.name for trial in trials if trial.cells), table.dataset)
        about = {name: value for name, value in environment().items() if name != "command"}
        self.head = {
            "kind": choices.__name__,
            "table": table.name,
            "title": grid.title(table, dataset),
            "command": command,
            **about,
            **self.conditions,
        }
        earlier = choices.read(output, table)
        same = earlier is not None and all(earlier[name] == value for name, value in self.conditions.items())
        self.earlier: dict[str, Any] = earlier if earlier is not None and same else {"rows": {}, "columns": {}, "tried": {}, "chosen": {}}

    def write(self) -> list[Path]:
        """Write choices.json and choices.md."""
        tried = {row: dict(columns) for row, columns in self.earlier["tried"].items()}
        chosen = {row: dict(columns) for row, columns in self.earlier["chosen"].items()}
        for row, column in {(trial.row, trial.column): None for trial in self.trials}:
            outcomes = {trial.choice: trial.outcome(self._metrics()) for trial in self.trials if (trial.row, trial.column) == (row, column)}
            tried.setdefault(row, {})[column] = outcomes
            chosen.setdefault(row, {}).pop(column, None)
            if (found := choices.best(outcomes, self.table.choose_by)) is not None:
                chosen[row][column] = found
        labels = {
            "rows": {**self.earlier["rows"], **{name: entry.label for name, entry in self.table.rows.items()}},
            "columns": {**self.earlier["columns"], **self.columns},
        }
        record = {**self.head, **labels, "chosen": chosen, "tried": tried}
        return record_files.write(self.output / choices.FILE, record, md=choices.markdown(record))

    def _metrics(self) -> list[str]:
        return list(dict.fromkeys([*self.table.choose_by, *self.table.figures]))
