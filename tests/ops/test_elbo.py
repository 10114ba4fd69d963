"""The bound's reductions against torch.distributions, limits without overflow, and gradcheck."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.distributions import Bernoulli, Binomial, Normal, kl_divergence

from ddvi_fast import InputError, ops, rng
from ddvi_fast.reference import elbo as reference
from ddvi_fast.rng import Draws
from ddvi_fast.testing import assert_close, assert_within_budget, strided
from tests.operands import draw_normals

normals = partial(draw_normals, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (2, 5, 7)])
def test_gaussians(shape):
    mean, log_var, z = (normals(*shape, seed=seed) for seed in range(3))
    posterior = Normal(mean, (log_var / 2).exp())
    assert_close(ops.gaussian_kl(mean, log_var), kl_divergence(posterior, Normal(torch.zeros_like(mean), 1.0)).sum(-1), rtol=1e-10)
    assert_close(ops.gaussian_log_prob(z, mean, log_var), posterior.log_prob(z).sum(-1), rtol=1e-10)
    assert_close(ops.gaussian_log_likelihood(mean, z, 0.3), Normal(mean, 0.3).log_prob(z).sum(-1), rtol=1e-10)
    scale = log_var.exp()
    assert_close(ops.gaussian_log_likelihood(mean, z, scale), Normal(mean, scale).log_prob(z).sum(-1), rtol=1e-10)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (2, 5, 7)])
def test_discrete(shape):
    logits, x = normals(*shape), (normals(*shape, seed=1) > 0).double()
    assert_close(ops.bernoulli_log_likelihood(logits, x), Bernoulli(logits=logits).log_prob(x).sum(-1), rtol=1e-10)
    counts = (rng.words(Draws(3), shape, 0) % 5).double()
    assert_close(ops.binomial_log_likelihood(logits, counts, 4), Binomial(4, logits=logits).log_prob(counts).sum(-1), rtol=1e-10)


def test_grey_bernoulli_is_the_cross_entropy():
    logits, x = normals(4, 6), rng.uniform(Draws(1), (4, 6), 0, dtype=torch.float64)
    expected = -torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
    assert_close(ops.bernoulli_log_likelihood(logits, x), expected, rtol=1e-10)


def test_extreme_logits_stay_finite():
    logits, x = torch.tensor([[200.0, -200.0, 200.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    assert ops.bernoulli_log_likelihood(logits, x).item() == -200.0


def test_float32_keeps_the_error_budget():
    logits, x = normals(3, 784, dtype=torch.float32) * 5, rng.uniform(Draws(1), (3, 784), 0)
    plain = torch.distributions.Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(-1)
    exact = ops.bernoulli_log_likelihood(logits.double(), x.double())
    assert_within_budget(ops.bernoulli_log_likelihood(strided(logits), strided(x)), plain, exact)


def test_leading_axes_broadcast():
    logits, x = normals(4, 5, 6), rng.uniform(Draws(1), (5, 6), 0, dtype=torch.float64)
    got = ops.bernoulli_log_likelihood(logits, x)
    assert_close(got, torch.stack([ops.bernoulli_log_likelihood(row, x) for row in logits]), rtol=1e-14)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_log_mean_exp(dim):
    weights = normals(3, 4)
    assert_close(ops.log_mean_exp(weights, dim), weights.exp().mean(dim).log(), rtol=1e-10, atol=1e-12)
    assert_close(ops.log_mean_exp(weights - 2000, dim), weights.exp().mean(dim).log() - 2000, rtol=1e-12)
    assert ops.log_mean_exp(torch.full((2,), -math.inf), 0) == -math.inf


def test_gradcheck():
    first, second, third = (normals(3, 4, seed=seed).requires_grad_() for seed in range(3))
    for function, inputs in [
        (reference.gaussian_kl, (first, second)),
        (reference.gaussian_log_prob, (first, second, third)),
        (reference.bernoulli_log_likelihood, (first, second)),
        (lambda mean, x, log_scale: reference.gaussian_log_likelihood(mean, x, log_scale.exp()), (first, second, third)),
        (lambda logits: reference.binomial_log_likelihood(logits, torch.tensor([0.0, 1.0, 2.0, 1.0]).double(), 2), (first,)),
        (lambda weights: reference.log_mean_exp(weights, 0), (first,)),
    ]:
        assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ops.gaussian_kl(torch.zeros(2, 3), torch.zeros(3)), r"log_var: expected shape \[2, 3\]"),
        (lambda: ops.bernoulli_log_likelihood(torch.zeros(2, 3), torch.zeros(2, 4)), "x: expected a last axis of 3"),
        (lambda: ops.binomial_log_likelihood(torch.zeros(2, 3), torch.zeros(2, 3), 0), "total: expected an integer of at least 1, got 0"),
        (lambda: ops.log_mean_exp(torch.zeros(0, 3), 0), "log_weights: expected at least one weight"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
