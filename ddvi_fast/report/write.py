"""Writer of the report on runs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ddvi_fast import _checks, _files
from ddvi_fast.report import page, sections
from ddvi_fast.report.runs import read_run

DEFAULT = "report.html"
MOST = 20  # more curves cannot be distinguished
_SECTIONS = {
    "runs": sections.overview,
    "settings": sections.settings,
    "metrics": sections.metrics,
    "learning": sections.learning,
    "bound": sections.bound,
    "gap": sections.gap,
    "maps": sections.pictures,
    "cost": sections.cost,
}


def write_report(folders: Sequence[str | Path], output: str | Path = DEFAULT, *, overwrite: bool = False) -> Path:
    """Write one HTML file that compares runs: settings, metrics, learning curves, bound, gap, maps, cost.

    Bound, gap and cost are computed from the data and weights of the runs; where these are missing the report says so.

    Args:
        folders: Folders of 1 to 20 runs.
        output: File to write (default ``report.html``).
        overwrite: Whether to replace the file (bool, default False).

    Raises:
        InputError: There is no run, a folder is not that of a run, or the file exists.
    """
    output = Path(output)
    _checks.require(1 <= len(folders) <= MOST, "report", f"from 1 to {MOST} folders of runs", len(folders))
    _checks.require(overwrite or not output.exists(), "output", "a new file", str(output), "--overwrite replaces it")
    runs = [read_run(folder) for folder in folders]
    measured = [sections.measure(run, number) for number, run in enumerate(runs)]
    parts = {name: text for name, section in _SECTIONS.items() if (text := section(measured))}
    title = sections.title(runs)
    links = "".join(f'<a href="#{name}">{name}</a>' for name in parts)
    _files.write_text(output, page.page(title, [f"<h1>{escape(title)}</h1>", f"<nav>{links}</nav>", *parts.values()]))
    return output
