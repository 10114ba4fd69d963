"""Results files: reading and writing, and rates, shares of ceilings, ratios and goals computed from them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddvi_fast import _json, _markdown

RESULTS = Path(__file__).resolve().parent / "results"
# A record's kind is the module whose function `markdown(record)` makes its table.
KIND, DEVICE_KIND, TABLE_KIND = "bench.report", "bench.device.table", "bench.records"
# Goals on a large GPU: case, provider, kind of work, share of the ceiling.
ROOFLINES = (
    ("chain N=65536 T=40 D=2 C=2 H=128 ancestral forward", "ours_bf16", "flops", 0.4),
    ("kde N=8192 M=10000 D=2 forward+backward", "ours", "exponentials", 0.5),
    ("noise N=16777216 D=2 forward", "ours", "bytes", 0.8),
)
SPEEDUPS = {"eager": 50.0, "compiled": 5.0}  # goals of the training step
_NARROW = {"ours_bf16": "bf16"}  # precision of a provider's matrix products, where it is not float32


def write(path: Path, record: dict[str, Any]) -> str:
    """Write a record as JSON, and its table beside it as Markdown; returns the Markdown."""
    text = markdown_of(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, contents in ((path, f"{_json.lines(record)}\n"), (path.with_suffix(".md"), text)):
        fresh = target.with_name(f".{target.name}.partial")  # a process that is stopped while it writes leaves the earlier file
        fresh.write_text(contents, encoding="utf-8")
        fresh.replace(target)
    return text


def keep_cell(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Compute a cell of a module of bench.studies and write it, with commit and processor; None where the file exists already."""
    from ddvi_fast.engine.run_folder import environment

    if path.exists():
        return None
    made, found = environment(), compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**found, "commit": made["commit"], "processor": made["machine"]["processor"]}))
    return found


def add_cells(study: str, folder: Path, keys: tuple[str, ...], results: Path = RESULTS) -> None:
    """Add the cells of a folder, one a file, to the results of a module of bench.studies, in place of earlier ones with equal keys."""
    path = results / f"{study}.json"
    known = [*(read(path)["cells"] if path.is_file() else []), *(read(cell) for cell in sorted(folder.glob("*.json")))]
    merged = {tuple(cell[key] for key in keys): cell for cell in known}
    write(path, {"kind": f"bench.studies.{study}", "cells": [merged[key] for key in sorted(merged)]})


def read(path: Path) -> dict[str, Any]:
    """Read a record."""
    return json.loads(path.read_text(encoding="utf-8"))


def all_records(folder: Path = RESULTS) -> dict[Path, dict[str, Any]]:
    """All records of a folder by path: those of the benchmarks and studies, and the tables and choices of `ddvi-fast reproduce`."""
    return {path: read(path) for path in sorted([*folder.glob("*.json"), *folder.glob("*/table.json"), *folder.glob("*/choices.json")])}


def markdown_of(record: dict[str, Any]) -> str:
    """The table of any record, as Markdown."""
    return importlib.import_module(record.get("kind", "ddvi_fast.paper.tables")).markdown(record)


def markdown(record: dict[str, Any]) -> str:
    """The table of a record that holds `headings`, `formats` (format specifications such as ``.3f``) and `rows`."""
    rows = [[format(value, spec) for value, spec in zip(row, record["formats"], strict=True)] for row in record["rows"]]
    return "\n".join([f"# {record['title']}", "", source(record), *record["about"], "", _markdown.table(record["headings"], rows), ""])


def source(record: dict[str, Any]) -> str:
    """One line: command, commit, processor and version of torch."""
    made = f"`{record['command']}`, commit {str(record.get('commit'))[:10]}"
    return f"{made}, {record['machine']['processor']}, torch {record['versions']['torch']}."


def fractions(case: dict[str, Any], provider: str, ceilings: dict[str, float]) -> dict[str, tuple[float, float]]:
    """For each kind of work: the rate a second, and its share of the ceiling."""
    seconds = case["results"][provider]["median"] / 1000
    kind = _NARROW.get(provider, "float32")
    operations = ceilings.get(f"peak_{kind}") or ceilings.get(f"matmul_{kind}") or ceilings["matmul_float32"]
    limits = {"flops": operations, "bytes": ceilings["copy_bytes"], "exponentials": ceilings["exponentials"]}
    return {kind: (work / seconds, work / seconds / limits[kind]) for kind, work in case["work"].items() if work > 0}


def ratio(case: dict[str, Any], provider: str, to: str) -> float | None:
    """How many times faster than `to` a provider is; None if one of them was not timed."""
    times = [case["results"].get(name, {}).get("median") for name in (to, provider)]
    return times[0] / times[1] if all(times) else None


def timed_cases(record: dict[str, Any]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Ceilings of a device check, and the cases that can be compared with them."""
    ceilings = record["parts"].get("ceilings", {}).get("ceilings", {})
    timed = [case for part in ("training", "timings") for case in record["parts"].get(part, {}).get("cases", []) if "work" in case]
    return ceilings, timed if ceilings else []


def goal_lines(record: dict[str, Any]) -> list[str]:
    """Goals on a large GPU, each with what the device of a device check reached."""
    ceilings, timed = timed_cases(record)
    lines = []
    for case in timed:
        if case["operation"] == "training":
            reached = {to: ratio(case, "ours", to) for to in SPEEDUPS}
            lines += [f"- training step: {value:.1f} times {to}, goal {SPEEDUPS[to]:g}" for to, value in reached.items() if value]
        for name, provider, kind, goal in ROOFLINES:
            if case["name"] == name and "median" in case["results"].get(provider, {}):
                share = fractions(case, provider, ceilings)[kind][1]
                lines.append(f"- {name}, {provider}: {share:.0%} of the ceiling of {kind}, goal {goal:.0%}")
    return lines
