"""Device operations of a training step: at most 200, with a predicted time."""

from __future__ import annotations

import pytest

from bench import records
from bench.device import step
from ddvi_fast import _backend

pytestmark = pytest.mark.skipif(bool(_backend.unavailable("triton")), reason="Triton is not installed")


@pytest.mark.parametrize("precision, micro", [("float32", 1900), ("bf16", 1500)])
def test_the_step_of_the_benchmark_has_at_most_200_operations(precision, micro):
    """As many as the record says, whose predicted sum is within the goal."""
    found = step.benchmark_step(precision)
    assert found.count <= 200, found.names()
    names = found.names()
    assert names["_fused_adam_"] == 4 and names["chain_forward"] == names["chain_backward"] == 1 and names["sleep_fwd_kernel"] == 3
    known = records.read(step.RESULTS)["steps"][precision]
    assert known["names"] == dict(names) and known["count"] == found.count, "python -m bench.device.step writes the record anew"
    assert known["microseconds"] <= micro


def test_the_default_recipe_is_counted():
    assert step.default_step().count == records.read(step.RESULTS)["default_recipe"]


def test_operators_that_launch_nothing_are_not_counted():
    import torch

    found = step.Step()
    with step._Operators(found.operators):
        value = torch.empty(3, 4, device="meta").view(2, 6).mT
        torch.mm(value, value.mT) + 1.0
    assert found.operators == [("mm", 2.0 * 6 * 6 * 2), ("add", 0.0)]
