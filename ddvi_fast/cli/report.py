"""The command `ddvi-fast report`."""

from __future__ import annotations

from collections.abc import Sequence

from ddvi_fast.cli._registrations import register
from ddvi_fast.cli.arguments import Parser, dashed


def main(arguments: Sequence[str]) -> None:
    """Run `ddvi-fast report`."""
    parser = Parser(prog="ddvi-fast report", description="Compare runs in one HTML file: settings, metrics, learning curves, bound, maps, cost.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders of 1 to 20 runs")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="file to write (default report.html)")
    parser.add_argument("--overwrite", action="store_true", help="replace that file")
    options = parser.parse_intermixed_args(list(dashed(arguments, ["output", "overwrite"])))
    register()
    from ddvi_fast.report import write_report

    print(write_report(options.runs, options.output, overwrite=options.overwrite))
