"""Reproduced tables in Markdown and LaTeX."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ddvi_fast import _markdown


class Column(NamedTuple):
    """A column of a results table.

    Args:
        heading: Heading of the column; nats per example where it states no unit.
        digits: Digits after the point.
        higher: Whether higher is better; None if methods are not compared.
        paper: Name of the paper's metric of the same kind, in `conf/paper_tables.yaml`.
    """

    heading: str
    digits: int = 2
    higher: bool | None = True
    paper: str | None = None


# Columns by the metric's name in evaluation.json. `evidence_blurred` and the metrics below it with a name of their own were measured with
# the released code; `*_mixture` is its rule of clusters.
COLUMNS = {
    "evidence": Column("evidence"),
    "evidence_blurred": Column("evidence, prior blurred", paper="evidence_blurred"),
    "elbo": Column("ELBO"),
    "iwae": Column("IWAE"),
    "nll": Column("NLL", higher=False, paper="nll"),
    "gap": Column("gap", higher=False),
    "gap_amortisation": Column("gap, amortisation", higher=False),
    "gap_family": Column("gap, family", higher=False),
    "gap_steps": Column("gap, steps", higher=False),
    "elbo_blurred": Column("ELBO, prior blurred"),
    "gap_blurred": Column("gap, prior blurred", higher=False),
    "class_accuracy": Column("accuracy", 3, paper="accuracy"),
    "purity": Column("purity", 3),
    "purity_mixture": Column("purity, mixture", 3, paper="purity"),
    "completeness": Column("completeness", 3),
    "completeness_mixture": Column("completeness, mixture", 3, paper="completeness"),
    "nmi": Column("NMI", 3),
    "nmi_mixture": Column("NMI, mixture", 3, paper="nmi"),
    "knn_accuracy": Column("KNN accuracy", 3, paper="knn_accuracy"),
    "latent_nll": Column("latent NLL", higher=False, paper="latent_nll"),
    "latent_nll_narrow": Column("latent NLL, narrow", higher=False, paper="latent_nll_narrow"),
    "mmd": Column("MMD", 3, False, paper="mmd"),
    "elbo_released": Column("released ELBO", paper="elbo"),
    "seconds": Column("seconds", 0, None, paper="seconds"),
    "decoder_rows": Column("decoder rows", 0, None),
    "cpu_seconds": Column("CPU seconds", 0, None),
}


class Summary(NamedTuple):
    """Mean of `count` runs, and half the width of its 95% interval (None for a single run)."""

    mean: float
    half: float | None
    count: int


def summarise(values: Sequence[float]) -> Summary:
    """Mean and 95% interval by Student's t over runs.

    Example:
        >>> summary = summarise([1.0, 2.0, 3.0])
        >>> summary.mean, round(summary.half, 4)
        (2.0, 2.4841)
    """
    from scipy.stats import t

    mean = statistics.fmean(values)
    if len(values) < 2:
        return Summary(mean, None, len(values))
    return Summary(mean, float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values)), len(values))


def markdown(record: Mapping[str, Any]) -> str:
    """A reproduced table in Markdown, from the contents of its table.json; the best mean of each column is bold, the paper's metric beside ours."""
    seeds = len({run["seed"] for run in record["runs"]})
    lines = [
        f"# {record['title']}",
        "",
        f"{record.get('split', 'Test set')}, nats per example; mean and 95% interval by Student's t over "
        + (f"{seeds} seeds." if seeds > 1 else "one seed: no interval."),
        *_explanations(record),
        f"`{record['command']}`, commit {(record.get('commit') or 'unknown')[:10]}, torch {record['versions']['torch']}.",
        "",
    ]
    headings, rows = _body(record, lambda text: f"**{text}**", "±")
    lines.append(_markdown.table(headings, rows))
    failures = sorted({f"- {run['row']}, {run['column']}: {run['failure']}" for run in record["runs"] if run.get("failure")})
    missing = _missing(record)
    lines += ["", "Not run:", "", *failures] if failures else []
    lines += ["", "Not finished:", "", *missing] if missing else []
    return "\n".join(lines) + "\n"


def _missing(record: Mapping[str, Any]) -> list[str]:
    """Lines about rows with runs that are not finished."""
    told = []
    for row in record["rows"]:
        counts = [
            len([run for run in record["runs"] if (run["row"], run["column"]) == (row, column) and not (run.get("figures") or run.get("failure"))])
            for column in record["columns"]
        ]
        told += [f"- {record['rows'][row]}: {sum(counts)} of its runs, {max(counts)} a column at most"] if any(counts) else []
    return told


def _explanations(record: Mapping[str, Any]) -> list[str]:
    """Sentences that explain the headings."""
    lines = ["ELBO is a bound in nats, released ELBO the paper's scale (pixel averages; no bound)."] if "elbo_released" in record["figures"] else []
    lines += [record["others"][1]] if record["paper"] else []
    return lines + ([record["note"]] if record["note"] else [])


def latex(record: Mapping[str, Any]) -> str:
    """A reproduced table in LaTeX, for the package booktabs."""
    headings, rows = _body(record, lambda text: rf"\textbf{{{text}}}", r"$\pm$")

    def line(cells: Sequence[str]) -> str:
        return " & ".join(_escaped(cell) for cell in cells) + r" \\"

    body, before = [], None
    for row in rows:
        body += [r"\midrule"] if row[0] != before else []
        before = row[0]
        body.append(line(row))
    head = [rf"% {record['title']}; {record['command']}", rf"\begin{{tabular}}{{ll{'r' * (len(headings) - 2)}}}", r"\toprule", line(headings)]
    return "\n".join([*head, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _body(record: Mapping[str, Any], strong: Callable[[str], str], sign: str) -> tuple[list[str], list[list[str]]]:
    """Headings, and the cells of each (column, row) of the record: our metrics, each with the paper's beside it where it has one."""
    shown = [name for name in record["figures"] if any(name in run.get("figures", {}) for run in record["runs"])]
    compared = {name for name in shown if any(COLUMNS[name].paper in entry for row in record["paper"].values() for entry in row.values())}
    headings = ["", "method"] + [text for name in shown for text in (COLUMNS[name].heading, *([record["others"][0]] if name in compared else []))]
    rows = []
    for column, label in record["columns"].items():
        summaries = {row: _summaries(record, row, column, shown) for row in record["rows"]}
        for row, method in record["rows"].items():
            cells = [label, method]
            for name in shown:
                cells.append(_cell(name, row, summaries, strong, sign))
                if name in compared:
                    stated = record["paper"].get(row, {}).get(column, {})
                    cells.append(_other(stated.get(COLUMNS[name].paper), min(2, COLUMNS[name].digits), sign))
            rows.append(cells)
    return headings, rows


def _summaries(record: Mapping[str, Any], row: str, column: str, names: Sequence[str]) -> dict[str, Summary]:
    found = [run["figures"] for run in record["runs"] if (run["row"], run["column"]) == (row, column) and "figures" in run]
    return {name: summarise([figures[name] for figures in found if name in figures]) for name in names if any(name in figures for figures in found)}


def _cell(name: str, row: str, summaries: Mapping[str, Mapping[str, Summary]], strong: Callable[[str], str], sign: str) -> str:
    if name not in summaries[row]:
        return "-"
    _, digits, higher, _ = COLUMNS[name]
    own = summaries[row][name]
    text = f"{own.mean:.{digits}f}" + ("" if own.half is None else f" {sign} {own.half:.{digits}f}")
    means = [other[name].mean for other in summaries.values() if name in other]
    return strong(text) if higher is not None and len(means) > 1 and own.mean == (max if higher else min)(means) else text


def _other(value: Sequence[float] | None, digits: int, sign: str) -> str:
    return "-" if value is None else f" {sign} ".join(f"{number:.{digits}f}" for number in value)


def _escaped(text: str) -> str:
    return text.replace("%", r"\%").replace("_", r"\_").replace("&", r"\&")
