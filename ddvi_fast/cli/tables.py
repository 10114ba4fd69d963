"""Metrics of runs as tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ddvi_fast.paper.tables import COLUMNS
from ddvi_fast.training.run import Result

_WIDEST = 250  # columns of a table that is not printed to a terminal


def print_result(result: Result) -> None:
    """Print the metrics of one run and the paths of its pictures."""
    judged = "validation examples" if result.folder.config["dataset"].get("validation") else "test set"
    print_table([(result.folder.path.name, result.metrics)], f"{judged}, nats per example")
    if "elbo" not in result.metrics and "latent_nll" in result.metrics:
        print("no ELBO, IWAE or gap: this posterior has no density and hence no bound; the other columns judge its samples")
    print(f"run folder: {result.folder.path}")
    for path in result.figures:
        print(f"figure: {path}")


def print_table(rows: Sequence[tuple[str, Mapping[str, float]]], title: str = "test set, nats per example") -> None:
    """Print rows of metrics below their headings, or beside them if the terminal is too narrow; columns without values are left out."""
    from rich.console import Console

    shown = [name for name in COLUMNS if any(name in metrics for _, metrics in rows)]
    cells = [[f"{metrics[name]:.3f}" if name in metrics else "-" for name in shown] for _, metrics in rows]
    labels, headings = [label for label, _ in rows], [COLUMNS[name].heading for name in shown]
    console, wide = Console(), Console(width=_WIDEST)
    table = _grid(title, labels, headings, cells)
    if console.is_terminal and wide.measure(table).maximum > console.width:
        table = _grid(title, headings, labels, list(zip(*cells, strict=True)))
    (console if console.is_terminal else wide).print(table)


def _grid(title: str, labels: Sequence[str], headings: Sequence[str], cells: Sequence[Sequence[str]]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(escape(heading), justify="right", no_wrap=True)
    for label, row in zip(labels, cells, strict=True):
        table.add_row(escape(label), *row)
    return table
