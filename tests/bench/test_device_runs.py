"""Tests of the parts of the device check that train whole runs, on the CPU."""

from __future__ import annotations

import subprocess

import torch

from bench.device import parts, runs

SETTING = parts.Setting(torch.device("cpu"), True, 1000.0)


def test_steps_side_by_side_have_a_throughput(monkeypatch):
    monkeypatch.setattr(runs, "SIDE_BY_SIDE", 2)
    (result,) = runs.side_by_side(SETTING)
    assert result["ok"] is None and result["rates"].keys() == {"1", "2"} and all(rate > 0 for rate in result["rates"].values())


def test_a_process_that_fails_is_told(monkeypatch):
    def run(command, **options):
        return subprocess.CompletedProcess(command, 1, "", "Traceback\nRuntimeError: NCCL is missing\nroot cause")

    monkeypatch.setattr(runs.subprocess, "run", run)
    *_, result = runs.launched(SETTING)
    assert result["ok"] is False and "RuntimeError: NCCL is missing" in result["summary"]


def test_processes_that_run_out_of_time_have_not_failed(monkeypatch):
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(runs.subprocess, "run", run)
    *_, result = runs.launched(SETTING)
    assert result["ok"] is None and result["summary"].startswith("0 run, 0 passed, ")


def test_a_part_whose_libraries_are_missing_tests_nothing(monkeypatch):
    monkeypatch.setattr(runs.importlib.util, "find_spec", lambda name: None)
    assert list(runs.one_run(SETTING)) == [{"ok": None, "summary": "0 run; omegaconf, sklearn is not installed"}]
