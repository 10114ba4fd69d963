"""Edge cases of the bound's reductions on every fused backend: broadcasting, extreme values, infinities."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddvi_fast import ops, parity, testing
from ddvi_fast.parity import normals
from tests.operands import device_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def compare(fused):
    """Function that compares values and gradients with the reference."""

    def check(function, **inputs):
        parity.check(replace(parity.plain_case("elbo", function.__name__, function, **inputs), floor=1e-6), fused, device_of(fused))

    return check


def test_leading_axes_repeat(compare):
    many, few, row = normals(1, 4, 5, 33), normals(2, 5, 33), normals(3, 33).exp()
    compare(ops.bernoulli_log_likelihood, logits=many, x=torch.sigmoid(few))
    compare(ops.bernoulli_log_likelihood, logits=few, x=torch.sigmoid(many))
    compare(ops.gaussian_log_likelihood, mean=many, x=few, scale=row)
    compare(ops.gaussian_log_likelihood, mean=few, x=many, scale=normals(4, 4, 1, 33).exp())
    compare(ops.gaussian_log_prob, z=many, mean=few, log_var=few)
    compare(ops.gaussian_log_prob, z=row, mean=few, log_var=few)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_mean_exp_over_any_axis(compare, dim):
    compare(lambda log_weights: ops.log_mean_exp(log_weights, dim), log_weights=30 * normals(0, 6, 3, 35))


def test_extreme_logits(compare):
    logits = torch.tensor([[-200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0]])
    compare(ops.bernoulli_log_likelihood, logits=logits, x=torch.tensor([[0.0, 1.0, 0.0, 0.5, 1.0, 0.0, 1.0]]))


def test_small_softplus_keeps_its_relative_accuracy(implementation):
    """Far from the decision boundary each term is tiny: adding it to one first would lose it."""
    for logit in (-30.0, -17.0, -12.0):
        got = implementation.forward("bernoulli", [torch.full((1, 1), logit), torch.zeros(1, 1)], [1, 1], 0.0)
        testing.assert_close(got, -torch.log1p(torch.exp(torch.tensor([logit], dtype=torch.float64))), rtol=1e-6)


def test_log_mean_exp_at_the_edges(implementation):
    infinite = torch.tensor([[-torch.inf, -torch.inf], [0.0, -torch.inf], [torch.nan, 0.0], [1000.0, 1000.0]])
    got = implementation.log_mean_exp(infinite)
    assert got[0] == -torch.inf and torch.isnan(got[2]) and got[3] == 1000
    testing.assert_close(got[1], torch.tensor(0.5).log(), rtol=1e-6)


def test_only_the_gradients_that_are_needed(implementation):
    inputs = [normals(0, 3, 5), normals(1, 3, 5), normals(2, 3, 5).exp()]
    every = implementation.backward("gaussian", inputs, [3, 5], 0.0, torch.ones(3), [True] * 3)
    got = implementation.backward("gaussian", inputs, [3, 5], 0.0, torch.ones(3), [False, True, False])
    assert got[0] is None and got[2] is None and torch.equal(got[1], every[1])
