"""Comparison of runs in one HTML file that needs no other file and no network."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from ddvi_fast.report.decomposition import Decomposition, decompose
from ddvi_fast.report.runs import Run, read_run
from ddvi_fast.report.write import write_report

__all__ = ["Decomposition", "Run", "decompose", "main", "read_run", "write_report"]


def main(arguments: Sequence[str]) -> None:
    """Run `ddvi-fast report`: an alias of `ddvi_fast.cli.report.main`, loaded by name because the command line imports this package."""
    importlib.import_module("ddvi_fast.cli.report").main(arguments)
