"""Settings of a table's rows that were chosen on a validation split: what was tried, what was best, and the file that says so.

The same settings are tried for every row. A part of the training examples takes the place of the test set, so that no test example has a
part in the choice.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddvi_fast import _checks, _files, _markdown
from ddvi_fast._checks import InputError
from ddvi_fast.paper import table_spec as grid
from ddvi_fast.paper.table_spec import Cell, Table
from ddvi_fast.paper.tables import COLUMNS
from ddvi_fast.recipes.settings import check_settings

FILE = "choices.json"
VALIDATION = 0.2  # fraction of the training examples that is held out
FIRST_SEED = 1000  # seeds of the runs that choose, which no table uses


class Trial(NamedTuple):
    """One of the choices for a row and a column: its runs, or the reason why it is not possible."""

    row: str
    column: str
    choice: str
    cells: Sequence[Cell]
    reason: str | None

    def outcome(self, names: Sequence[str]) -> dict[str, Any]:
        """Mean metrics `names` of the runs; the reason why one of them is not possible; or the number of those that are not finished."""
        reason = self.reason or next((cell.failure for cell in self.cells if cell.failure is not None), None)
        if reason is not None:
            return {"not_possible": reason}
        found = [cell.figures() for cell in self.cells if cell.finished]
        if len(found) < len(self.cells):
            return {"unfinished": len(self.cells) - len(found)}
        return {"figures": {name: statistics.fmean(run[name] for run in found) for name in names if all(name in run for run in found)}}


def trial(
    table: Table, row: str, column: str, choice: str, folder: Path, overrides: Sequence[str], epochs: int | None, max_minutes: float | None
) -> Trial:
    """The trial of a choice: runs on the validation split, or the reason why the row's method does not have its settings."""
    stated, one = table.choices[choice].overrides, grid.part(table, [row], [column])
    held_out = [*overrides, f"dataset.validation={VALIDATION}"]
    try:
        cells = grid.cells(one, table.choose_seeds, folder, held_out, epochs, max_minutes, {(row, column): stated}, FIRST_SEED)
        check_settings([override.partition("=")[0] for override in stated], cells[0].config)
    except InputError as error:
        return Trial(row, column, choice, (), str(error))
    return Trial(row, column, choice, cells, None)


def best(tried: Mapping[str, Mapping[str, Any]], choose_by: Sequence[str]) -> dict[str, Any] | None:
    """The best of the choices that were tried for one row and column, by the first of the metrics that all of them have.

    Args:
        tried: `Trial.outcome` of each choice.
        choose_by: Names of metrics in order of preference.

    Returns:
        The name of the choice (None if none is possible), the metric and the number of possible choices; None as long as runs are missing,
        or if there is no metric that all of them have.

    Example:
        >>> best({"a": {"figures": {"elbo": -9.0}}, "b": {"figures": {"elbo": -7.0}}, "c": {"not_possible": "no chain"}}, ["elbo"])
        {'choice': 'b', 'by': 'elbo', 'tried': 2}
    """
    possible = {name: outcome for name, outcome in tried.items() if "not_possible" not in outcome}
    if not possible:
        return {"choice": None, "by": None, "tried": 0}
    common = [by for by in choose_by if all(by in outcome.get("figures", {}) for outcome in possible.values())]
    if not common:
        return None
    values = {name: outcome["figures"][common[0]] for name, outcome in possible.items()}
    return {"choice": max(values, key=lambda name: _worth(values[name], common[0])), "by": common[0], "tried": len(possible)}


def _worth(value: float, metric: str) -> float:
    if not math.isfinite(value):
        return -math.inf
    return value if COLUMNS[metric].higher else -value


def read(folder: Path, table: Table) -> dict[str, Any] | None:
    """The record of `FILE` in a folder; None without one, or if the table has no choices.

    Raises:
        InputError: The file is of a table with other choices.
    """
    path = folder / FILE
    if not table.choices or not path.is_file():
        return None
    hint = f"`ddvi-fast reproduce {table.name} --choose` chooses anew where this file is removed"
    record = _files.read_json(path, hint)
    _checks.require(record.get("choices") == stated(table), str(path), f"the choices of this version of the table {table.name}", "others", hint)
    whole = all(isinstance(record.get(name), dict) for name in ("rows", "columns", "tried", "chosen"))
    _checks.require(whole, str(path), "rows, columns, tried and chosen settings", "something else", hint)
    return record


def stated(table: Table) -> dict[str, str]:
    """Settings of each choice, as on the command line."""
    return {name: " ".join(entry.overrides) for name, entry in table.choices.items()}


def source(table: Table, column: str) -> str:
    """The column on which the settings of `column` are chosen."""
    return column if table.choose_columns is None or column in table.choose_columns else table.choose_columns[0]


def used(table: Table, record: Mapping[str, Any] | None) -> dict[tuple[str, str], str | None]:
    """The choice of each row and column: the one of the record, else the first that the row's method has; None for the row's own settings."""
    found: dict[tuple[str, str], str | None] = {}
    for row, column in ((row, column) for row in table.rows for column in table.columns if table.choices):
        chosen = _chosen(record, row, source(table, column))
        found[row, column] = _first(table, row, column) if chosen is None else chosen["choice"]
    return found


def _chosen(record: Mapping[str, Any] | None, row: str, column: str) -> dict[str, Any] | None:
    return None if record is None else record["chosen"].get(row, {}).get(column)


def _first(table: Table, row: str, column: str) -> str | None:
    name = next(iter(table.choices))
    return name if trial(table, row, column, name, Path(), (), None, None).reason is None else None


def note(table: Table, record: Mapping[str, Any] | None) -> str:
    """Sentences about how the settings of a table were chosen; empty for a table without choices."""
    if not table.choices:
        return ""
    count, first = len(table.choices), next(iter(table.choices.values())).label
    listed = ", ".join(entry.label for entry in table.choices.values())
    if record is None:
        return f"No settings were chosen: every method has the first of {count} ({listed})."
    each = "For every method and column" if table.choose_columns is None else f"For every method, on {' and '.join(table.choose_columns)},"
    lines = [f"{each} one of {count} settings ({listed}) was chosen: {description(record)}.", _counts(table, record)]
    missing = [
        f"{entry.label} ({table.columns[column].label})"
        for row, entry in table.rows.items()
        for column in table.columns
        if _chosen(record, row, source(table, column)) is None
    ]
    return " ".join([*lines, *([f"Nothing was chosen for {', '.join(missing)}: the first setting, {first}, is used."] if missing else [])])


def description(record: Mapping[str, Any]) -> str:
    """The rule of the choice in words, and the runs that chose."""
    by = ", or else ".join(COLUMNS[name].heading for name in record["choose_by"])
    seeds = " and ".join(str(seed) for seed in record["seeds"])
    length = "as long as the table's" if record["epochs"] is None else f"of {record['epochs']} epochs"
    return (
        f"the best by {by} on a validation split, {record['validation']:g} of the training examples; "
        f"test examples have no part in it (runs {length}, seed {seeds})"
    )


def _counts(table: Table, record: Mapping[str, Any]) -> str:
    """How many settings were tried for each method."""
    counts = {row: sorted({entry["tried"] for entry in record["chosen"].get(row, {}).values()}) for row in table.rows}
    if all(numbers == [len(table.choices)] for numbers in counts.values()):
        return "All of them were tried for every method."
    told = [f"{table.rows[row].label} {' or '.join(str(number) for number in numbers)}" for row, numbers in counts.items() if numbers]
    return f"Settings tried, where the method has them: {', '.join(told)}."


def markdown(record: Mapping[str, Any]) -> str:
    """The record in Markdown: the deciding metric of every choice, the best one bold, and the reasons why others are not possible."""
    headings = ["", "method", "by", *record["choices"], "tried"]
    rows, reasons = [], []
    for row, columns in record["tried"].items():
        for column, tried in columns.items():
            chosen = _chosen(record, row, column) or {"choice": None, "by": record["choose_by"][0], "tried": "-"}
            cells = [_cell(tried[name], chosen["by"], name == chosen["choice"]) for name in record["choices"]]
            heading = COLUMNS[chosen["by"]].heading if chosen["by"] else "-"
            rows.append([record["columns"][column], record["rows"][row], heading, *cells, chosen["tried"]])
            reasons += [
                f"- {record['rows'][row]}, {record['columns'][column]}, {name}: {tried[name]['not_possible']}"
                for name in record["choices"]
                if "not_possible" in tried[name]
            ]
    settings = [f"- {name}: {f'`{text}`' if text else 'as the table has it'}" for name, text in record["choices"].items()]
    lines = [f"# {record['title']}: choice of settings", "", f"In bold: {description(record)}.", "", *settings, "", _markdown.table(headings, rows)]
    return "\n".join([*lines, *(["", "Not possible:", "", *reasons] if reasons else [])]) + "\n"


def _cell(outcome: Mapping[str, Any], by: str | None, strong: bool) -> str:
    if "figures" not in outcome:
        return "not possible" if "not_possible" in outcome else "not finished"
    if by not in outcome["figures"]:
        return "-"
    text = f"{outcome['figures'][by]:.{COLUMNS[by].digits}f}"
    return f"**{text}**" if strong else text
