"""What a results file holds, and what can be read from its cases: rates, shares of ceilings, ratios, goals on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
KIND = "ddvi_fast benchmark"
DEVICE_KIND = "ddvi_fast device check"
# What a large GPU should reach: case, provider, kind of work, share of the ceiling.
ROOFLINES = (
    ("chain N=65536 T=40 D=2 C=2 H=128 ancestral forward", "ours_bf16", "flops", 0.4),
    ("kde N=8192 M=10000 D=2 forward+backward", "ours", "exponentials", 0.5),
    ("noise N=16777216 D=2 forward", "ours", "bytes", 0.8),
)
SPEEDUPS = {"eager": 50.0, "compiled": 5.0}  # of the training step
# Which ceiling the products of a provider are held against.
_MATMUL = {"ours_bf16": "matmul_bf16"}


def fractions(case: dict[str, Any], provider: str, ceilings: dict[str, float]) -> dict[str, tuple[float, float]]:
    """For each kind of work: the rate a second, and its share of the ceiling."""
    seconds = case["results"][provider]["median"] / 1000
    limits = {"flops": ceilings[_MATMUL.get(provider, "matmul_float32")], "bytes": ceilings["copy_bytes"], "exponentials": ceilings["exponentials"]}
    return {kind: (work / seconds, work / seconds / limits[kind]) for kind, work in case["work"].items() if work > 0}


def ratio(case: dict[str, Any], provider: str, to: str) -> float | None:
    """How many times faster than `to` a provider is, or None where one of them was not timed."""
    times = [case["results"].get(name, {}).get("median") for name in (to, provider)]
    return times[0] / times[1] if all(times) else None


def timed_cases(record: dict[str, Any]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The ceilings and what can be held against them."""
    ceilings = record["parts"].get("ceilings", {}).get("ceilings", {})
    timed = [case for part in ("training", "timings") for case in record["parts"].get(part, {}).get("cases", []) if "work" in case]
    return ceilings, timed if ceilings else []


def goal_lines(record: dict[str, Any]) -> list[str]:
    """What a large GPU should reach, and what this one did."""
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
