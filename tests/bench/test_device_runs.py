"""Tests of the parts of the device check that train whole runs, on the CPU."""

from __future__ import annotations

import subprocess

import pytest
import torch

from bench.device import parts, runs

SETTING = parts.Setting(torch.device("cpu"), True, 1000.0)


def test_two_cells_side_by_side():
    (result,) = runs.table(SETTING)
    assert result["ok"] is True and result["summary"].startswith("2 runs, equal weights")


def test_steps_side_by_side_have_a_throughput(monkeypatch):
    monkeypatch.setattr(runs, "SIDE_BY_SIDE", 2)
    (result,) = runs.side_by_side(SETTING)
    assert result["ok"] is None and result["rates"].keys() == {"1", "2"} and all(rate > 0 for rate in result["rates"].values())


@pytest.mark.slow
def test_processes_of_a_launcher():
    *_, result = runs.launched(SETTING)
    assert result["ok"] is True and result["summary"].startswith(("2 run, 2 passed, 0 not run", "3 run, 3 passed, 0 not run")), result


def test_a_process_that_fails_is_told(monkeypatch):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nRuntimeError: NCCL is missing\nroot cause")

    monkeypatch.setattr(runs.subprocess, "run", run)
    *_, result = runs.launched(SETTING)
    assert result["ok"] is False and "RuntimeError: NCCL is missing" in result["summary"]


def test_a_part_whose_libraries_are_missing_tests_nothing(monkeypatch):
    monkeypatch.setattr(runs.importlib.util, "find_spec", lambda name: None)
    assert list(runs.one_run(SETTING)) == [{"ok": None, "summary": "0 run; omegaconf, sklearn is not installed"}]
