"""The bound's reductions in C++ against the reference in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import rng, testing
from ddvi_fast.native import elbo
from ddvi_fast.reference import elbo as reference
from ddvi_fast.rng import Draws


def _normal(*shape, seed=0):
    return rng.normal(Draws(seed), shape, 0)


def _compare(name, inputs, *extra):
    """Compare operation `name` on inputs that all get gradients, with further fixed arguments."""

    def run(module, dtype):
        leaves = [value.to(dtype).detach().clone().requires_grad_() for value in inputs]
        fixed = [value.to(dtype) if isinstance(value, torch.Tensor) else value for value in extra]
        out = getattr(module, name)(*leaves, *fixed)
        return out, *torch.autograd.grad(out, leaves, testing.upstream_gradient(out.float()).to(dtype))

    for got, plain, exact in zip(run(elbo, torch.float32), run(reference, torch.float32), run(reference, torch.float64), strict=True):
        testing.assert_within_budget(got, plain, exact, name=name)


@pytest.mark.parametrize("rows", [(0,), (1,), (3, 7)])
@pytest.mark.parametrize("width", [1, 17, 784])
def test_values_and_gradients(isa, rows, width):
    first, second, third = (_normal(*rows, width, seed=seed) for seed in range(3))
    _compare("bernoulli_log_likelihood", [8 * first, torch.sigmoid(second)])
    _compare("gaussian_log_likelihood", [first, second, third.exp()])
    _compare("gaussian_log_likelihood", [first, second, torch.tensor(0.3)])
    _compare("binomial_log_likelihood", [8 * first], (second.abs() > 1).float() + (third > 0).float(), 2)
    _compare("gaussian_kl", [first, second])
    _compare("gaussian_log_prob", [first, second, third])


def test_leading_axes_broadcast(isa):
    many, few, row = _normal(4, 5, 33, seed=1), _normal(5, 33, seed=2), _normal(1, 33, seed=3)[0].exp()
    _compare("bernoulli_log_likelihood", [many, torch.sigmoid(few)])
    _compare("bernoulli_log_likelihood", [few, torch.sigmoid(many)])
    _compare("gaussian_log_likelihood", [many, few, row])
    _compare("gaussian_log_likelihood", [few, many, _normal(4, 1, 33, seed=4).exp()])
    _compare("gaussian_log_prob", [many, few, few])


def test_extreme_logits(isa):
    logits = torch.tensor([[-200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0]])
    _compare("bernoulli_log_likelihood", [logits, torch.tensor([[0.0, 1.0, 0.0, 0.5, 1.0, 0.0, 1.0]])])


def test_small_softplus_keeps_its_relative_accuracy(isa):
    """Far from the decision boundary each term is tiny: adding it to one first would lose it."""
    logits = torch.full((1, 1), -30.0)
    got = elbo.bernoulli_log_likelihood(logits, torch.zeros(1, 1))
    testing.assert_close(got, -torch.exp(torch.tensor([-30.0], dtype=torch.float64)), rtol=1e-6)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_mean_exp(isa, dim):
    _compare("log_mean_exp", [30 * _normal(6, 3, 35)], dim)


def test_log_mean_exp_at_the_edges(isa):
    infinite = torch.tensor([[-torch.inf, -torch.inf], [0.0, -torch.inf], [torch.nan, 0.0], [1000.0, 1000.0]])
    got = elbo.log_mean_exp(infinite, 1)
    assert got[0] == -torch.inf and torch.isnan(got[2]) and got[3] == 1000
    testing.assert_close(got[1], torch.tensor(0.5).log(), rtol=1e-6)


def test_strided_inputs(isa):
    logits, x = _normal(5, 33), torch.sigmoid(_normal(5, 33, seed=1))
    assert torch.equal(elbo.bernoulli_log_likelihood(testing.strided(logits), testing.strided(x)), elbo.bernoulli_log_likelihood(logits, x))
