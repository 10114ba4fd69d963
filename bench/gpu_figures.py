"""Figures of a GPU beside a benchmark's: what the committed device check measured, and what the static model predicts for the kernels as they are."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from bench import cases, records
from ddvi_fast import _markdown

MEASURED = records.RESULTS / "device-nvidia-h200.json"
PREDICTED = records.RESULTS / "ahead_of_time.json"
STEP = records.RESULTS / "training_step.json"
PRECISIONS = {"ours": "float32", "ours_bf16": "bf16"}
HEADINGS = ("case", "provider", "measured (ms)", "predicted (ms)")


def measured(case: str, provider: str) -> float | None:
    """Milliseconds of a call in the committed device check, None where it was not measured."""
    found = [each for each in records.timed_cases(_read(MEASURED))[1] if each["name"] == case]
    return found[0]["results"].get(provider, {}).get("median") if found else None


def predicted(case: str, provider: str) -> tuple[float, bool] | None:
    """Predicted milliseconds of the launches of a call, and whether all of them have a prediction; None for a case without predictions."""
    if provider not in PRECISIONS:
        return None
    if case == "training N=128 T=40 forward+backward":
        return _read(STEP)["steps"][PRECISIONS[provider]]["microseconds"] / 1000, True
    rows = [row for row in _read(PREDICTED)["predictions"] if row["case"] == case]
    # A chain of few rows runs in CUDA C++.
    for precision in (f"{PRECISIONS[provider]}, CUDA C++", PRECISIONS[provider]):
        times = [row["microseconds"] for row in rows if row["precision"] == precision]
        if times:
            return sum(time for time in times if time is not None) / 1000, None not in times
    return None


def table(chosen: Iterable[cases.Case]) -> str:
    """The figures of some cases, as Markdown; empty where there are none."""
    rows = []
    for case in chosen:
        for provider in case.providers:
            was, model = measured(case.name, provider), predicted(case.name, provider)
            if was is not None or model is not None:
                rows.append([case.name, provider, "-" if was is None else f"{was:.3g}", _shown(model)])
    if not rows:
        return ""
    record = _read(MEASURED)
    about = (
        f"On one {record['device']}: measured is the committed device check of commit {str(record.get('commit'))[:10]} with the host in the loop, "
        "predicted is the static model for the kernels of this tree, without the host. A + marks a sum that lacks launches without a prediction."
    )
    return "\n".join([about, "", _markdown.table(HEADINGS, rows)])


def _shown(model: tuple[float, bool] | None) -> str:
    return "-" if model is None else f"{model[0]:.3g}{'' if model[1] else ' +'}"


@functools.cache
def _read(path: Any) -> dict[str, Any]:
    return records.read(path)
