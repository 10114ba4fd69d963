"""Terms of the bound in Triton against plain PyTorch."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import testing
from ddvi_fast.kernels import bound
from ddvi_fast.parity import normals

pytestmark = pytest.mark.usefixtures("poison_empty")


@pytest.mark.parametrize("samples, rows, scored", [(4, 128, True), (2, 300, True), (1, 5, False), (3, 0, True)])
@pytest.mark.parametrize("weight", [0.3, torch.tensor(0.3)], ids=("host", "device"))
def test_values_and_gradients(samples, rows, scored, weight):
    """The score of a class is the weight of its sample less the mean of the others."""
    likelihood, ratio, log_class = (normals(i, samples, rows).requires_grad_() for i in range(3))
    values = (likelihood + 0.3 * ratio).detach().double()
    score = torch.zeros(rows, dtype=torch.float64)
    if scored:
        others = torch.stack([torch.cat((values[:k], values[k + 1 :])).mean(0) for k in range(samples)])
        score = ((values - others) * log_class.double()).mean(0)
    expected = -likelihood.double().mean(0) - score, -ratio.double().mean(0)
    call = likelihood.detach(), ratio.detach()
    for one, other in zip(bound.forward(*call), (-call[0].double().mean(0), -call[1].double().mean(0)), strict=True):
        testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    upstream = normals(3, rows), normals(4, rows)
    inputs = (likelihood, ratio, log_class)
    for given in ((0, 1), (0,), (1,)):
        wanted = torch.autograd.grad(
            [expected[i] for i in given], inputs, [upstream[i].double() for i in given], retain_graph=True, allow_unused=True
        )
        found = bound.backward(*(upstream[i] if i in given else None for i in range(2)), *call, weight, scored)
        assert (found[2] is not None) == scored
        for one, other in zip(found, wanted, strict=True):
            if one is not None:
                testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-5, atol=1e-5)
