"""Tables of benchmark records: on the terminal and as Markdown.

python -m bench.report           # rewrites the Markdown of every results file
"""

from __future__ import annotations

from typing import Any

from bench import records
from bench.records import fractions, ratio
from ddvi_fast import _markdown
from ddvi_fast.cli.bench import PROVIDERS

HEADINGS = ("case", "provider", "ms (p20 to p80)", "x eager", "x compiled", "FLOP/s", "bytes/s", "exp/s", "peak memory")
_TURNS = {False: "providers took turns in one process", True: "providers took turns, those of each case in a process of its own"}
_UNITS = {"flops": "FLOP/s", "bytes": "B/s", "exponentials": "exp/s"}


def rows(record: dict[str, Any]) -> list[list[str]]:
    """The cells of every case and provider, under `HEADINGS`; percentages are of the ceilings measured in the same run."""
    return [_row(case, provider, record["ceilings"]) for case in record["cases"] for provider in case["results"]]


def _row(case: dict[str, Any], provider: str, ceilings: dict[str, float]) -> list[str]:
    result = case["results"][provider]
    head = [case["name"], provider]
    if "failed" in result:
        return [*head, f"failed: {result['failed']}", *[""] * (len(HEADINGS) - 3)]
    rates = fractions(case, provider, ceilings)
    cells = [f"{_scaled(rates[kind][0])}{unit} ({rates[kind][1]:.0%})" if kind in rates else "-" for kind, unit in _UNITS.items()]
    spread = f"{_figures(result['median'])} ({_figures(result['p20'])} to {_figures(result['p80'])})"
    return [*head, spread, _ratio_cell(case, provider, "eager"), _ratio_cell(case, provider, "compiled"), *cells, _memory_cell(case, provider)]


def _ratio_cell(case: dict[str, Any], provider: str, to: str) -> str:
    value = ratio(case, provider, to)
    if value is None or provider == to:
        return "-"
    goal = case["goals"].get(provider) if to == "eager" else None
    return f"{value:.2f}" + ("" if goal is None else f" (goal {goal:g}{'' if value >= goal else ', missed'})")


def _memory_cell(case: dict[str, Any], provider: str) -> str:
    peak, most = case["results"][provider].get("peak_bytes"), case["most_bytes"]
    if peak is None:
        return "-"
    limit = "" if most is None or not provider.startswith("ours") else f" (under {_scaled(most)}B{'' if peak <= most else ', missed'})"
    return f"{_scaled(peak)}B{limit}"


def _scaled(value: float) -> str:
    """Three digits and a decimal prefix."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{_figures(value / size)} {prefix}"
    return f"{_figures(value)} "


def _figures(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"


def markdown(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    lines = [f"# Benchmarks, set `{record['set']}`", "", *_about(record), "", _markdown.table(HEADINGS, rows(record)), *_scaling_table(record)]
    return "\n".join(lines) + "\n"


def _about(record: dict[str, Any]) -> list[str]:
    return [
        f"{_machine(record)}; `{record['command']}`, commit {str(record.get('commit'))[:10]}, {str(record.get('time'))[:10]}.",
        f"{_ceilings_line(record)} Providers: {'; '.join(f'`{name}` {text}' for name, text in PROVIDERS.items())}.",
        f"Times are medians, with 20th and 80th percentile; {_TURNS[record.get('apart', False)]}, and each was compared with float64 before.",
    ]


def _machine(record: dict[str, Any]) -> str:
    where = record["machine"]["processor"] if record["device"] == "cpu" else record["device"]
    instructions = f", {record['instructions']}" if record.get("instructions") else ""
    return f"{where}{instructions}, {record['threads']} thread{'s' * (record['threads'] != 1)}, torch {record['versions']['torch']}"


def _ceilings_line(record: dict[str, Any]) -> str:
    units = {"copy_bytes": "B/s", "exponentials": "exp/s"}
    shown = [f"{name.replace('_', ' ')} {_scaled(value)}{units.get(name, 'FLOP/s')}" for name, value in record["ceilings"].items()]
    return f"Ceilings measured in the same run: {', '.join(shown)}."


def _scaling_table(record: dict[str, Any]) -> list[str]:
    if not record.get("memory scaling"):
        return []
    heading = "Peak memory of the chain's forward and backward pass at D = 2; `states` is the trajectory alone, 4 (T + 1) N D bytes:"
    shown = ("states", "eager", "ours")
    cells = [[row["T"], row["N"], *("-" if row[key] is None else f"{_scaled(row[key])}B" for key in shown)] for row in record["memory scaling"]]
    return ["", heading, "", _markdown.table(("T", "N", *shown), cells)]


def main() -> None:
    for path, record in records.all_records().items():
        target = path.with_suffix(".md")
        target.write_text(records.markdown_of(record), encoding="utf-8")
        print(f"written: {target}")


if __name__ == "__main__":
    main()
