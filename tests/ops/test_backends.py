"""The C++ backend against the reference, through the public functions: values, gradients, draws."""

from __future__ import annotations

import pytest
import torch

import ddvi_fast
from ddvi_fast import _backend, denoisers, metrics, ops, rng, schedules
from ddvi_fast._operands import Differentiable
from ddvi_fast.native import loader
from ddvi_fast.rng import Draws
from ddvi_fast.testing import gradients
from tests.operands import ALL, TRITON_DEVICE, call, chain_operands, sleep_operands

pytestmark = pytest.mark.skipif(not loader.available()[0], reason=f"the compiled extension is missing: {loader.available()[1]}")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(function):
    """What `function` returns on the reference and on the C++ backend."""
    results = []
    for backend in ("reference", "cpp"):
        with ddvi_fast.use_backend(backend):
            results.append(function())
    return results


@pytest.mark.parametrize(("groups", "lead"), [(None, ()), (None, (3,)), (2, (2,)), (2, (2, 3))])
def test_chain_draws_the_same_noise_for_every_layout(groups, lead):
    denoiser = denoisers.ResidualMLP(3, 2, 5, hidden_dim=64, groups=groups, draws=Draws(1))
    y_T, context = random(*lead, 7, 3), random(*lead, 7, 2, seed=1)
    table = schedules.make("cosine", 5).coefficients("v")
    exact, fused = both(lambda: ops.sample_chain(y_T, context, denoiser, table, draws=Draws(4, 11), return_trajectory=True))
    for name in ("z", "path", "trajectory"):
        torch.testing.assert_close(getattr(fused, name), getattr(exact, name), rtol=1e-4, atol=1e-4)


def test_chain_gradients():
    denoiser = denoisers.ResidualMLP(2, 2, 6, hidden_dim=64, draws=Draws(1))
    y_T, context = random(9, 2).requires_grad_(), random(9, 2, seed=1).requires_grad_()
    table = schedules.make("linear", 6).coefficients("eps").requires_grad_()
    inputs = (y_T, context, table, *denoiser.parameters())

    def run():
        sample = ops.sample_chain(y_T, context, denoiser, table, draws=Draws(4))
        return torch.autograd.grad((sample.z * random(9, 2, seed=2)).sum() + (sample.path * random(9, seed=3)).sum(), inputs)

    exact, fused = both(run)
    for one, other in zip(exact, fused, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3 * float(one.abs().max()))


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
    x, y = random(13, 4).requires_grad_(), random(13, 4, seed=1).requires_grad_()

    def run():
        return function(x, y), gradients(function, x, y)

    (exact, exact_gradients), (fused, fused_gradients) = both(run)
    torch.testing.assert_close(fused, exact, rtol=1e-4, atol=1e-5)
    for one, other in zip(exact_gradients, fused_gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)


def test_noise_is_the_same():
    schedule, t = schedules.make("cosine", 9), torch.arange(8) % 9
    exact, fused = both(lambda: ops.add_noise(random(8, 5), t, schedule, draws=Draws(3, 2)))
    for one, other in zip(exact, fused, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fused[1], rng.normal(Draws(3, 2), (8, 5), rng.NOISE), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", [name for name in ("cpp", "triton") if not _backend.unavailable(name)])
@pytest.mark.parametrize("operation, make", [("chain", chain_operands), ("sleep", sleep_operands)])
def test_gradients_that_nobody_needs_are_none(backend, operation, make):
    device = TRITON_DEVICE if backend == "triton" else "cpu"
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
