"""Predicted time of the paper's tables on one H200: `python -m bench.device.tables`. Nothing here is measured.

A step of a run has as many device operations as `bench.device.step` counts for its settings. Each takes `OPERATION` microseconds, the mean of the
benchmark's step, whose sum is predicted. Runs side by side have `GAIN` times the throughput of one, the goal of the device check, unless the host
is slower, which needs `HOST` microseconds a step. Evaluation takes `EVALUATION` of the time of training, as in the committed runs on the CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import records
from bench.device import step
from ddvi_fast import _checks, _markdown

TABLES = ("mnist", "cifar10", "mnist-semi", "cifar10-semi")
TRAINING_EXAMPLES = {"mnist": 60_000, "cifar10": 50_000, "digits": 1_437}
JOBS, GAIN, HOST, EVALUATION = 8, 5.0, 100.0, 0.25


@dataclass(frozen=True)
class Time:
    """Predicted time of the runs of one row and column of a table.

    Args:
        table, row, column: Their names.
        runs: Number of runs.
        steps: Steps of a run.
        operations: Device operations of a step; None if a step cannot be recorded.
    """

    table: str
    row: str
    column: str
    runs: int
    steps: int
    operations: int | None

    def minutes(self, operation: float, most: int) -> float:
        """Minutes of all runs side by side, with `operation` microseconds an operation; a step that is not recorded has `most` operations."""
        alone = operation * (most if self.operations is None else self.operations)
        return self.runs * self.steps * max(alone / GAIN, HOST) * (1 + EVALUATION) / 60e6


def microseconds_per_operation() -> float:
    """The mean of the benchmark's step in float32."""
    found = records.read(step.RESULTS)["steps"]["float32"]
    return found["microseconds"] / found["count"]


def times(tables: Sequence[str], seeds: int) -> Iterator[Time]:
    """The runs of some tables: the operations of a step are counted once a row, on the first column."""
    from ddvi_fast.paper import table_spec as grid

    for table in tables:
        spec, counts = grid.load(table), {}
        cells = [cell for cell in grid.cells(spec, 1, Path("runs"), [], None, None) if cell.seed == 0]
        for cell in cells:
            if cell.row not in counts:
                counts[cell.row] = _operations(cell)
            yield Time(table, cell.row, cell.column, seeds, _steps(cell.config), counts[cell.row])


def _steps(config: Any) -> int:
    epochs = config.epochs if config.epochs is not None else 100
    return epochs * (TRAINING_EXAMPLES[config.dataset.name] // config.recipe.batch_size)


def _operations(cell: Any) -> int | None:
    """Operations of a step of a run, on the small data set: their number does not depend on the width of the data."""
    kept = [override for override in cell.overrides if not override.startswith(("dataset=", "dataset.", "limit", "data_dir", "epochs"))]
    try:
        return step.default_step(*kept).count
    except (_checks.InputError, NotImplementedError, RuntimeError, TypeError):
        return None


def markdown(found: Sequence[Time], seeds: int) -> str:
    """The prediction as Markdown: a line a table, and the sum."""
    operation = microseconds_per_operation()
    most = max((each.operations for each in found if each.operations is not None), default=1000)
    rows = []
    for table in dict.fromkeys(each.table for each in found):
        mine = [each for each in found if each.table == table]
        counted = sorted(each.operations for each in mine if each.operations is not None)
        span = f"{counted[0]} to {counted[-1]}" if counted else "-"
        rows.append([table, sum(each.runs for each in mine), span, f"{sum(each.minutes(operation, most) for each in mine):.0f}"])
    rows.append(["all", sum(each.runs for each in found), "", f"{sum(each.minutes(operation, most) for each in found):.0f}"])
    missing = sorted({f"{each.table} {each.row}" for each in found if each.operations is None})
    lines = [
        f"Predicted time of the paper's tables on one H200, {JOBS} runs side by side, {seeds} seeds; nothing is measured.",
        f"Assumed: {operation:.1f} us an operation (mean of the benchmark's step), {GAIN:g} times the throughput of one run, at least {HOST:g} us of",
        f"the host a step, {EVALUATION:.0%} more for evaluation. Without a count, {most} operations are assumed: {', '.join(missing) or 'none'}.",
        "",
        _markdown.table(("table", "runs", "operations a step", "minutes"), rows),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", default=list(TABLES), help=f"tables of `ddvi-fast reproduce` (default {', '.join(TABLES)})")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each cell (default 3)")
    options = parser.parse_args(arguments)
    print(markdown(list(times(options.tables, options.seeds)), options.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
