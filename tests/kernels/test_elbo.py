"""The bound's reductions in Triton against the reference in float64, values and gradients."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import rng, testing
from ddvi_fast.kernels import elbo
from ddvi_fast.reference import elbo as reference
from ddvi_fast.rng import Draws

# Empty sums and rows behind the edge go through the logarithm of 0.
pytestmark = [pytest.mark.usefixtures("poison_empty"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]

REFERENCE = {
    "bernoulli": reference.bernoulli_log_likelihood,
    "gaussian": reference.gaussian_log_likelihood,
    "gaussian_kl": reference.gaussian_kl,
    "gaussian_log_prob": reference.gaussian_log_prob,
}


def _normal(*shape, seed=0):
    return rng.normal(Draws(seed), shape, 0)


def _compare(kind, inputs, total=0.0):
    """Value and the gradient of every operand (of the logits alone for a binomial)."""
    shape = torch.broadcast_shapes(*(value.shape for value in inputs))
    needed = [kind != "binomial" or i == 0 for i in range(len(inputs))]
    out = elbo.forward(kind, inputs, list(shape), total)
    upstream = testing.upstream_gradient(out)
    got = [out, *elbo.backward(kind, inputs, list(shape), total, upstream, needed)]
    assert all((gradient is not None) == need for gradient, need in zip(got[1:], needed, strict=True))

    def run(dtype):
        full = [value.to(dtype).expand(shape).clone().requires_grad_() for value in inputs]
        if kind == "binomial":
            value = reference.binomial_log_likelihood(*full, total)
        else:
            value = REFERENCE[kind](*full)
        return [value, *torch.autograd.grad(value, [leaf for leaf, need in zip(full, needed, strict=True) if need], upstream.to(dtype))]

    got = [value for value in got if value is not None]
    for i, (value, plain, exact) in enumerate(zip(got, run(torch.float32), run(torch.float64), strict=True)):
        testing.assert_within_budget(value, plain, exact, name=f"{kind} {i}")


@pytest.mark.parametrize("rows", [(0,), (1,), (2,), (63,), (3, 43)])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 16, 33, 64])
def test_values_and_gradients(rows, width):
    first, second, third = (_normal(*rows, width, seed=seed) for seed in range(3))
    _compare("bernoulli", [8 * first, torch.sigmoid(second)])
    _compare("gaussian", [first, second, third.exp()])
    _compare("binomial", [8 * first, (second.abs() > 1).float() + (third > 0).float()], 2)
    _compare("gaussian_kl", [first, second])
    _compare("gaussian_log_prob", [first, second, third])


@pytest.mark.parametrize("width", [784, 1025, 2500])
def test_rows_longer_than_a_block(width):
    first, second = _normal(3, width), _normal(3, width, seed=1)
    _compare("bernoulli", [8 * first, torch.sigmoid(second)])
    _compare("gaussian", [first, second, torch.tensor(0.3)])


def test_no_columns():
    """A sum over nothing is 0."""
    assert torch.equal(elbo.forward("gaussian_kl", [torch.zeros(3, 0)] * 2, [3, 0], 0.0), torch.zeros(3))
    assert elbo.backward("gaussian_kl", [torch.zeros(3, 0)] * 2, [3, 0], 0.0, torch.ones(3), [True, True])[0].shape == (3, 0)


def test_leading_axes_repeat():
    many, few, row = _normal(4, 5, 33, seed=1), _normal(5, 33, seed=2), _normal(1, 33, seed=3)[0].exp()
    _compare("bernoulli", [many, torch.sigmoid(few)])
    _compare("bernoulli", [few, torch.sigmoid(many)])
    _compare("gaussian", [many, few, row])
    _compare("gaussian_log_prob", [row, few, few])


def test_only_the_gradients_that_are_needed():
    inputs = [_normal(3, 5), _normal(3, 5, seed=1), _normal(3, 5, seed=2).exp()]
    every = elbo.backward("gaussian", inputs, [3, 5], 0.0, torch.ones(3), [True] * 3)
    got = elbo.backward("gaussian", inputs, [3, 5], 0.0, torch.ones(3), [False, True, False])
    assert got[0] is None and got[2] is None and torch.equal(got[1], every[1])


def test_extreme_logits():
    logits = torch.tensor([[-200.0, -90.0, -20.0, 0.0, 20.0, 90.0, 200.0]])
    _compare("bernoulli", [logits, torch.tensor([[0.0, 1.0, 0.0, 0.5, 1.0, 0.0, 1.0]])])


def test_small_softplus_keeps_its_relative_accuracy():
    """Far from the decision boundary each term is tiny: adding it to one first would lose it."""
    for logit in (-30.0, -17.0, -12.0):
        got = elbo.forward("bernoulli", [torch.full((1, 1), logit), torch.zeros(1, 1)], [1, 1], 0.0)
        testing.assert_close(got, -torch.log1p(torch.exp(torch.tensor([logit], dtype=torch.float64))), rtol=1e-6)


@pytest.mark.parametrize("total", [1, 2, 7, 12, 255, 12.5])
def test_binomial_coefficients(total):
    """Whole and broken counts, both ends included."""
    counts = torch.cat([torch.arange(int(total) + 1.0), torch.linspace(0, total, 41)]).unsqueeze(1)
    _compare("binomial", [_normal(len(counts), 1), counts], total)
    equal = elbo.forward("binomial", [torch.zeros(2, 1), torch.tensor([[0.0], [1.0]])], [2, 1], 1.0)
    testing.assert_close(equal, torch.full((2,), 0.5, dtype=torch.float64).log(), rtol=1e-7)


@pytest.mark.parametrize("rows, width", [(0, 3), (1, 1), (63, 5), (7, 35), (2, 2500)])
def test_log_mean_exp(rows, width):
    log_weights = 30 * _normal(rows, width) - 500
    out = elbo.log_mean_exp(log_weights)
    upstream = testing.upstream_gradient(out)
    got = out, elbo.log_mean_exp_backward(log_weights, out, upstream)

    def run(dtype):
        leaf = log_weights.to(dtype).requires_grad_()
        value = reference.log_mean_exp(leaf, 1)
        return value, *torch.autograd.grad(value, leaf, upstream.to(dtype))

    for value, plain, exact in zip(got, run(torch.float32), run(torch.float64), strict=True):
        testing.assert_within_budget(value, plain, exact)


def test_log_mean_exp_at_the_edges():
    infinite = torch.tensor([[-torch.inf, -torch.inf], [0.0, -torch.inf], [torch.nan, 0.0], [1000.0, 1000.0], [torch.inf, 0.0]])
    got = elbo.log_mean_exp(infinite)
    assert got[0] == -torch.inf and torch.isnan(got[2]) and got[3] == 1000 and got[4] == torch.inf
    testing.assert_close(got[1], torch.tensor(0.5).log(), rtol=1e-6)


def test_what_the_kernels_refuse():
    logits, counts = _normal(2, 3), torch.ones(2, 3)
    assert elbo.unsupported(logits=logits, counts=counts) is None
    assert "counts" in elbo.unsupported(logits=logits, counts=counts.requires_grad_())
    assert "float32" in elbo.unsupported(logits=logits.double())
