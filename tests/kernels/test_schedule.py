"""Tables of a learned schedule in Triton against plain PyTorch in float64."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import schedules, testing
from ddvi_fast._operands import ScheduleSpec
from ddvi_fast.kernels import schedule
from ddvi_fast.parity import normals
from ddvi_fast.posteriors.learned_tables import chain_table

pytestmark = pytest.mark.usefixtures("poison_empty")
CASES = [
    *((kind, predicts, eta, last) for kind in ("vp", "ve") for predicts in ("eps", "x0", "v", "mean") for eta, last in ((1.0, None), (0.6, 0.01))),
    *((kind, "increment", 1.0, None) for kind in ("vp", "ve")),
]


def plain(raw, factors, spec):
    """The three tables in float64."""
    noising = schedules.NoiseSchedule(schedules.learned_betas(raw, spec.kind), spec.kind)
    table = noising.coefficients(*spec[1:], dtype=torch.float64)
    deviations = table[:, 2] * (1 if factors is None else torch.exp(0.5 * factors.double()))
    table = torch.cat((table[:, :2], deviations.unsqueeze(1), table[:, 3:]), 1)
    return table, *noising.divergence_table(spec.parametrisation, spec.eta, deviations, dtype=torch.float64)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("steps, learned", [(5, True), (40, False)])
def test_tables_and_gradients(case, steps, learned):
    spec = ScheduleSpec(*case)
    initial = schedules.make("geometric" if spec.kind == "ve" else "cosine", steps, kind=spec.kind)
    raw = (schedules.LearnedSchedule(initial).raw.detach() + 0.3 * normals(0, steps)).requires_grad_()
    factors = (0.5 * normals(1, steps)).requires_grad_() if learned else None
    expected = plain(raw, factors, spec)
    got = schedule.forward(raw.detach(), None if factors is None else factors.detach(), spec)
    for one, other in zip(got, expected, strict=True):
        testing.assert_close(one, other.detach(), rtol=2e-6, atol=1e-6)
    testing.assert_close(got[0], chain_table(schedules.NoiseSchedule(schedules.learned_betas(raw, spec.kind), spec.kind), factors, spec), rtol=2e-6)
    upstream = normals(2, steps, 5), normals(3, steps, 5), normals(4, steps)
    inputs = (raw,) if factors is None else (raw, factors)
    for given in ((0, 1, 2), (0,), (1, 2)):
        outputs = [expected[i] for i in given]
        wanted = torch.autograd.grad(outputs, inputs, [upstream[i].double() for i in given], retain_graph=True, allow_unused=True)
        call = (upstream[i] if i in given else None for i in range(3))
        found = schedule.backward(*call, raw.detach(), None if factors is None else factors.detach(), spec)
        assert (found[1] is None) == (factors is None)
        for one, other in zip(found, wanted, strict=False):
            value = torch.zeros_like(one) if other is None else other
            testing.assert_close(one, value, rtol=1e-4, atol=2e-6 * float(value.abs().max()) + 1e-12)
