"""Table of a device check: its parts, then every timing with its shares of the ceilings."""

from __future__ import annotations

from typing import Any

from bench import report
from bench.records import goal_lines, timed_cases
from ddvi_fast import _markdown

WORDS = {True: "passed", False: "FAILED", None: "-"}


def markdown(record: dict[str, Any]) -> str:
    """Format the record of a device check as Markdown."""
    versions, small = record["versions"], ", small sizes" if record["quick"] else ""
    made = f"torch {versions['torch']}, Triton {versions.get('triton')}, commit {str(record.get('commit'))[:10]}, {record['seconds']:.0f} s{small}"
    parts = [[name, WORDS[part["ok"]], f"{part['seconds']:.0f}", part["summary"]] for name, part in record["parts"].items()]
    outcomes = [part["ok"] for part in record["parts"].values()]
    run = sum(outcome is not None for outcome in outcomes)
    made += f"; parts: {run} run, {outcomes.count(True)} passed, {len(outcomes) - run} not run or not finished"
    lines = [f"# Device check on {record['device']}", "", made, "", _markdown.table(("part", "outcome", "seconds", ""), parts)]
    ceilings, timed = timed_cases(record)
    if timed:
        lines += ["", _markdown.table(report.HEADINGS, report.rows({"cases": timed, "ceilings": ceilings}))]
        lines += [] if record["quick"] else ["", *goal_lines(record)]
    return "\n".join(lines) + "\n"
