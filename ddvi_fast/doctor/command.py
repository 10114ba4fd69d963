"""The command, and how findings are shown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from ddvi_fast import _checks
from ddvi_fast.doctor.findings import Finding
from ddvi_fast.doctor.inspection import inspect
from ddvi_fast.doctor.selftest import self_test

_OPTIONS = ("--json", "--quick")
_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[bold red]problem[/]"}


def main(arguments: Sequence[str]) -> int:
    """`ddvi-fast doctor [--json] [--quick] [data_dir=PATH]`; 0, or 1 if there is a problem. ``--quick`` leaves the self-test out."""
    data_dir = None
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if sign:
            _checks.choice(name, ("data_dir",), "option")
            data_dir = value
        else:
            _checks.choice(argument, _OPTIONS, "option")
    found = [*inspect(data_dir), *([] if "--quick" in arguments else self_test())]
    healthy = all(finding.status != "problem" for finding in found)
    if "--json" in arguments:
        print(json.dumps({"healthy": healthy, "findings": [dataclasses.asdict(finding) for finding in found]}, indent=2))
    else:
        show(found)
    return 0 if healthy else 1


def show(findings: Sequence[Finding]) -> None:
    """One table a section, what to do below each thing that is not well, and a last line that says how it is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for section in dict.fromkeys(finding.section for finding in findings):
        table = Table(title=section, title_justify="left", box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in (finding for finding in findings if finding.section == section):
            advice = f"\n[dim]→ {escape(finding.advice)}[/]" if finding.advice else ""
            table.add_row(_MARKS[finding.status], finding.name, escape(finding.detail) + advice)
        console.print(table, "")
    problems = [finding for finding in findings if finding.status == "problem"]
    console.print(f"[bold red]{len(problems)} to mend: {', '.join(finding.name for finding in problems)}[/]" if problems else "[green]all is well[/]")
