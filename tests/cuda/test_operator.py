"""The operator of the chain on the CUDA C++ backend: launches are run by the emulation, so that tensors stay on the CPU."""

from __future__ import annotations

import ctypes
import importlib.util
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import ddvi_fast
from ddvi_fast import _backend, denoisers, ops, parity, schedules
from ddvi_fast._operands import Differentiable
from ddvi_fast.cuda import chain, compiler, module
from ddvi_fast.cuda import launch as launching
from ddvi_fast.rng import Draws
from tests.cuda import emulated
from tests.operands import ALL, chain_operands
from tests.ops.test_operators import Recorder, fresh

INTERPRETED = importlib.util.find_spec("triton") is not None and _backend.interpreted()
pytestmark = [
    pytest.mark.skipif(emulated.COMPILER is None, reason="no C++ compiler on this machine"),
    pytest.mark.skipif(not INTERPRETED, reason="the gradients of weights on the CPU need Triton's interpreter"),
    pytest.mark.usefixtures("emulation", "validation"),
]
STEPS = 3
TABLE = schedules.make("cosine", STEPS).coefficients("v")
DENOISER = denoisers.ResidualMLP(2, 3, STEPS, hidden_dim=64, draws=Draws(1))


class EmulatedDriver:
    """Runs kernels on host threads; a binary is the name of its source with its macros."""

    def __init__(self) -> None:
        self.launched: list[str] = []

    def load(self, binary):
        return binary

    def function(self, loaded, name):
        source, macros = loaded
        return emulated.library(source.removesuffix(".cu"), **macros), name

    def allow_shared_memory(self, function, size):
        pass

    def launch(self, function, grid, threads, shared, stream, arguments):
        library, name = function
        self.launched.append(name)
        assert all(each.value % 16 == 0 for each in arguments if isinstance(each, ctypes.c_void_p) and each.value)
        places = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        library.emulate(*grid[:2], 0, places)


def constant(value):
    """A function that torch.compile takes for a constant, as those in its place."""
    function = lambda *arguments: value  # noqa: E731
    function._dynamo_marked_constant = True
    return function


def call(operands, needed=ALL) -> dict[str, torch.Tensor | None]:
    """Results and gradients by name, under upstream gradients of ones."""
    z, path, trajectory, signs, outputs = chain.forward(operands, True, True, needed.table)
    gradients = chain.backward(operands, trajectory, signs, outputs, torch.ones_like(z), torch.ones_like(path), None, needed)
    return {"z": z, "path": path} | {f"d_{name}": value for name, value in gradients._asdict().items()}


@pytest.fixture
def emulation(monkeypatch) -> EmulatedDriver:
    """The backend ``cuda`` for tensors on the CPU."""
    driver = EmulatedDriver()
    for place in (module, launching):
        monkeypatch.setattr(place, "driver", lambda: driver)
    monkeypatch.setattr(module, "_loaded", {})
    monkeypatch.setattr(module, "architecture", constant(90))
    monkeypatch.setattr(chain, "architecture", constant(90))
    monkeypatch.setattr(chain, "broken", constant(""))
    monkeypatch.setattr(chain, "_elsewhere", lambda tensors: "")
    monkeypatch.setattr(compiler, "binary", lambda source, architecture, **macros: (source, macros))
    monkeypatch.setattr(_backend, "_cuda_missing", lambda: "")
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return driver


# Kernels are compiled for each combination of widths and source of noise, so there are few.
CASES = [
    parity.chain_case((3, 3, 2, 3, 64, None), "drawn"),
    parity.chain_case((0, 3, 2, 3, 64, None), "drawn"),
    parity.chain_case((9, 2, 5, 7, 64, 2), "given", samples=(2,)),
    parity.chain_case((19, 2, 3, 0, 64, 4), "deterministic", indexed=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_the_reference(case):
    parity.check(case, "cuda")


def test_narrow_products_round_as_the_reference_does():
    parity.check(CASES[0], "cuda", precision="bf16")


def test_the_operator_passes_opcheck():
    with Recorder() as recorder:
        parity.run(CASES[0], "cuda")
    calls = {name: recorded for name, recorded in recorder.calls.items() if "fill" not in name}
    assert len(calls) == 2
    for name, (operator, arguments) in calls.items():
        given = tuple(fresh(value, "backward" not in name) for value in arguments)
        # Compilation, the last of its checks, has a test below.
        torch.library.opcheck(operator, given, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.parametrize("dynamic", [False, True])
def test_it_compiles_without_a_graph_break(dynamic):
    def of(y, context):
        with ddvi_fast.use_backend("cuda"):
            return ops.sample_chain(y, context, DENOISER, TABLE, draws=Draws(2)).path

    y, context = parity.normals(1, 4, 2).requires_grad_(), parity.normals(2, 4, 3)
    eager, compiled = of(y, context), torch.compile(of, fullgraph=True, dynamic=dynamic, backend="aot_eager")(y, context)
    assert torch.equal(eager, compiled)
    assert torch.equal(*(torch.autograd.grad(path.sum(), y)[0] for path in (eager, compiled)))


def test_backward_runs_where_forward_did(emulation):
    y = parity.normals(1, 4, 2).requires_grad_()
    with ddvi_fast.use_backend("cuda"):
        path = ops.sample_chain(y, parity.normals(2, 4, 3), DENOISER, TABLE, draws=Draws(2)).path
    with ddvi_fast.use_backend("reference"):
        path.sum().backward()
    assert emulation.launched == ["chain_forward", "chain_backward"]


@pytest.mark.parametrize("kept", [(False, False), (True, False), (True, True)])
def test_what_was_not_kept_is_made_again(emulation, kept):
    operands = chain_operands((5, 3, 2, 3, 64, None))
    z, path, trajectory, signs, outputs = chain.forward(operands, True, *kept)
    assert [value is not None for value in (trajectory, signs, outputs)] == [True, *kept]
    got = chain.backward(operands, trajectory, signs, outputs, torch.ones_like(z), torch.ones_like(path), None, ALL)
    expected = call(operands)
    assert all(torch.equal(value, expected[f"d_{name}"]) for name, value in got._asdict().items())
    assert emulation.launched[1] == ("chain_backward" if all(kept) else "chain_forward")


def test_gradients_that_nobody_needs_are_none():
    operands = chain_operands((5, 3, 2, 3, 64, None))
    every = call(operands)
    for name in ("latents", "context", "hidden", "table", "noise"):
        got = call(operands, Differentiable(**{field: field == name for field in Differentiable._fields}))
        assert [key for key, value in got.items() if key.startswith("d_") and value is not None] == [f"d_{name}"]
        assert torch.equal(got[f"d_{name}"], every[f"d_{name}"])


def test_views_that_start_anywhere_are_read():
    def shifted(value):
        if not isinstance(value, torch.Tensor):
            return value
        return torch.cat((value.flatten()[:1], value.flatten()))[1:].view(value.shape)

    operands = chain_operands((5, 3, 2, 3, 64, None))
    moved = operands._make(map(shifted, operands))
    assert moved.hidden.data_ptr() % 16 and moved.hidden.is_contiguous()
    expected, got = call(operands), call(moved)
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_nothing_is_kept_without_a_gradient(emulation):
    with ddvi_fast.use_backend("cuda"), torch.no_grad():
        sample = ops.sample_chain(parity.normals(1, 4, 2), parity.normals(2, 4, 3), DENOISER, TABLE, draws=Draws(2))
    assert sample.trajectory is None and emulation.launched == ["chain_forward"]
    ((variant, _),) = module._loaded
    assert dict(variant.macros)["DDVI_KEEP"] == 0


def test_rows_of_a_group_that_does_not_exist_are_nan():
    grouped = denoisers.ResidualMLP(2, 3, STEPS, hidden_dim=64, groups=4, draws=Draws(1))
    weights = {name: value.detach() for name, value in grouped.chain_weights()._asdict().items()}
    whole = chain_operands((5, 3, 2, 3, 64, None))
    order, starts = torch.tensor([0, 1, 2, 4, 3]), torch.tensor([0, 2, 2, 4, 4])  # row 3 is in none
    z = chain.forward(whole._replace(**weights, order=order, starts=starts), False)[0]
    assert z.isnan().all(1).tolist() == [False, False, False, True, False]
