"""Tests of the doctor: findings, advice, and a self-test that detects wrong arithmetic."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from ddvi_fast import _backend
from ddvi_fast.cuda import chain, module, nvrtc
from ddvi_fast.doctor import Finding, inspect, self_test
from ddvi_fast.native import loader


def find(findings: list[Finding], section: str, name: str) -> Finding:
    return next(finding for finding in findings if (finding.section, finding.name) == (section, name))


def test_every_operation_says_which_backend_it_gets_and_why() -> None:
    found = [finding for finding in inspect() if finding.section == "backends"]
    assert {f"{operation} on cpu" for operation in _backend.OPERATIONS} <= {finding.name for finding in found}
    backend = _backend.fused(torch.device("cpu"))
    assert find(found, "backends", "chain on cpu").detail.startswith(backend)


def test_without_the_extension_the_reference_is_used_and_the_reason_is_given(monkeypatch) -> None:
    monkeypatch.setattr(loader, "_open", lambda: (None, "_native.so was not built"))
    finding = find(inspect(), "backends", "chain on cpu")
    assert finding.status == "note" and finding.detail.startswith("reference") and "was not built" in finding.detail
    assert "compiler" in finding.advice


def test_a_backend_that_does_not_exist_is_a_problem(monkeypatch) -> None:
    monkeypatch.setenv("DDVI_FAST_BACKEND", "opencl")
    finding = find(inspect(), "backends", "DDVI_FAST_BACKEND")
    assert finding.status == "problem" and "unset DDVI_FAST_BACKEND" in finding.advice


@pytest.fixture
def gpu(monkeypatch) -> list[tuple[int, int]]:
    """A CUDA device in name, an H200, with Triton and NVRTC; its compute capability may be replaced."""
    capability = [(9, 0)]
    properties = SimpleNamespace(major=9, minor=0, name="H200", total_memory=1 << 37)
    for name, value in {"is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": properties}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *arguments, value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability[0])
    monkeypatch.setattr(nvrtc, "available", lambda: (True, ""))
    monkeypatch.setattr(_backend, "_triton_missing", lambda: "")
    monkeypatch.setattr(chain, "broken", lambda *sizes: "")
    module.architecture.cache_clear()
    yield capability
    module.architecture.cache_clear()


def test_a_gpu_says_how_many_rows_cuda_takes(gpu) -> None:
    finding = find(inspect(), "backends", "chain on cuda")
    assert finding.status == "ok" and "cuda up to 5280 rows in float32" in finding.detail and "3168 rows in bf16" in finding.detail
    assert find(inspect(), "backends", "kde on cuda").detail.startswith("triton for float32")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda patch, capability: patch.setattr(nvrtc, "available", lambda: (False, "NVRTC was not found")), "NVRTC was not found"),
        (lambda patch, capability: capability.__setitem__(0, (7, 5)), "expected compute capability 8.0 or later, got 7.5"),
        (lambda patch, capability: patch.setattr(chain, "broken", lambda *sizes: "cuModuleLoadData failed"), "cuModuleLoadData failed"),
    ],
)
def test_where_cuda_cannot_run_triton_is_used_and_the_reason_given(gpu, monkeypatch, change, reason) -> None:
    change(monkeypatch, gpu)
    finding = find(inspect(), "backends", "chain on cuda")
    assert finding.status == "note" and finding.detail.startswith("triton for float32") and reason in finding.detail


@pytest.mark.parametrize("capability", [(10, 0), (12, 0)])
def test_newer_devices_run_the_same_kernels(gpu, capability) -> None:
    gpu[0] = capability
    chain_on_cuda, sleep = (find(inspect(), "backends", f"{operation} on cuda") for operation in ("chain", "sleep"))
    assert chain_on_cuda.status == "ok" and "3552 rows in bf16" in chain_on_cuda.detail
    assert sleep.status == "ok" and sleep.detail.startswith("triton for float32")


def test_little_shared_memory_is_named(gpu) -> None:
    assert "shared memory" not in find(inspect(), "backends", "kde on cuda").detail
    gpu[0] = (8, 6)
    module.architecture.cache_clear()
    chain_on_cuda, sleep = (find(inspect(), "backends", f"{operation} on cuda").detail for operation in ("chain", "sleep"))
    assert "in 99 KiB of shared memory latents and context have at most 16 each (hidden width 128, float32)" in chain_on_cuda
    assert "at most 32 each (hidden width 64, float32)" in sleep and "8 together (hidden width 256, float32)" in sleep


def test_cuda_asked_for_by_name_without_a_gpu_is_a_problem(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("DDVI_FAST_BACKEND", "cuda")
    finding = find(inspect(), "backends", "chosen")
    assert finding.status == "problem" and "needs a CUDA device" in finding.detail


@pytest.fixture
def apex_of_the_index(tmp_path, monkeypatch):
    """A package called apex without FusedAdam."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("apex", None)


def test_an_apex_that_is_not_nvidias_is_told(apex_of_the_index) -> None:
    finding = find(inspect(), "optimiser", "apex")
    assert finding.status == "problem" and "not NVIDIA's" in finding.detail and "pip uninstall apex" in finding.advice


def test_data_are_found_where_they_lie_and_missed_where_they_do_not(tmp_path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"")
    (tmp_path / "1kg_phase3.bed").write_bytes(b"")
    found = inspect(tmp_path)
    assert find(found, "data", "mnist").detail == str(tmp_path / "mnist")
    assert find(found, "data", "1kg").detail == str(tmp_path / "1kg_phase3.bed")
    assert find(found, "data", "cifar10").status == "note" and str(tmp_path) in find(found, "data", "cifar10").advice
    assert find(inspect(tmp_path / "none"), "data", "folder").status == "problem"


def test_more_threads_than_cores_are_noted(monkeypatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    finding = find(inspect(), "devices", "cpu")
    assert finding.status == "note" and "threads=1" in finding.advice


def test_nothing_is_wrong_without_something_to_do() -> None:
    with pytest.raises(ValueError, match="advice"):
        Finding("data", "mnist", "problem", "missing")


def test_self_test_passes_with_numbers() -> None:
    found = self_test("cpu")
    assert {finding.status for finding in found} == {"ok"}
    assert {*_backend.OPERATIONS, "random numbers", "bounds", "training"} == {finding.name for finding in found}
    assert "nats" in find(found, "self-test", "bounds").detail


def test_self_test_sees_wrong_arithmetic(monkeypatch) -> None:
    if (backend := _backend.fused(torch.device("cpu"))) == "reference":
        pytest.skip("the kernels were not built here")
    operation = _backend.implementation(backend, "mmd")
    right = operation.forward
    monkeypatch.setattr(operation, "forward", lambda *operands: right(*operands) * 1.01)
    monkeypatch.setattr("ddvi_fast.doctor.selftest.PHILOX_OF_ZERO", (0, 0, 0, 0))
    found = self_test("cpu")
    assert {finding.name for finding in found if finding.status == "problem"} == {"random numbers", "mmd"}
    assert "report" in find(found, "self-test", "mmd").advice


def test_json_and_exit_code(shell, tmp_path) -> None:
    told = json.loads(shell("doctor", "--json", "--quick", f"data_dir={tmp_path}"))
    assert told["healthy"] and all({"section", "name", "status", "detail", "advice"} == set(finding) for finding in told["findings"])
    assert not json.loads(shell("doctor", "--json", "--quick", "--data-dir", tmp_path / "none", code=1))["healthy"]


def test_shown_for_people(shell, tmp_path) -> None:
    shown = shell("doctor", "--quick", f"data_dir={tmp_path / 'none'}", code=1)
    assert "1 to fix: folder" in shown and "data_dir" in shown
