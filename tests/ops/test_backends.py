"""The C++ backend against the reference, through the public functions: values, gradients, draws."""

from __future__ import annotations

import pytest
import torch

import ddvi_fast
from ddvi_fast import _backend, denoisers, metrics, ops, parity, rng, schedules
from ddvi_fast._operands import Differentiable
from ddvi_fast.native import loader
from ddvi_fast.rng import Draws
from tests.operands import ALL, call, chain_operands, device_of, sleep_operands

pytestmark = pytest.mark.skipif(not loader.available()[0], reason=f"the compiled extension is missing: {loader.available()[1]}")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("groups", "samples"), [(None, ()), (None, (3,)), (2, ()), (2, (3,))])
def test_chain_draws_the_same_noise_for_every_layout(groups, samples):
    parity.check(parity.chain_case((7, 5, 3, 2, 64, groups), "drawn", samples=samples), "cpp")


def test_chain_gradients():
    parity.check(parity.chain_case((9, 6, 2, 2, 64, None), "drawn"), "cpp", upstream=("z", "path"))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: ops.gaussian_kl(x, y),
        lambda x, y: ops.bernoulli_log_likelihood(x, torch.sigmoid(y)),
        lambda x, y: ops.gaussian_log_likelihood(x, y, 0.5),
        lambda x, y: ops.log_mean_exp(x + y, 0),
        lambda x, y: ops.kde_log_density(x, y, [0.3, 1.0], clamp=50.0),
        lambda x, y: ops.mmd(x, y, [1.0, 5.0]),
    ],
)
def test_reductions_and_their_gradients(function):
    parity.check(parity.plain_case("elbo", "of two", function, x=random(13, 4), y=random(13, 4, seed=1)), "cpp")


def test_noise_is_the_same():
    parity.check(parity.noise_case((8, 5), "drawn"), "cpp")
    with ddvi_fast.use_backend("cpp"):
        noise = ops.add_noise(random(8, 5), torch.arange(8), schedules.make("cosine", 9), draws=Draws(3, 2))[1]
    torch.testing.assert_close(noise, rng.normal(Draws(3, 2), (8, 5), rng.NOISE), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", [name for name in ("cpp", "triton") if not _backend.unavailable(name)])
@pytest.mark.parametrize("operation, make", [("chain", chain_operands), ("sleep", sleep_operands)])
def test_gradients_that_nobody_needs_are_none(backend, operation, make):
    device = device_of(backend)
    module, operands = _backend.implementation(backend, operation), make((9, 3, 3, 2, 64, None), device=device)
    every = call(module, operands, ALL)
    for name in Differentiable._fields:
        needed = Differentiable(**{field: field == name for field in Differentiable._fields})
        got = call(module, operands, needed)
        assert [key for key, value in got.items() if key.startswith("d_") and value is not None] == [f"d_{name}"]
        assert torch.equal(got[f"d_{name}"], every[f"d_{name}"])


def test_what_the_kernels_cannot_take_is_refused():
    with ddvi_fast.use_backend("cpp"), pytest.raises(ddvi_fast.InputError, match="float32"):
        metrics.latent_nll(random(5, 2).double(), random(6, 2).double())


def test_auto_computes_what_the_kernels_cannot():
    x, counts = random(5, 2), torch.ones(5, 2).requires_grad_()
    ops.binomial_log_likelihood(x, counts, 2).sum().backward()
    assert counts.grad is not None
    narrow = denoisers.ResidualMLP(2, 0, 4, hidden_dim=24)
    table = schedules.make("cosine", 4).coefficients("v")
    assert ops.sample_chain(x, None, narrow, table, draws=Draws(0)).z.shape == (5, 2)
