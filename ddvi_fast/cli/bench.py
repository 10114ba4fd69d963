"""The command `ddvi-fast bench`, which runs the benchmarks of a source tree."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ddvi_fast import _checks


def main(arguments: Sequence[str]) -> None:
    """Run `ddvi-fast bench`; the benchmarks are no part of the package and are imported from the source tree around it."""
    root = Path(__file__).resolve().parents[2]
    found = (root / "bench" / "run.py").is_file()
    _checks.require(found, "bench", "a source tree, which has the folder bench/", f"an installed package in {root}", "clone the repository")
    sys.path.insert(0, str(root))
    from bench.run import main as run_benchmarks

    run_benchmarks(arguments)
