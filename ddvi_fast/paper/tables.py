"""Reproduced tables in Markdown and LaTeX."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# name in evaluation.json -> heading; nats per example where nothing else is said
COLUMNS = {
    "evidence": "evidence",
    "evidence_blurred": "evidence, prior blurred",
    "elbo": "ELBO",
    "iwae": "IWAE",
    "gap": "gap",
    "elbo_blurred": "ELBO, prior blurred",
    "gap_blurred": "gap, prior blurred",
    "class_accuracy": "accuracy",
    "purity": "purity",
    "purity_mixture": "purity, mixture",
    "completeness": "completeness",
    "completeness_mixture": "completeness, mixture",
    "nmi": "NMI",
    "nmi_mixture": "NMI, mixture",
    "knn_accuracy": "KNN accuracy",
    "latent_nll": "latent NLL",
    "latent_nll_narrow": "latent NLL, narrow",
    "mmd": "MMD",
    "elbo_released": "released ELBO",
    "seconds": "seconds",
    "cpu_seconds": "CPU seconds",
}
# name -> digits, and whether higher is better (None: not compared)
_SHOWN: dict[str, tuple[int, bool | None]] = {
    "evidence": (2, True),
    "evidence_blurred": (2, True),
    "elbo": (2, True),
    "iwae": (2, True),
    "gap": (2, False),
    "elbo_blurred": (2, True),
    "gap_blurred": (2, False),
    "class_accuracy": (3, True),
    "purity": (3, True),
    "purity_mixture": (3, True),
    "completeness": (3, True),
    "completeness_mixture": (3, True),
    "nmi": (3, True),
    "nmi_mixture": (3, True),
    "knn_accuracy": (3, True),
    "latent_nll": (2, False),
    "latent_nll_narrow": (2, False),
    "mmd": (3, False),
    "elbo_released": (2, True),
    "seconds": (0, None),
    "cpu_seconds": (0, None),
}
# our figure -> the paper's of the same kind
PAPER = {"elbo_released": "elbo", "mmd": "mmd", "latent_nll": "latent_nll", "class_accuracy": "accuracy"}
PAPER |= {name: name for name in ("evidence_blurred", "latent_nll_narrow", "knn_accuracy", "seconds")}  # measured with the released code
PAPER |= {f"{name}_mixture": name for name in ("purity", "completeness", "nmi")}  # the released code's rule of clusters


class Summary(NamedTuple):
    """Mean of `count` runs, and half the width of its 95% interval; None for a single run."""

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
    """A reproduced table (what table.json holds) in Markdown: the best mean of a column's methods in bold, the paper's figure beside ours."""
    seeds = len({run["seed"] for run in record["runs"]})
    lines = [
        f"# {record['title']}",
        "",
        "Test set, nats per example; mean and 95% interval by Student's t over " + (f"{seeds} seeds." if seeds > 1 else "one seed: no interval."),
        *_explanations(record),
        f"`{record['command']}`, commit {str(record.get('commit'))[:10]}, torch {record['versions']['torch']}.",
        "",
    ]
    headings, rows = _body(record, lambda text: f"**{text}**", "±")
    lines += [f"| {' | '.join(headings)} |", f"| {' | '.join('---' for _ in headings)} |", *(f"| {' | '.join(row)} |" for row in rows)]
    failures = sorted({f"- {run['row']}, {run['column']}: {run['failure']}" for run in record["runs"] if run.get("failure")})
    missing = _missing(record)
    lines += ["", "Not run:", "", *failures] if failures else []
    lines += ["", "Not finished:", "", *missing] if missing else []
    return "\n".join(lines) + "\n"


def _missing(record: Mapping[str, Any]) -> list[str]:
    """Rows some of whose seeds are still to be run."""
    told = []
    for row in record["rows"]:
        counts = [
            len([run for run in record["runs"] if (run["row"], run["column"]) == (row, column) and not (run.get("figures") or run.get("failure"))])
            for column in record["columns"]
        ]
        told += [f"- {record['rows'][row]}: {sum(counts)} of its runs, {max(counts)} a column at most"] if any(counts) else []
    return told


def _explanations(record: Mapping[str, Any]) -> list[str]:
    """What the headings of this table do not say."""
    lines = ["ELBO is a bound in nats, released ELBO the paper's scale (pixel averages; no bound)."] if "elbo_released" in record["figures"] else []
    lines += [record["others"][1]] if record["paper"] else []
    return lines + ([record["note"]] if record["note"] else [])


def latex(record: Mapping[str, Any]) -> str:
    """The same table in LaTeX; needs the package booktabs."""
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
    """Headings, and the cells of each (column, row) of the record: our figures, each with the paper's beside it where it has one."""
    shown = [name for name in record["figures"] if any(name in run.get("figures", {}) for run in record["runs"])]
    compared = {name for name in shown if any(PAPER.get(name) in entry for row in record["paper"].values() for entry in row.values())}
    headings = ["", "method"] + [text for name in shown for text in (COLUMNS[name], *([record["others"][0]] if name in compared else []))]
    rows = []
    for column, label in record["columns"].items():
        summaries = {row: _summaries(record, row, column, shown) for row in record["rows"]}
        for row, method in record["rows"].items():
            cells = [label, method]
            for name in shown:
                cells.append(_cell(name, row, summaries, strong, sign))
                if name in compared:
                    cells.append(_other(record["paper"].get(row, {}).get(column, {}).get(PAPER[name]), min(2, _SHOWN[name][0]), sign))
            rows.append(cells)
    return headings, rows


def _summaries(record: Mapping[str, Any], row: str, column: str, names: Sequence[str]) -> dict[str, Summary]:
    found = [run["figures"] for run in record["runs"] if (run["row"], run["column"]) == (row, column) and "figures" in run]
    return {name: summarise([figures[name] for figures in found if name in figures]) for name in names if any(name in figures for figures in found)}


def _cell(name: str, row: str, summaries: Mapping[str, Mapping[str, Summary]], strong: Callable[[str], str], sign: str) -> str:
    if name not in summaries[row]:
        return "-"
    digits, higher = _SHOWN[name]
    own = summaries[row][name]
    text = f"{own.mean:.{digits}f}" + ("" if own.half is None else f" {sign} {own.half:.{digits}f}")
    means = [other[name].mean for other in summaries.values() if name in other]
    return strong(text) if higher is not None and len(means) > 1 and own.mean == (max if higher else min)(means) else text


def _other(value: Sequence[float] | None, digits: int, sign: str) -> str:
    return "-" if value is None else f" {sign} ".join(f"{number:.{digits}f}" for number in value)


def _escaped(text: str) -> str:
    return text.replace("%", r"\%").replace("_", r"\_").replace("&", r"\&")
