"""Tests of the launches that are recorded for the benchmark's cases, and of predictions from a program's loops."""

from __future__ import annotations

import importlib
import math

import pytest

from bench import cases
from bench.device import predictions, sass
from bench.device.static_model import Kernel, predict
from ddvi_fast import _backend

CASES = [case for case in cases.in_set("device") if case.operation != "training"]


@pytest.mark.skipif(bool(_backend.unavailable("triton")), reason="Triton is not installed")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_has_launches_with_their_numbers(case):
    common = importlib.import_module("ddvi_fast.kernels.common")
    for precision in predictions.precisions(case):
        launched = [each for call, arguments in predictions.calls(case, precision) for each in common.launches("", 90, call, *arguments)]
        assert launched and all(math.prod(each.grid) > 0 for each in launched)
        for each in launched:
            turns = predictions.TURNS.get(each.compilation.kernel.__name__, lambda values: 1)
            assert turns({**each.shapes, **each.compilation.constexprs, **each.values, "grid": math.prod(each.grid)}) >= 1


@pytest.mark.skipif(bool(_backend.unavailable("triton")), reason="Triton is not installed")
def test_a_launch_is_that_of_the_sizes():
    """16,777,216 x 2 numbers in tiles of 512 rows."""
    common = importlib.import_module("ddvi_fast.kernels.common")
    ((call, arguments),) = predictions.calls(cases.by_name("noise N=16777216 D=2 forward"))
    (launched,) = common.launches("", 90, call, *arguments)
    assert math.prod(launched.grid) == (1 << 24) // 512
    assert launched.values["rows"] == 1 << 24 and launched.compilation.constexprs["WIDTH"] == 2


def test_a_case_of_several_operations_has_no_calls():
    assert predictions.calls(cases.by_name("training N=128 T=40 forward+backward")) == []


def program(*lines: str) -> sass.Program:
    """A program from `opcode target`, each instruction with four stall cycles."""
    return sass.expanded("\n".join(f" {name} 4 7 7 0 {target} " for name, _, target in (line.partition(" ") for line in lines)))


def test_the_largest_loop_has_the_turns():
    one = Kernel(program("FFMA", "BRA 0", "FFMA", "FFMA", "FFMA", "BRA 2", "EXIT"), 4, 32, 0)
    found = predictions.prediction(one, "a_kernel", 132, 100)
    assert found is not None and found.cycles == predict(one, 132, [1, 100]).cycles > 20 * predict(one, 132, [1, 1]).cycles
    assert predictions.prediction(one, "a_kernel", 132, 0) is None, "the turns are not known"


def test_a_loop_that_is_not_walked_has_no_prediction():
    """The first branch, which is always taken, leads past the loop."""
    skipped = Kernel(program("FFMA", "BRA 5", "FFMA", "FFMA", "BRA 2", "EXIT"), 4, 32, 0)
    assert skipped.program.main_loop is not None
    assert predictions.prediction(skipped, "a_kernel", 132, 100) is None


def test_a_loop_in_another_has_no_prediction():
    nested = Kernel(program("FFMA", "FFMA", "BRA 1", "BRA 0", "EXIT"), 4, 32, 0)
    assert predictions.prediction(nested, "a_kernel", 132, 100) is None


def test_kernels_that_stream_wait_for_memory():
    one = Kernel(sass.expanded(" LDG 1 0 7 0  \n FFMA 1 7 7 1  \n EXIT 1 7 7 0  "), 4, 32, 0)
    streaming, cached = (predictions.prediction(one, name, 1, 0) for name in ("noise_fwd_kernel", "mmd_fwd_kernel"))
    assert streaming.cycles - cached.cycles == 720 - 290


def test_every_loop_has_its_turns():
    nested = Kernel(program("FFMA", "FFMA", "BRA 1", "BRA 0", "EXIT"), 4, 32, 0)
    whole, once = predictions._with_loops(nested, 1, [3, 7]), predictions._with_loops(nested, 1, [1, 1])
    assert whole is not None and once is not None and whole.cycles > 10 * once.cycles
    assert predictions._with_loops(nested, 1, [3]) is None, "the compiler made other loops"


@pytest.mark.skipif(bool(_backend.unavailable("triton")), reason="Triton is not installed")
def test_programs_that_go_different_ways_take_as_long_as_the_slowest(monkeypatch):
    """The weight gradients of the regression: each layer is modeled alone, with the turns of its own programs."""
    asked = []

    def of_layer(kernel, name, grid, turns):
        asked.append((kernel, grid, turns))
        return predict(Kernel(program(*["FFMA"] * (10 * (1 + kernel)), "EXIT"), 4, 32, 0), grid)

    monkeypatch.setattr(predictions, "compiled", lambda compilation: compilation.constexprs["LAYER"])
    monkeypatch.setattr(predictions, "prediction", of_layer)
    common = importlib.import_module("ddvi_fast.kernels.common")
    calls = predictions.calls(cases.by_name("sleep N=65536 T=40 D=2 forward+backward"), "bf16")
    launched = [each for call, arguments in calls for each in common.launches("", 90, call, *arguments) if "parts_0" in each.values]
    (found,) = predictions.predicted_launches(launched)
    assert asked == [(0, 132, 11), (1, 132, 15), (2, 132, 11)] and found.turns == 15
    assert found.microseconds == round(1e6 * of_layer(2, "", 132, 11).seconds, 2) > 0
