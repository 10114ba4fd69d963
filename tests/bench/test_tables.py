"""Predicted time of the paper's tables."""

from __future__ import annotations

import pytest

from bench.device import tables
from ddvi_fast import _backend
from ddvi_fast.paper import table_spec as grid


def test_minutes_of_runs_side_by_side():
    """A million steps of 100 operations of 9 us at five times the throughput, or as fast as the host."""
    one = tables.Time("t", "r", "c", 10, 100_000, 100)
    assert one.minutes(9.0, 0) == pytest.approx(1e6 * 180e-6 * 1.25 / 60)
    assert one.minutes(0.1, 0) == pytest.approx(1e6 * 100e-6 * 1.25 / 60)
    assert tables.Time("t", "r", "c", 10, 100_000, None).minutes(9.0, 100) == one.minutes(9.0, 0)


def test_all_runs_of_the_tables_are_in_the_sum(monkeypatch):
    monkeypatch.setattr(tables, "_operations", lambda cell: 500)
    found = list(tables.times(tables.TABLES, 3))
    assert sum(each.runs for each in found) == 3 * sum(len(spec.rows) * len(spec.columns) for spec in map(grid.load, tables.TABLES))
    (mnist, *_) = found
    assert mnist.steps == 10 * (60_000 // 128)
    shown = tables.markdown(found, 3)
    assert f"| all | {sum(each.runs for each in found)} |" in shown and "nothing is measured" in shown


@pytest.mark.skipif(bool(_backend.unavailable("triton")), reason="Triton is not installed")
def test_operations_are_those_of_the_settings():
    (cell, *_) = grid.cells(grid.part(grid.load("mnist"), ["vae"], ["pinwheel"]), 1, tables.Path("runs"), [], None, None)
    assert 100 < tables._operations(cell) < tables.step.default_step().count
