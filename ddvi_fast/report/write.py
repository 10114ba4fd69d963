"""Writer of the report on runs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ddvi_fast import _checks, _files
from ddvi_fast.report import page, sections
from ddvi_fast.report.runs import read_run

DEFAULT = "report.html"
MOST = 20  # more curves cannot be told apart
_LINKS = {
    "runs": "runs",
    "settings": "settings",
    "figures": "figures of merit",
    "learning": "learning curves",
    "bound": "bound",
    "maps": "maps",
    "cost": "cost",
}


def write_report(folders: Sequence[str | Path], output: str | Path = DEFAULT, *, overwrite: bool = False) -> Path:
    """Write one HTML file that compares runs: settings, figures of merit, learning curves, bound, maps, cost.

    Bound and cost need the runs' data and weights, and are computed here; where these are missing the page says so.

    Args:
        folders: of at least one run, at most 20.
        output: the file.

    Raises:
        InputError: no run, a folder that is none, or a file that stands there.
    """
    output = Path(output)
    _checks.require(1 <= len(folders) <= MOST, "report", f"from 1 to {MOST} folders of runs", len(folders))
    _checks.require(overwrite or not output.exists(), "output", "a new file", str(output), "--overwrite replaces it")
    runs = [read_run(folder) for folder in folders]
    measured, colours = [sections.measure(run) for run in runs], sections.colours_of(runs)
    parts = {
        "runs": sections.overview(runs),
        "settings": sections.settings(runs),
        "figures": sections.figures_of_merit(runs),
        "learning": sections.learning(runs, colours),
        "bound": sections.bound(runs, measured, colours),
        "maps": sections.pictures(runs),
        "cost": sections.cost(runs, measured),
    }
    title = sections.titled(runs)
    links = "".join(f'<a href="#{name}">{text}</a>' for name, text in _LINKS.items() if parts[name])
    body = [f"<h1>{escape(title)}</h1>", f"<nav>{links}</nav>", *(part for part in parts.values() if part)]
    _files.write_text(output, page.page(title, body))
    return output
