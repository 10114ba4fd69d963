"""Tests of the device check without a GPU, from a tree that is not installed."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import cases, device_check, records
from bench.device import parts, predictions, races
from ddvi_fast import parity

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "bench" / "device_check.py"


def check(*arguments, cwd) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=3600)


@pytest.mark.slow
def test_every_part_runs_on_the_cpu(tmp_path):
    output = tmp_path / "found" / "check.json"
    ran = check("--device", "cpu", "--quick", "--output", output, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    record = json.loads(output.read_text())
    outcomes = {name: part["ok"] for name, part in record["parts"].items()}
    assert [name for name, ok in outcomes.items() if ok is False] == []
    assert {"host waits", "kernels", "replays", "model", "races"} <= {name for name, ok in outcomes.items() if ok is None}
    assert {"random numbers", "training", "timings", "ceilings", "step", *(f"parity {name}" for name in ("noise", "chain 1 of 3", "kde"))} <= set(
        outcomes
    )
    for name, words in {"launched": "1 run, 1 passed, 0 not run", "table": "2 runs, equal weights"}.items():
        assert outcomes[name] is None or record["parts"][name]["summary"].startswith(words), "a machine may be too slow for a part"
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
    ran = subprocess.run([*command, "--parts", "parity mmd", "random numbers"], cwd=tmp_path, capture_output=True, text=True, timeout=3600)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    parts = json.loads((tmp_path / "check.json").read_text())["parts"]
    assert parts["parity mmd"]["ok"] is False and "_native.so" in parts["parity mmd"]["summary"]
    assert parts["random numbers"]["ok"] is True, "the formula itself"


def test_batches_share_out_the_cases():
    """Every case is in one batch, together with those of the same widths and number of groups."""
    for operation in ("chain", "sleep"):
        chosen = parity.cases(operation)
        batches = [parts._batch(chosen, number, 3) for number in range(3)]
        assert sorted(case.name for batch in batches for case in batch) == sorted(case.name for case in chosen)
        widths = [{case.name.split(")")[0].split(", ", 2)[2] for case in batch} for batch in batches]
        assert all(widths) and not (widths[0] & widths[1] or widths[0] & widths[2] or widths[1] & widths[2])


def test_parity_counts_what_is_run_and_what_is_not():
    """Nothing fails for lack of time; cases that a backend refuses are neither."""
    setting = parts.Setting(torch.device("cpu"), True, 1000.0)
    *_, result = parts.parity("noise")(setting)
    assert result["ok"] is True and ", 0 not run;" in result["summary"]
    first, *_ = parts.parity("noise")(replace(setting, seconds=-1.0))
    assert first["ok"] is None and first["summary"].startswith("0 run, 0 passed, ")
    assert parts._compared(3, 5, [], 0, 0.0)["ok"] is None, "some cases were not run"
    assert parts._compared(3, 5, ["a case"], 0, 0.0)["ok"] is False
    assert parts._compared(0, 5, [], 2, 0.0)["summary"].startswith("5 run, 5 passed, 0 not run, 2 that the backend does not take")


def test_replays_are_timed_beside_calls(monkeypatch):
    """A replay that is slower than wanted is named; a case that cannot be captured fails."""
    case = cases.Case("elbo", (("kind", "gaussian_kl"), ("N", 8), ("P", 2)), True, frozenset())
    monkeypatch.setitem(parts.REPLAYED, case.name, {"ours": 1e-9})
    setting = parts.Setting(torch.device("cpu"), True, 1000.0)
    *_, result = parts.timed_replays([case], setting, lambda call: call)
    assert result["ok"] is True and result["summary"].startswith("1 run, 1 passed, 0 not run; slower than wanted: elbo")
    assert result["rows"][0]["call"] > 0 and result["rows"][0]["goal"] == 1e-9

    def refuse(call):
        raise RuntimeError("no capture")

    *_, result = parts.timed_replays([case], setting, refuse)
    assert result["ok"] is False and "no capture" in result["summary"]


def test_predictions_are_paired_with_measured_kernels():
    found = [predictions.Predicted("a D=2", 4, 2, 1, 500.0), predictions.Predicted("a D=2, X=1", 4, 1, 1, 250.0)]
    unknown = [predictions.Predicted("b", 4, 1, 1, None), predictions.Predicted("c", 4, 1, 1, 1.0)]
    (row,) = parts.paired("case", "bf16", found + unknown, {"a": 1.5, "b": 1.0, "other": 2.0})
    assert (row["kernel"], row["predicted"], row["measured"]) == ("a", 0.75, 1.5)


def test_chains_for_the_race_checker():
    assert races.chains(torch.device("cpu"), "cpp", 0.0) == 2


def test_the_parts_of_the_denoiser_fit_into_seven_minutes():
    chosen = [parts.PARTS[name] for name in parts.DENOISER_PARTS]
    alone = sum(part.seconds for part in chosen if part.alone)
    assert {"replays", "model", "races"} <= set(parts.DENOISER_PARTS)
    assert alone + max(part.seconds for part in chosen if not part.alone) <= 420
    assert all(any(name.startswith(f"parity {operation}") for name in parts.DENOISER_PARTS) for operation in ("chain", "sleep"))


def test_all_parts_fit_into_seven_minutes():
    """Those that run side by side, and then the others one after another."""
    found = parts.PARTS.values()
    assert max(part.seconds for part in found if not part.alone) + sum(part.seconds for part in found if part.alone) <= device_check.LIMIT
    assert {"run", "table", "launched", "side by side", "training"} <= set(parts.PARTS)


def test_the_record_grows_with_every_part(tmp_path, monkeypatch):
    """It counts what was run, what passed, and what was not run yet."""
    written, write = [], records.write
    monkeypatch.setattr(records, "write", lambda path, record: written.append(record["parts"]) or write(path, record))
    outcome = {"ok": True, "summary": "1 run, 1 passed, 0 not run", "seconds": 1.0}
    monkeypatch.setattr(device_check, "_supervise", lambda group, *_: dict.fromkeys(group, outcome))
    monkeypatch.setattr(sys, "argv", ["device_check.py", "--device", "cpu", "--quick", "--output", str(tmp_path / "check.json")])
    assert device_check.main() == 0
    passed = [sum(part["ok"] is True for part in found.values()) for found in written]
    assert passed == sorted(passed) and passed[0] < passed[-1] == len(parts.PARTS)
    assert f"parts: {len(parts.PARTS)} run, {len(parts.PARTS)} passed, 0 not run" in (tmp_path / "check.md").read_text()


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


def test_nothing_is_overwritten_unasked(tmp_path, monkeypatch, capsys):
    output = tmp_path / "check.json"
    output.write_text("mine")
    monkeypatch.setattr(sys, "argv", ["device_check.py", "--device", "cpu", "--quick", "--output", str(output)])
    with pytest.raises(SystemExit) as ended:
        device_check.main()
    assert ended.value.code == 2 and "--overwrite" in capsys.readouterr().err and output.read_text() == "mine"


@pytest.mark.parametrize(("until_then", "ok"), [(None, None), (True, None), (False, False)])
def test_a_part_that_runs_out_of_time_has_failed_only_if_it_had_before(tmp_path, monkeypatch, until_then, ok):
    def late(command, **options):
        if until_then is not None:
            folder = Path(command[command.index("--output") + 1])
            device_check._write(device_check._result_file(folder, "random numbers"), {"ok": until_then, "summary": "so far"}, 0.0)
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(device_check.subprocess, "run", late)
    options = argparse.Namespace(device="cpu", quick=True)
    found = device_check._supervise(["random numbers"], options, tmp_path, time.monotonic())["random numbers"]
    assert found["ok"] is ok and found["summary"].startswith("out of time after")


def test_cases_that_are_not_timed_yet_are_no_failure(monkeypatch):
    monkeypatch.setattr(parts, "run_case", lambda *_, **__: {"results": {"ours": {"median": 1.0}}})
    setting = parts.Setting(torch.device("cpu"), True, 3600.0)
    outcomes = [result["ok"] for result in parts._timed(setting, cases.in_set("quick")[:3], 0.0)]
    assert outcomes == [None, None, True]
