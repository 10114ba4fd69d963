"""Tests of the choice of the backend by call, by `with` block and by environment variable, and its errors."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ddvi_fast
from ddvi_fast import InputError, _backend
from ddvi_fast.cuda import chain as cuda
from ddvi_fast.cuda import nvrtc
from ddvi_fast.native import loader

CPU = torch.device("cpu")
compiled = pytest.mark.skipif(not loader.available()[0], reason=f"the compiled extension is missing: {loader.available()[1]}")


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch):
    monkeypatch.setattr(_backend, "_chosen", None)
    monkeypatch.delenv(_backend.ENVIRONMENT_VARIABLE, raising=False)


def test_default_is_auto():
    assert _backend.current() == "auto"


def test_with_block_puts_back_what_was_even_after_an_error():
    with pytest.raises(RuntimeError), ddvi_fast.use_backend("reference"):
        with ddvi_fast.use_backend("auto"):
            assert _backend.current() == "auto"
        assert _backend.current() == "reference"
        raise RuntimeError
    assert _backend.current() == "auto"


def test_function_stays():
    ddvi_fast.use_backend("reference")
    assert _backend.current() == "reference"


def test_environment_sets_the_default(monkeypatch, one_line):
    monkeypatch.setenv(_backend.ENVIRONMENT_VARIABLE, "reference")
    assert _backend.current() == "reference"
    monkeypatch.setenv(_backend.ENVIRONMENT_VARIABLE, "refrence")
    one_line(lambda: _backend.current(), r"DDVI_FAST_BACKEND.*did you mean reference")


def test_unknown_name_changes_nothing(one_line):
    one_line(lambda: ddvi_fast.use_backend("tritn"), r"backend: expected one of .*did you mean triton")
    assert _backend.current() == "auto"


def test_a_library_that_was_not_built_is_an_error(monkeypatch, one_line):
    monkeypatch.setattr(loader, "available", lambda: (False, "it was not built"))
    one_line(lambda: ddvi_fast.use_backend("cpp"), r"backend: expected one that is installed, got 'cpp' .it was not built")
    assert _backend.current() == "auto"
    assert _backend.choose("kde", CPU, z=torch.zeros(1, 1)) == "reference"


def test_triton_without_a_device_says_what_to_do(monkeypatch, one_line):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_backend, "interpreted", lambda: False)
    one_line(lambda: ddvi_fast.use_backend("triton"), r"backend: expected one that is installed, got 'triton'.*TRITON_INTERPRET=1 set before Triton")


def test_triton_that_is_not_installed_says_so(monkeypatch, one_line):
    monkeypatch.setitem(sys.modules, "triton", None)
    one_line(lambda: ddvi_fast.use_backend("triton"), r"Triton cannot be imported: .*; install it")


def test_cuda_without_a_device_says_what_to_do(monkeypatch, one_line):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    one_line(lambda: ddvi_fast.use_backend("cuda"), r"backend: expected one that is installed, got 'cuda' .CUDA C.. needs a CUDA device")


@pytest.fixture
def gpu(monkeypatch):
    """Tensors on a GPU that is not there, with Triton and NVRTC."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nvrtc, "available", lambda: (True, ""))
    monkeypatch.setattr(_backend, "_triton_missing", lambda: "")
    monkeypatch.setattr(_backend, "_not_interpreted", lambda backend, precision: "")
    monkeypatch.setattr(cuda, "architecture", lambda device: 90)
    monkeypatch.setattr(cuda, "broken", lambda *sizes: "")
    triton = SimpleNamespace(unsupported=lambda precision="float32", **tensors: "too old" if precision == "fp8" else None)
    monkeypatch.setitem(_backend._imported, "ddvi_fast.kernels.chain", triton)
    monkeypatch.setitem(_backend._imported, "ddvi_fast.kernels.sleep", triton)
    with FakeTensorMode():
        yield torch.device("cuda", 0)


def chain(device, rows=128, latent=2, context=2, hidden=128, precision="float32", dtype=torch.float32):
    """Operands of `choose` for a chain."""
    shapes = {"first": (hidden, latent + context), "hidden": (3, hidden, hidden), "last": (latent, hidden), "last_bias": (latent,)}
    shapes |= {"y_T": (rows, latent), "context": (rows, context), "time_table": (40, 4, hidden), "coefficients": (40, 5)}
    return {name: torch.empty(shape, device=device, dtype=dtype) for name, shape in shapes.items()} | {"noise": None, "precision": precision}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, "cuda"),
        ({"precision": "bf16"}, "cuda"),
        ({"rows": 5280}, "cuda"),
        ({"rows": 5281}, "triton"),
        ({"rows": 5280, "precision": "bf16"}, "triton"),
        ({"latent": 17}, "triton"),
        ({"hidden": 256}, "triton"),
        ({"precision": "fp8"}, "reference"),
    ],
)
def test_auto_takes_cuda_for_few_rows_then_triton(gpu, changed, expected):
    assert _backend.choose("chain", gpu, **chain(gpu, **changed)) == expected


def test_auto_takes_triton_where_nvrtc_is_missing_or_fails(gpu, monkeypatch):
    assert _backend.choose("sleep", gpu) == "triton"
    monkeypatch.setattr(cuda, "broken", lambda *sizes: "chain_forward.cu: NVRTC failed")
    assert _backend.choose("chain", gpu, **chain(gpu)) == "triton"
    monkeypatch.setattr(nvrtc, "available", lambda: (False, "NVRTC was not found"))
    assert _backend.choose("chain", gpu, **chain(gpu)) == "triton"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"latent": 17}, "latent dimensions: expected at most 16, got 17 .in a chain in CUDA C"),
        ({"dtype": torch.float64}, "first: the CUDA C.. kernels are float32, got float64"),
    ],
)
def test_cuda_by_name_runs_what_it_can_and_says_what_it_cannot(gpu, one_line, changed, message):
    with ddvi_fast.use_backend("cuda"):
        assert _backend.choose("chain", gpu, **chain(gpu, rows=65536)) == "cuda"  # slower than Triton, but asked for
        assert _backend.choose("sleep", gpu) == "triton"
        one_line(lambda: _backend.choose("chain", gpu, **chain(gpu, **changed)), message)
        operands = chain(gpu) | {"noise": torch.empty(40, 128, 2)}
        one_line(lambda: _backend.choose("chain", gpu, **operands), "noise: expected a tensor on cuda:0, as the other operands, got a float32 tensor")


@compiled
def test_auto_takes_the_kernels_for_what_they_can_run_and_the_reference_for_the_rest():
    x, widths = torch.zeros(5, 2), torch.ones(2)
    assert _backend.choose("kde", CPU, z=x, points=x, constants={"bandwidths": widths}) == "cpp"
    assert _backend.choose("kde", CPU, z=x.double(), points=x, constants={"bandwidths": widths}) == "reference"
    assert _backend.choose("kde", CPU, z=x, points=x, constants={"bandwidths": widths.clone().requires_grad_()}) == "reference"
    assert _backend.choose("chain", CPU, hidden=torch.zeros(3, 24, 24)) == "reference"
    assert _backend.choose("chain", CPU, hidden=torch.zeros(3, 64, 64), precision="fp16") == "reference"
    assert _backend.choose("chain", torch.device("meta"), hidden=torch.zeros(3, 64, 64, device="meta")) == "reference"


@compiled
@pytest.mark.parametrize(
    ("operation", "operands", "message"),
    [
        ("elbo", {"x": torch.zeros(1, dtype=torch.float64)}, "x: the C.. kernels are float32, got float64"),
        ("mmd", {"x": torch.zeros(1), "y": torch.zeros(1), "constants": {"sigmas": torch.ones(1, requires_grad=True)}}, "sigmas: .* no gradient"),
        ("chain", {"hidden": torch.zeros(3, 96, 96)}, "denoiser: .*multiples of 64, got 96"),
        ("sleep", {"precision": "tf32"}, "precision: .*float32 and bf16, got tf32"),
    ],
)
def test_a_backend_asked_for_by_name_says_what_it_cannot_run(operation, operands, message):
    with ddvi_fast.use_backend("cpp"), pytest.raises(InputError, match=message):
        _backend.choose(operation, CPU, **operands)


@compiled
@pytest.mark.parametrize("name", _backend.OPERATIONS)
def test_fused_backends_have_every_operation(name):
    assert _backend.unavailable("cpp", name) == ""
    assert _backend.implementation("cpp", name).__name__ == f"ddvi_fast.native.{name}"
    assert callable(_backend.implementation("cpp", name).unsupported)


@compiled
def test_tensors_without_memory_run_on_any_backend():
    there = torch.zeros(4, 2, device="meta")
    with ddvi_fast.use_backend("cpp"):
        assert _backend.choose("elbo", there.device, x=there) == "cpp"
        assert ddvi_fast.ops.gaussian_kl(there, there).shape == (4,)
