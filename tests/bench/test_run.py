"""Tests of timing, records, tables and the command `ddvi-fast bench`."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import torch

from bench import cases, memory, records, report, run, timing
from bench.ceilings import measure_ceilings
from ddvi_fast.cli import bench
from ddvi_fast.native import loader
from ddvi_fast.precision import support

CPU = torch.device("cpu")


def test_case_names_are_unique_and_find_their_case():
    names = [case.name for case in cases.all_cases()]
    assert len(set(names)) == len(names)
    assert all(cases.by_name(name).name == name for name in names)


def test_sets_and_providers_are_those_of_the_command():
    assert {name for case in cases.all_cases() for name in case.sets} == set(bench.SETS)
    assert {name for case in cases.all_cases() for name in case.providers} == set(bench.PROVIDERS)


def test_sets_hold_what_they_promise():
    full = {(case.operation, case.backward): [] for case in cases.in_set("full")}
    for case in cases.in_set("full"):
        full[case.operation, case.backward].append(dict(case.shape))
    chain = full["chain", True]
    assert {128, 8192, 65_536} <= {shape["N"] for shape in chain} and {5, 40, 100} <= {shape["T"] for shape in chain}
    assert {shape["D"] for shape in chain} == {2, 16}
    assert {case.operation for case in cases.in_set("quick")} == {"noise", "chain", "sleep", "elbo", "kde", "mmd", "training"}
    goals = {case.name: dict(case.goals) for case in cases.in_set("targets")}
    assert goals["kde N=128 M=10000 D=2 forward+backward"] == {"ours": 25.0}
    assert goals["training N=128 T=40 forward+backward"] == {"ours": 4.0, "ours_bf16": 6.0}
    assert goals["chain N=128 T=40 D=2 C=2 H=128 deterministic forward"] == {"ours": 3.0, "ours_bf16": 5.0}


def test_percentiles():
    found = timing.summarize([5.0, 1.0, 2.0, 4.0, 3.0, 6.0], calls=2)
    assert (found.median, found.p20, found.p80, found.rounds, found.calls) == (3.5, 2.0, 5.0, 6, 2)


def test_providers_take_turns_and_slow_ones_are_measured_often_enough(monkeypatch):
    order = []
    cost = {"quick": 0.5, "slow": 40.0}

    def measure(provider, device, calls, clock):
        order.append(provider())
        return cost[provider()]

    monkeypatch.setattr(timing, "measure", measure)
    found = timing.time_together({name: (lambda name=name: name) for name in cost}, CPU, seconds=0.2, warm_up=1)
    assert found["quick"].rounds == 200 and found["quick"].calls == 2 and found["slow"].rounds == 5 and found["slow"].calls == 1
    places = [place for place, name in enumerate(order[2:]) if name == "slow"]
    gaps = [after - before for before, after in itertools.pairwise(places)]
    assert max(gaps) - min(gaps) <= 1, "the slow provider's measurements are spread over the whole run"


def test_a_turn_begins_with_a_call_that_is_not_counted_unless_calls_are_long(monkeypatch):
    called = []
    cost = {"short": 1.0, "long": 2 * timing.LONGEST_SETTLING_MS}
    monkeypatch.setattr(timing, "measure", lambda provider, device, calls, clock: cost[provider()])
    providers = {name: (lambda name=name: called.append(name) or name) for name in cost}
    found = timing.time_together(providers, CPU, seconds=0.01, warm_up=1)
    assert called.count("short") == 1 + 2 * found["short"].rounds, "once to warm up; then each measurement and the call before it"
    assert called.count("long") == 1 + found["long"].rounds


@pytest.mark.parametrize("instructions", [None, "portable", "avx2", "avx512"])
def test_ceilings_are_rates_and_those_of_bf16_need_its_products(instructions, monkeypatch):
    if instructions is not None:
        monkeypatch.setenv("DDVI_FAST_ISA", instructions)
    found = measure_ceilings(CPU, quick=True)
    assert all(value > 1e6 for value in found.values())
    narrow = {"matmul_bf16", *(["peak_bf16"] if loader.available()[0] else [])}
    assert found.keys() & {"matmul_bf16", "peak_bf16"} == (narrow if support("bf16", CPU) == "native" else set())
    assert ("peak_float32" in found) == loader.available()[0]


def test_bf16_is_left_out_without_its_products(shell, results, monkeypatch):
    monkeypatch.setattr(run, "support", lambda precision, device: "emulated")
    monkeypatch.setattr(run, "_run_apart", run.run_case)
    arguments = ["bench", "quick", "--only", "sleep", "--providers", "ours", "ours_bf16", "--no-memory", "--seconds", "0.01", "--output", "mine"]
    printed = shell(*arguments)
    assert printed.startswith("bf16: left out, because this device only emulates its products\n[0/")
    assert {name for case in json.loads((results / "mine.json").read_text())["cases"] for name in case["results"]} == {"ours"}


def test_the_peak_is_the_ceiling_of_operations_where_it_is_known():
    record = made_record()
    record["ceilings"] |= {"peak_float32": 1e10}
    assert records.fractions(record["cases"][0], "ours", record["ceilings"])["flops"] == (1e9, 0.1)


def made_record(**changes):
    results = {
        "eager": {"median": 10.0, "p20": 9.0, "p80": 12.0, "rounds": 5, "calls": 1, "peak_bytes": 3_000_000},
        "compiled": {"failed": "RuntimeError: no compiler"},
        "ours": {"median": 2.0, "p20": 1.9, "p80": 2.1, "rounds": 5, "calls": 1, "peak_bytes": 150_000},
    }
    case = {
        "name": "kde N=1",
        "operation": "kde",
        "shape": {"N": 1},
        "backward": False,
        "work": {"flops": 2e6, "bytes": 0.0, "exponentials": 1e6},
        "goals": {"ours": 6.0},
        "most_bytes": 200_000,
        "results": results,
    }
    return {
        "kind": records.KIND,
        "set": "targets",
        "time": "2030-01-02T00:00:00",
        "command": "ddvi-fast bench targets",
        "commit": "abcdef0123456789",
        "versions": {"torch": "2.99"},
        "machine": {"processor": "a processor"},
        "device": "cpu",
        "threads": 2,
        "ceilings": {"matmul_float32": 4e9, "matmul_bf16": 8e9, "copy_bytes": 1e10, "exponentials": 2e9},
        "cases": [case],
        "memory scaling": [{"T": 10, "N": 1024, "states": 90_112, "eager": 28_000_000, "ours": None}],
        **changes,
    }


def test_rows_show_ratios_shares_goals_and_failures():
    eager, compiled, ours = report.rows(made_record())
    assert eager == ["kde N=1", "eager", "10.0 (9.00 to 12.0)", "-", "-", "200 MFLOP/s (5%)", "-", "100 Mexp/s (5%)", "3.00 MB"]
    assert compiled[:3] == ["kde N=1", "compiled", "failed: RuntimeError: no compiler"] and len(compiled) == len(report.HEADINGS)
    assert ours[3:] == ["5.00 (goal 6, missed)", "-", "1.00 GFLOP/s (25%)", "-", "500 Mexp/s (25%)", "150 kB (under 200 kB)"]


def test_bf16_is_held_against_the_bf16_ceiling():
    record = made_record()
    case = record["cases"][0]
    case["results"]["ours_bf16"] = case["results"]["ours"]
    assert records.fractions(case, "ours_bf16", record["ceilings"])["flops"] == (1e9, 0.125)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "measure_ceilings", lambda device: made_record()["ceilings"])
    with torch.random.fork_rng():
        yield tmp_path


QUICK = ["bench", "quick", "--only", "noise N=8192 D=2 forward+backward", "--providers", "eager", "ours", "--no-memory", "--seconds", "0.01"]


def test_the_command_writes_a_record_and_a_table_and_overwrites_nothing(shell, results):
    (results / "mine.json").write_text("kept")
    assert "--overwrite" in shell(*QUICK, "--output", "mine", code=2)
    assert (results / "mine.json").read_text() == "kept"
    assert "noise N=8192" in shell(*QUICK, "--output", "mine", "--overwrite")
    record = json.loads((results / "mine.json").read_text())
    assert record["command"].startswith("ddvi-fast bench quick --only") and {"machine", "versions", "commit", "ceilings"} <= record.keys()
    assert [set(case["results"]) for case in record["cases"]] == [{"eager", "ours"}]
    assert (results / "mine.md").read_text() == report.markdown(record)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quik"], ["quick", "quik"]),
        (["--threads", "0"], ["--threads", "at least 1"]),
        (["--only", "nothing"], ["--only", "nothing"]),
        (["--output", "a/b"], ["--output", "a/b"]),
        (["--provider", "x"], ["providers"]),
    ],
)
def test_bad_arguments_are_one_line(shell, results, arguments, words):
    refusal = shell("bench", *arguments, code=2)
    assert all(word in refusal for word in words)


def test_an_installed_package_says_where_the_benchmarks_are(shell, monkeypatch, tmp_path):
    monkeypatch.setattr("ddvi_fast.cli.bench.__file__", str(tmp_path / "site-packages" / "ddvi_fast" / "cli" / "bench.py"))
    assert "source tree" in shell("bench", code=2)


def test_peak_memory_is_what_a_call_takes():
    size = 64 << 20

    def call():
        (torch.ones(size // 4) + 1).sum()

    peak = memory._peak_on_cpu(call)
    if peak is None:
        pytest.skip("this system does not tell the high-water mark of a process")
    assert 0.9 * size < peak < 3 * size


def test_the_chains_backward_pass_keeps_states_and_not_activations():
    """O(T N D) against O(T N hidden): at twice the steps ours needs at most the trajectory's share more, up to a tile a thread."""
    sizes = ["--chain", "20", "1024", "--chain", "80", "1024"]
    small, large = memory._in_fresh_process([*sizes, "--providers", "eager", "ours", "--threads", "1"])
    if small["ours"] is None:
        pytest.skip("this system does not tell the high-water mark of a process")
    states = 4 * 60 * 1024 * 2
    assert large["ours"] - small["ours"] < 8 * states + (1 << 20)
    assert large["eager"] - small["eager"] > 32 * states


def test_pytest_collects_the_cases_and_runs_each_once():
    project = records.RESULTS.parents[1]
    command = [sys.executable, "-m", "pytest", "bench/bench_kde.py", "-q", "-k", "ours", "-p", "no:cacheprovider"]
    ran = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=3600)
    assert ran.returncode == 0 and "1 passed, 2 deselected" in ran.stdout, ran.stdout + ran.stderr


def test_a_clock_of_ones_own_measures_the_calls():
    ticks = itertools.count(step=3.0)
    assert timing.measure(lambda: None, CPU, 2, lambda: next(ticks)) == 1500.0
