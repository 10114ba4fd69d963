"""The bound's reductions in C++ on every instruction set: parity, broadcasting, extreme values."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddvi_fast import ops, parity, testing
from ddvi_fast.native import elbo
from ddvi_fast.parity import normals


def _compare(function, *inputs):
    named = {f"input_{number}": value for number, value in enumerate(inputs)}
    parity.check(replace(parity.plain_case("elbo", "case", lambda **given: function(*given.values()), **named), floor=1e-6), "cpp")


@pytest.mark.parametrize("case", parity.cases("elbo"), ids=str)
def test_values_and_gradients(isa, case):
    parity.check(case, "cpp")


def test_leading_axes_broadcast(isa):
    many, few, row = normals(1, 4, 5, 33), normals(2, 5, 33), normals(3, 1, 33)[0].exp()
    _compare(ops.bernoulli_log_likelihood, many, torch.sigmoid(few))
    _compare(ops.bernoulli_log_likelihood, few, torch.sigmoid(many))
    _compare(ops.gaussian_log_likelihood, many, few, row)
    _compare(ops.gaussian_log_likelihood, few, many, normals(4, 4, 1, 33).exp())
    _compare(ops.gaussian_log_prob, many, few, few)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_mean_exp_over_any_axis(isa, dim):
    _compare(lambda log_weights: ops.log_mean_exp(log_weights, dim), 30 * normals(0, 6, 3, 35))


def test_extreme_logits(isa):
    logits = torch.tensor([[-200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0]])
    _compare(ops.bernoulli_log_likelihood, logits, torch.tensor([[0.0, 1.0, 0.0, 0.5, 1.0, 0.0, 1.0]]))


def test_small_softplus_keeps_its_relative_accuracy(isa):
    """Far from the decision boundary each term is tiny: adding it to one first would lose it."""
    got = elbo.forward("bernoulli", [torch.full((1, 1), -30.0), torch.zeros(1, 1)], [1, 1], 0.0)
    testing.assert_close(got, -torch.exp(torch.tensor([-30.0], dtype=torch.float64)), rtol=1e-6)


def test_log_mean_exp_at_the_edges(isa):
    infinite = torch.tensor([[-torch.inf, -torch.inf], [0.0, -torch.inf], [torch.nan, 0.0], [1000.0, 1000.0]])
    got = elbo.log_mean_exp(infinite)
    assert got[0] == -torch.inf and torch.isnan(got[2]) and got[3] == 1000
    testing.assert_close(got[1], torch.tensor(0.5).log(), rtol=1e-6)


def test_gradients_that_nobody_needs_are_not_computed():
    logits, x = normals(0, 3, 4), torch.sigmoid(normals(1, 3, 4))
    assert elbo.backward("bernoulli", [logits, x], [3, 4], 0.0, torch.ones(3), [True, False])[1] is None
