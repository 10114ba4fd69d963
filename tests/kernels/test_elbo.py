"""The bound's reductions in Triton against the reference in float64, values and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddvi_fast import ops, parity, testing
from ddvi_fast.kernels import elbo
from ddvi_fast.parity import normals
from tests.operands import check_triton

# Empty sums and rows beyond the edge compute the logarithm of 0.
pytestmark = [pytest.mark.usefixtures("poison_empty"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def _check(case):
    check_triton(replace(case, floor=1e-6))


def _compare(function, **inputs):
    _check(parity.plain_case("elbo", function.__name__, function, **inputs))


@pytest.mark.parametrize("rows", [(0,), (1,), (2,), (63,), (3, 43)])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 16, 33, 64])
def test_values_and_gradients(rows, width):
    for case in parity.elbo_cases((*rows, width)):
        _check(case)


@pytest.mark.parametrize("width", [784, 1025, 2500])
def test_rows_longer_than_a_block(width):
    first, second = normals(0, 3, width), normals(1, 3, width)
    _compare(ops.bernoulli_log_likelihood, logits=8 * first, x=torch.sigmoid(second))
    _compare(ops.gaussian_log_likelihood, mean=first, x=second, scale=torch.tensor(0.3))


def test_softplus_has_a_small_relative_error():
    """Of tiny probabilities as of large ones; a logit that is not finite stays so."""
    logits = torch.cat((torch.linspace(-87, 87, 3001), torch.linspace(-1, 1, 501), torch.tensor([0.0, torch.inf, -torch.inf]))).unsqueeze(1)
    exact = torch.nn.functional.softplus(logits.double(), threshold=100).squeeze(1)
    got = -elbo.forward("bernoulli", [logits, torch.zeros_like(logits)], list(logits.shape), 0.0).double()
    finite = logits.squeeze(1).isfinite()
    assert ((got - exact).abs() <= 4e-7 * exact)[finite].all() and got[-1].isnan() and got[-2].isnan()
    tiny = elbo.forward("bernoulli", [torch.tensor([[torch.nan]]), torch.ones(1, 1)], [1, 1], 0.0)
    assert tiny.isnan().all()


def test_no_columns():
    """A sum over nothing is 0."""
    assert torch.equal(elbo.forward("gaussian_kl", [torch.zeros(3, 0)] * 2, [3, 0], 0.0), torch.zeros(3))
    assert elbo.backward("gaussian_kl", [torch.zeros(3, 0)] * 2, [3, 0], 0.0, torch.ones(3), [True, True])[0].shape == (3, 0)


@pytest.mark.parametrize("total", [1, 2, 7, 12, 255])
def test_binomial_coefficients(total):
    """Integer and fractional counts, both ends included."""
    counts = torch.cat([torch.arange(int(total) + 1.0), torch.linspace(0, total, 41)]).unsqueeze(1)
    _check(parity.binomial_case(f"binomial of {total}", normals(0, len(counts), 1), counts, total))
    equal = elbo.forward("binomial", [torch.zeros(2, 1), torch.tensor([[0.0], [1.0]])], [2, 1], 1.0)
    testing.assert_close(equal, torch.full((2,), 0.5, dtype=torch.float64).log(), rtol=1e-7)


@pytest.mark.parametrize("rows, width", [(0, 3), (1, 1), (63, 5), (7, 35), (2, 2500)])
def test_log_mean_exp(rows, width):
    _check(parity.plain_case("elbo", "log_mean_exp", lambda weights: ops.log_mean_exp(weights, 1), weights=30 * normals(0, rows, width) - 500))


def test_unsupported_operands_are_named():
    logits, counts = normals(0, 2, 3), torch.ones(2, 3)
    assert elbo.unsupported(logits=logits, counts=counts) is None
    assert "counts" in elbo.unsupported(logits=logits, counts=counts.requires_grad_())
    assert "float32" in elbo.unsupported(logits=logits.double())


def test_infinite_weights_have_an_infinite_mean():
    assert elbo.log_mean_exp(torch.tensor([[torch.inf, 0.0]]))[0] == torch.inf
