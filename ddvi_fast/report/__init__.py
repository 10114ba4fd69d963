"""`ddvi-fast report RUN...`: one HTML file that compares runs and needs nothing else, not even a network."""

from __future__ import annotations

from ddvi_fast.report.command import main, write_report
from ddvi_fast.report.decomposition import Decomposition, decompose
from ddvi_fast.report.runs import Run, read_run

__all__ = ["Decomposition", "Run", "decompose", "main", "read_run", "write_report"]
