"""Tests of the device check without a GPU, from a tree that is not installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import cases, records

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "bench" / "device_check.py"


def check(*arguments, cwd) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_every_part_runs_on_the_cpu(tmp_path):
    output = tmp_path / "found" / "check.json"
    ran = check("--device", "cpu", "--quick", "--output", output, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    record = json.loads(output.read_text())
    outcomes = {name: part["ok"] for name, part in record["parts"].items()}
    assert [name for name, ok in outcomes.items() if ok is False] == []
    assert {"host waits", "kernels"} <= {name for name, ok in outcomes.items() if ok is None}
    assert {"random numbers", "training", "timings", "ceilings", "step", *(f"parity {name}" for name in ("noise", "chain", "kde"))} <= set(outcomes)
    assert output.with_suffix(".md").read_text().strip() == ran.stdout.strip()


def test_a_part_that_fails_is_recorded_and_the_others_go_on(tmp_path):
    """In a folder without a compiled extension and kernels, parity cannot be computed, but random numbers can."""
    tree = tmp_path / "tree"
    for folder in ("ddvi_fast", "bench"):
        for source in (PROJECT / folder).rglob("*.py"):
            target = tree / source.relative_to(PROJECT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    command = [sys.executable, str(tree / "bench" / "device_check.py"), "--device", "cpu", "--quick", "--output", str(tmp_path / "check.json")]
    ran = subprocess.run([*command, "--parts", "parity mmd", "random numbers"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    parts = json.loads((tmp_path / "check.json").read_text())["parts"]
    assert parts["parity mmd"]["ok"] is False and "_native.so" in parts["parity mmd"]["summary"]
    assert parts["random numbers"]["ok"] is True, "the formula itself"


def test_goals_are_those_of_cases_that_are_run():
    names = {case.name for case in cases.in_set("device")}
    assert {name for name, *_ in records.ROOFLINES} <= names


def test_goals_show_shares_of_ceilings_and_ratios():
    results = {"eager": {"median": 100.0}, "compiled": {"median": 30.0}, "ours": {"median": 2.0}}
    step = {"name": "training N=128 T=40 forward+backward", "operation": "training", "work": {"flops": 1e9}, "results": results}
    name, provider, kind, _ = records.ROOFLINES[1]
    density = {"name": name, "operation": "kde", "work": {kind: 1e9}, "results": {provider: {"median": 4.0}}}
    ceilings = {"matmul_float32": 1e12, "matmul_bf16": 1e12, "copy_bytes": 1e12, "exponentials": 1e12}
    record = {"parts": {"ceilings": {"ceilings": ceilings}, "training": {"cases": [step]}, "timings": {"cases": [density]}}}
    assert records.goal_lines(record) == [
        "- training step: 50.0 times eager, goal 50",
        "- training step: 15.0 times compiled, goal 5",
        f"- {name}, ours: 25% of the ceiling of exponentials, goal 50%",
    ]


def test_nothing_is_overwritten_unasked(tmp_path):
    output = tmp_path / "check.json"
    output.write_text("mine")
    ran = check("--device", "cpu", "--quick", "--output", output, cwd=tmp_path)
    assert ran.returncode == 2 and "--overwrite" in ran.stderr and output.read_text() == "mine"
