"""The command `ddvi-fast doctor`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddvi_fast.cli._registrations import register
from ddvi_fast.cli.arguments import Parser, dashed

if TYPE_CHECKING:
    from ddvi_fast.doctor import Finding

_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[bold red]problem[/]"}


def main(arguments: Sequence[str]) -> int:
    """Run `ddvi-fast doctor`; returns 0, or 1 if there is a problem."""
    parser = Parser(prog="ddvi-fast doctor", description="Check the installation and suggest fixes.")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--quick", action="store_true", help="leave the self-test out")
    parser.add_argument("--data-dir", metavar="PATH", help="folder of the data sets (default DDVI_FAST_DATA)")
    options = parser.parse_args(list(dashed(arguments, ["data_dir"])))
    register()
    from ddvi_fast.doctor import inspect, self_test

    found = [*inspect(options.data_dir), *([] if options.quick else self_test())]
    healthy = all(finding.status != "problem" for finding in found)
    if options.json:
        print(json.dumps({"healthy": healthy, "findings": [dataclasses.asdict(finding) for finding in found]}, indent=2))
    else:
        _print(found)
    return 0 if healthy else 1


def _print(findings: Sequence[Finding]) -> None:
    """Print a table for each section, with advice below each finding that is not ok, and a summary."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for section in dict.fromkeys(finding.section for finding in findings):
        table = Table(title=escape(section), title_justify="left", box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in (finding for finding in findings if finding.section == section):
            advice = f"\n[dim]→ {escape(finding.advice)}[/]" if finding.advice else ""
            table.add_row(_MARKS[finding.status], escape(finding.name), escape(finding.detail) + advice)
        console.print(table, "")
    problems = [finding.name for finding in findings if finding.status == "problem"]
    console.print(f"[bold red]{len(problems)} to fix: {escape(', '.join(problems))}[/]" if problems else "[green]no problem found[/]")
