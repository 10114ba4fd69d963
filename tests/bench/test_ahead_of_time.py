"""Tests of compilation ahead of time: no spills on any architecture, and a table that is up to date."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bench import records
from bench.device import ahead_of_time


@pytest.mark.slow
def test_kernels_compile_as_the_table_says():
    """The first variant of each kernel, on all architectures where it changed; everything is what the command itself compiles."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "bench.device.ahead_of_time", "--check", "--first-variants", "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ahead_of_time.KERNELS.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_check_finds():
    good = {"registers": 32, "local": 0, "shared": 1024}
    committed = {"triton": "3.7.1", "nvrtc": "13.0", "kernels": {"a": {"sm_80": good, "sm_90": good}, "b": {"sm_80": good}}}
    names, same, other = ["a", "b"], {"triton": "3.7.1", "nvrtc": "13.0"}, {"triton": "3.6.0", "nvrtc": "13.0"}
    assert ahead_of_time.check(committed, same, committed["kernels"], names) == []
    changed = {"a": {"sm_80": {**good, "registers": 33}}}
    assert len(ahead_of_time.check(committed, same, changed, names)) == 1
    assert ahead_of_time.check(committed, other, changed, names) == []  # another compiler has other figures
    assert len(ahead_of_time.check(committed, other, {"a": {"sm_80": {**good, "local": 8}}}, names)) == 1
    assert len(ahead_of_time.check(committed, other, {"a": {"sm_80": {**good, "shared": 200 << 10}}}, names)) == 1
    assert ahead_of_time.check(committed, other, {"a": {"sm_90": {**good, "shared": 200 << 10}}}, names) == []
    assert len(ahead_of_time.check(committed, same, {}, ["a", "c"])) == 2  # b is gone, c is new


def test_a_table_that_is_not_whole_names_what_it_lacks():
    row, versions = {"registers": 32, "local": 0, "shared": 0}, {"triton": "3.7.1", "nvrtc": "13.0"}
    committed = {**versions, "kernels": {"a": {"sm_80": row}}, "missing": ["a on sm_90", "b, LAYER=1 on sm_90"]}
    names, compiled = ["a", "b, LAYER=1"], {"a": {"sm_80": row, "sm_90": row}, "b, LAYER=1": {"sm_90": row}}
    assert ahead_of_time.check(committed, versions, compiled, names) == []
    assert ahead_of_time.check(committed, versions, {"a": {"sm_80": {**row, "registers": 33}}}, names) != []
    assert ahead_of_time.check({**committed, "missing": ["a on sm_90"]}, versions, compiled, names) != []
    assert "Not compiled yet: a on sm_90, b, LAYER=1 on sm_90." in ahead_of_time.markdown({**committed, "predictions": []})


def test_kernels_of_a_missing_compiler_are_not_compared():
    row = {"sm_90": {"registers": 32, "local": 0, "shared": 0}}
    committed = {"triton": "3.7.1", "nvrtc": "13.0", "kernels": {"chain_forward D=2": row, "chain_fwd_kernel D=2": row}}
    assert [ahead_of_time.compiler_of(name) for name in committed["kernels"]] == ["nvrtc", "triton"]
    without = {"triton": "3.7.1", "nvrtc": None}
    assert ahead_of_time.check(committed, without, {"chain_fwd_kernel D=2": row}, ["chain_fwd_kernel D=2"]) == []
    assert len(ahead_of_time.check(committed, {**without, "nvrtc": "13.5"}, {}, ["chain_fwd_kernel D=2"])) == 1


def test_spills_are_named_unless_they_are_known(monkeypatch):
    table = {"a_kernel D=2": {"sm_90": {"registers": 255, "local": 40, "shared": 0}}}
    assert len(ahead_of_time.faults(table)) == 1
    monkeypatch.setattr(ahead_of_time, "SPILLS", {"a_kernel": 40})
    assert ahead_of_time.faults(table) == []
    table["a_kernel D=2"]["sm_90"]["local"] = 48
    assert len(ahead_of_time.faults(table)) == 1
    monkeypatch.setattr(ahead_of_time, "SPILLS", {"a_kernel": 48, "a_kernel D=2": 40})
    assert len(ahead_of_time.faults(table)) == 1, "the bound of the variant comes before that of the kernel"
    monkeypatch.setattr(ahead_of_time, "SPILLS", {"a_kernel D=2 on sm_90": 48, "a_kernel D=2": 40})
    assert ahead_of_time.faults(table) == [] and ahead_of_time.most_local("a_kernel D=2", "sm_80") == 40


def test_a_kernel_that_only_traps_is_named():
    table = {"a_kernel D=2": {"sm_100": {"registers": 4, "local": 0, "shared": 0}}}
    assert ahead_of_time.faults(table) == ["a_kernel D=2 on sm_100: the compiled kernel does nothing but trap"]


_DENOISERS = ("chain_fwd_kernel", "chain_bwd_kernel", "denoiser_bwd_kernel_weights", "sleep_fwd_kernel")
_COMPILED = """
import json, sys
from bench import cases
from bench.device import ahead_of_time, predictions
from ddvi_fast.kernels import common
case = next(each for each in cases.in_set("device") if each.operation == "chain" and each.backward and dict(each.shape)["N"] == 1 << 16)
shared = {}
for precision in ("bf16", "float32"):
    launched = [each.compilation for call, arguments in predictions.calls(case, precision) for each in common.launches("", 86, call, *arguments)]
    kernels = [each for each in launched if each.kernel.__name__ == "denoiser_bwd_kernel_weights"]
    shared[precision] = [predictions.binary(each, 86).asked for each in kernels]
jobs = [(name, 100) for name in json.loads(sys.argv[1])]
print(json.dumps({"shared": shared, "table": ahead_of_time.compile_all(jobs, 1, everywhere=False)}))
"""


def _of_precision(precision):
    return [f"{kernel} D=2 C=2 H=128 {precision}" for kernel in _DENOISERS]


@pytest.fixture(scope="module")
def denoisers():
    """Shared memory and rows of kernels around the denoiser, from one process whose Triton compiles."""
    pytest.importorskip("triton")
    compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _COMPILED, json.dumps([name for precision in ("bf16", "float32") for name in _of_precision(precision)])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ahead_of_time.KERNELS.parent, env=compiling)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_weight_gradients_fit_in_99_kib_of_shared_memory(precision, denoisers):
    shared = denoisers["shared"][precision]
    assert len(shared) == 3 and all(0 < each <= 99 << 10 for each in shared), shared


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_products_of_the_denoiser_share_tensor_memory(precision, denoisers):
    """Triton would give each product of a loop its own part, more than there is, and the kernel would be a trap."""
    _assert_in_tensor_memory(denoisers["table"], _of_precision(precision))


def test_the_table_has_the_denoiser_in_tensor_memory():
    sizes = ("D=2 C=2 H=128 bf16", "D=2 C=2 H=128 float32", "D=3 C=32 H=128 bf16 indexed", "D=3 C=32 H=128 float32 indexed")
    _assert_in_tensor_memory(records.read(ahead_of_time.RESULTS)["kernels"], [f"{kernel} {size}" for kernel in _DENOISERS for size in sizes])


def _assert_in_tensor_memory(table, names):
    assert ahead_of_time.faults({name: table[name] for name in names}) == []
    for name in names:
        used = table[name]["sm_100"]
        assert used["registers"] > 32 and 0 < used["tensor"] <= 512 and used["shared"] <= 227 << 10, (name, used)


def test_too_much_tensor_memory_is_named():
    table = {"a_kernel D=2": {"sm_100": {"registers": 32, "local": 0, "shared": 0, "tensor": 704}}}
    assert ahead_of_time.faults(table) == ["a_kernel D=2 on sm_100: 704 columns of tensor memory, expected at most 512"]
    table["a_kernel D=2"]["sm_100"]["tensor"] = 512
    assert ahead_of_time.faults(table) == []


def test_the_table_has_counts_and_times():
    used = {"registers": 32, "local": 8, "shared": 1024, "barriers": 4, "loads": 3, "stores": 2}
    times = {"case": "chain", "precision": "bf16", "grid": 4, "launches": 2, "turns": 40}
    predictions = [{**times, "kernel": "one", "microseconds": 1500.0}, {**times, "kernel": "two", "microseconds": 500.0}]
    text = ahead_of_time.markdown({"triton": "3.7.1", "kernels": {"a": {"sm_90": used}}, "predictions": predictions})
    assert "| a |  |  |  |  | 32 (local 8) | 1024 | 4 | 3 + 2 |  |  |  |  |" in text
    assert "| chain | bf16 | one | 4 | 2 | 40 | 1.5 |" in text and "| chain | bf16 | all |  | 4 |  | 2 |" in text
    unknown = [*predictions, {**times, "kernel": "three", "microseconds": None}]
    text = ahead_of_time.markdown({"triton": "3.7.1", "kernels": {}, "predictions": unknown})
    assert "| chain | bf16 | all |  | 6 |  |  |" in text, "a sum without one of its terms is none"


def test_only_what_has_changed_is_compiled(monkeypatch, tmp_path):
    """A run that was stopped is continued: its rows are in the table with the digests of their sources."""
    variants = {("a D=2", 80): "a8", ("a D=2", 90): "a9", ("b D=2", 90): "b9"}
    monkeypatch.setattr(ahead_of_time, "RESULTS", tmp_path / "table.json")
    monkeypatch.setattr(ahead_of_time, "listed", lambda module="*": dict.fromkeys(variants))
    monkeypatch.setattr(ahead_of_time, "digest", lambda wanted, capability, versions: versions["triton"] + str(capability))
    monkeypatch.setattr(ahead_of_time, "predict_all", lambda processes: [])
    monkeypatch.setattr(ahead_of_time, "_AT_ONCE", 2)
    row, asked, lacking = {"registers": 32, "local": 0, "shared": 0, "barriers": 0, "loads": 1, "stores": 1}, [], []

    def compile_all(chosen, processes):
        lacking.append(records.read(ahead_of_time.RESULTS)["missing"] if ahead_of_time.RESULTS.is_file() else [])
        asked.extend(chosen)
        return {name: {f"sm_{capability}": row for other, capability in chosen if other == name} for name, _ in chosen}

    monkeypatch.setattr(ahead_of_time, "compile_all", compile_all)
    versions = {"triton": "3.7.1", "nvrtc": "13.0"}
    first = ahead_of_time.update({}, versions, 1)
    assert asked == [("a D=2", 90), ("b D=2", 90), ("a D=2", 80)] and list(first) == ["a D=2", "b D=2"]
    assert lacking == [[], ["a D=2 on sm_80"]] and records.read(ahead_of_time.RESULTS)["missing"] == []
    stored = records.read(ahead_of_time.RESULTS)
    asked.clear()
    assert ahead_of_time.update(stored, versions, 1) == first and asked == []
    stored["digests"]["b D=2"]["sm_90"] = "another"
    ahead_of_time.update(stored, versions, 1)
    assert asked == [("b D=2", 90)]
    asked.clear()
    ahead_of_time.update(stored, {**versions, "triton": "3.8.0"}, 1)
    assert set(asked) == set(variants)


def test_first_variants_are_those_that_changed_and_one_of_each_kernel(monkeypatch):
    listed = {(f"{kernel} D={size}", capability): None for kernel in ("a", "b", "c") for size in (2, 3) for capability in (80, 90, 100)}
    monkeypatch.setattr(ahead_of_time, "listed", lambda: listed)
    monkeypatch.setattr(ahead_of_time, "digest", lambda wanted, capability, versions: f"{capability}")
    digests = {f"{kernel} D=2": {f"sm_{capability}": f"{capability}" for capability in (80, 90, 100)} for kernel in ("a", "b", "c")}
    assert ahead_of_time.first_variants({"digests": digests}, {}) == [("a D=2", 80), ("b D=2", 90), ("c D=2", 100)]
    digests["a D=2"]["sm_100"] = "another"
    del digests["b D=2"]
    chosen = ahead_of_time.first_variants({"digests": digests}, {})
    assert chosen == [("a D=2", 80), ("a D=2", 100), ("b D=2", 80), ("b D=2", 90), ("b D=2", 100), ("c D=2", 100)]
    assert len(ahead_of_time.first_variants({}, {})) == 9


_COUNTED = """
import json
from bench import cases
from bench.device import predictions
from ddvi_fast.kernels import common
case = next(each for each in cases.in_set("device") if each.operation == "kde")
found = {}
for call, arguments in predictions.calls(case):
    for compilation in (launched.compilation for launched in common.launches("", 90, call, *arguments)):
        if compilation.kernel.__name__ in ("kde_fwd_kernel", "kde_bwd_kernel"):
            program = predictions.compiled(compilation).program
            exponentials = sum(each.opcode.startswith("MUFU.EX2") for each in program.body(program.main_loop))
            found[compilation.kernel.__name__] = exponentials, compilation.constexprs["POINTS"]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_five_bandwidths_take_three_exponentials_a_pair():
    """A thread has one row and loops over tiles of points; the forward pass also rescales its five sums once a tile."""
    pytest.importorskip("triton")
    compiling = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", _COUNTED], capture_output=True, text=True, cwd=ahead_of_time.KERNELS.parent, env=compiling)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"kde_fwd_kernel", "kde_bwd_kernel"}
    for name, (exponentials, points) in found.items():
        assert exponentials == 3 * points + (5 if name == "kde_fwd_kernel" else 0), (name, exponentials, points)
