"""Predictions of the static model beside times measured on an H200, for kernels whose machine code is kept in bench/references.

    python -m bench.device.calibration    # writes bench/results/static_model.json and .md

The kernels are those that were measured, which the present ones may have replaced. Cases whose time was mostly the host's are left out.
"""

from __future__ import annotations

import json
import lzma
import statistics
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bench import records
from bench.device import sass
from bench.device.static_model import Kernel, predict
from ddvi_fast import _markdown

RESULTS = records.RESULTS / "static_model.json"
REFERENCES = records.RESULTS.parent / "references" / "static_model.json.xz"


@dataclass(frozen=True)
class Calibration:
    """A measured case: its name, its milliseconds, and the launches whose times it is the sum of."""

    name: str
    measured: float
    launches: tuple[dict[str, Any], ...]

    def predicted(self) -> float:
        """Milliseconds by the model."""
        return sum(
            1000 * each["launches"] * predict(_kernel(each["kernel"]), each["programs"], each["turns"], each["memory"]).seconds
            for each in self.launches
        )


@lru_cache
def references() -> dict[str, Any]:
    """Machine code and measured times."""
    return json.loads(lzma.decompress(REFERENCES.read_bytes()))


@lru_cache
def _kernel(name: str) -> Kernel:
    stored = references()["kernels"][name]
    return Kernel(sass.expanded(stored["listing"]), stored["warps"], stored["registers"], stored["shared"])


def cases() -> list[Calibration]:
    """The measured cases."""
    return [Calibration(case["name"], case["measured"], tuple(case["launches"])) for case in references()["cases"]]


def main() -> None:
    """Predict all cases and write the table."""
    rows = [{"case": case.name, "predicted": round(case.predicted(), 4), "measured": case.measured} for case in cases()]
    print(records.write(RESULTS, {"kind": "bench.device.calibration", "source": references()["source"], "rows": rows}))


def markdown(record: dict[str, Any]) -> str:
    """Predicted and measured milliseconds, and their ratios."""
    ratios = [row["predicted"] / row["measured"] for row in record["rows"]]
    off = [abs(ratio - 1) for ratio in ratios]
    rows = [
        [row["case"], f"{row['predicted']:.3g}", f"{row['measured']:.3g}", f"{ratio:.2f}"] for row, ratio in zip(record["rows"], ratios, strict=True)
    ]
    lines = [
        "# Static model against measured times",
        "",
        f"Written by `python -m bench.device.calibration`. {record['source']}.",
        "Milliseconds.",
        "",
        _markdown.table(["case", "predicted", "measured", "ratio"], rows, align="lr"),
        "",
        f"Median error {statistics.median(off):.0%}; {sum(error <= 0.3 for error in off)} of {len(off)} within 30%.",
        "The model is too slow where loads hit the L1 cache (it assumes L2), and too fast where shared memory has bank conflicts (FFMA products).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
