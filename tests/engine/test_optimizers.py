"""Tests of the choice of Adam: Apex and the package of the same name, DeepSpeed, torch; all are plain Adam."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch

from ddvi_fast._checks import InputError
from ddvi_fast.engine import optimizers
from ddvi_fast.engine.optimizers import MOMENTS, UpdateAdam, choose

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
STEPS = 5

GENUINE = """
import torch

class FusedAdam(torch.optim.Adam):
    def __init__(self, params, lr, adam_w_mode):
        assert adam_w_mode is False
        super().__init__(params, lr=lr)
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages that comes first."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("apex", "amp_C")]:
        del sys.modules[name]


def package(site, name, **files):
    (site / name).mkdir()
    for file, text in {"__init__": "", **files}.items():
        (site / name / f"{file}.py").write_text(text)
    importlib.invalidate_caches()


def test_genuine_apex_is_taken_and_named(site):
    package(site, "apex", optimizers=GENUINE)
    package(site, "amp_C")
    chosen = choose("auto", CUDA)
    assert chosen.name == "apex" and "apex" in chosen.note
    assert type(chosen.make([{"params": [torch.zeros(1)]}], 0.1, CPU)).__name__ == "FusedAdam"


def test_the_web_toolkit_of_that_name_is_not_taken_for_apex(site):
    package(site, "apex", lib="", models="")
    assert "not NVIDIA's" in optimizers.why_no_apex()
    chosen = choose("auto", CUDA)
    assert chosen.name in ("deepspeed", "torch") and "apex: the installed apex is not NVIDIA's" in chosen.note
    with pytest.raises(InputError, match=r"^optimiser: expected one that is installed, got 'apex' \(the installed apex is not NVIDIA's[^\n]*\)$"):
        choose("apex", CUDA)


def test_apex_without_its_extension_says_so(site):
    package(site, "apex", optimizers=GENUINE)
    assert "without its CUDA extension amp_C" in optimizers.why_no_apex()


def test_choices_that_cannot_run_are_refused():
    assert choose("auto", CPU).name == "torch"
    for name in ("apex", "deepspeed"):
        with pytest.raises(InputError, match=r"the device is cpu"):
            choose(name, CPU)
    with pytest.raises(InputError, match=r"it runs on the CPU"):
        choose("deepspeed_cpu", CUDA)
    with pytest.raises(InputError, match=r"^optimiser: expected one of [^\n]*did you mean torch"):
        choose("torhc", CPU)


def plain_adam(start, gradients, lr):
    """The formula, in float64 (Kingma and Ba 2015)."""
    value, mean, square = start.double(), 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        mean = 0.9 * mean + 0.1 * gradient.double()
        square = 0.999 * square + 0.001 * gradient.double() ** 2
        value = value - lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return value


HEADERS = """#pragma once
#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>
namespace torch { using namespace at; constexpr auto kFloat32 = c10::kFloat; }
"""


@pytest.fixture
def quickly_compiled(request, monkeypatch):
    """DeepSpeed compiles its CPU Adam at the first use: here as one source without optimization, in a folder that is not the user's.

    It includes torch's headers as a whole, which take longest: here only those that it uses.
    """
    if not (importlib.util.find_spec("deepspeed") and shutil.which("g++") and shutil.which("ninja")):
        pytest.skip("DeepSpeed's CPU Adam is compiled at its first use, with g++ and ninja")
    builder = importlib.import_module("deepspeed.ops.op_builder").CPUAdamBuilder
    sources, arguments = builder.sources, builder.cxx_args
    folder = request.config.cache.mkdir("torch_extensions")
    together = folder / "together.cpp"
    text = "".join(f'#include "{Path(builder().deepspeed_src_path(source)).resolve()}"\n' for source in reversed(sources(builder())))
    headers = folder / "headers" / "torch"
    headers.mkdir(parents=True, exist_ok=True)
    for path, content in ((together, text), (headers / "extension.h", HEADERS)):
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
    monkeypatch.setattr(builder, "sources", lambda self: [str(together)])
    monkeypatch.setattr(builder, "cxx_args", lambda self: [*arguments(self), "-O0", "-g0", f"-I{headers.parent}"])
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(folder))


@pytest.mark.parametrize("name", ["torch", pytest.param("deepspeed_cpu", marks=pytest.mark.slow)])
def test_each_is_plain_adam(name, request):
    if name == "deepspeed_cpu":
        request.getfixturevalue("quickly_compiled")
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(37, generator=generator)
    gradients = [torch.randn(37, generator=generator) for _ in range(STEPS)]
    parameter = torch.nn.Parameter(start.clone())
    adam = choose(name, CPU).make([{"params": [parameter]}], 0.01, CPU)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        adam.step()
    torch.testing.assert_close(parameter.detach().double(), plain_adam(start, gradients, 0.01), rtol=1e-5, atol=1e-6)


def test_updates_have_states_of_their_own_and_leave_others_alone():
    generator = torch.Generator().manual_seed(0)
    both, wake = (torch.nn.Parameter(torch.randn(5, generator=generator)) for _ in range(2))
    starts = both.detach().clone(), wake.detach().clone()
    groups = [
        {"params": [both], "updates": ("wake", "sleep"), "factor": 1.0, "frozen": False},
        {"params": [wake], "updates": ("wake",), "factor": 1.0, "frozen": False},
    ]
    adam = UpdateAdam(groups, choose("torch", CPU), 0.01, CPU)
    expected = [torch.nn.Parameter(start) for start in starts]
    plain = {"wake": torch.optim.Adam(expected, lr=0.01), "sleep": torch.optim.Adam(expected[:1], lr=0.01)}
    for name in ("wake", "sleep", "sleep", "wake"):
        for ours, theirs in zip((both, wake), expected, strict=True):
            ours.grad = torch.randn(5, generator=generator)
            theirs.grad = ours.grad.clone()
        adam.active = name
        adam.step()
        plain[name].step()
    for ours, theirs in zip((both, wake), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert adam.counts == {"wake": {0: 2, 1: 2}, "sleep": {0: 2, 1: 0}}
    assert torch.equal(adam.state[both]["sleep.exp_avg"], plain["sleep"].state[expected[0]]["exp_avg"])
    assert all(bool((adam.state[wake][f"sleep.{key}"] == 0).all()) for key in MOMENTS)


def test_nothing_moves_without_an_active_update_or_frozen():
    parameter = torch.nn.Parameter(torch.ones(3))
    adam = UpdateAdam([{"params": [parameter], "updates": ("wake",), "factor": 1.0, "frozen": True}], choose("torch", CPU), 0.1, CPU)
    for active in (None, "wake"):
        parameter.grad = torch.ones(3)
        adam.active = active
        adam.step()
    assert torch.equal(parameter, torch.ones(3)) and adam.counts == {"wake": {0: 0}}
