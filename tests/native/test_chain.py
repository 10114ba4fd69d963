"""The chain in C++ against the reference in float64: values, every gradient, awkward shapes, determinism, bf16."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import rng, schedules, testing
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.interop import denoiser_from_ddvi
from ddvi_fast.native import chain, loader
from ddvi_fast.reference import chain as reference
from ddvi_fast.reference.chain import ChainWeights
from ddvi_fast.rng import Draws

NAMES = ("z", "path", "trajectory", "d_start", "d_context", *(f"d_{name}" for name in ChainWeights._fields), "d_coefficients", "d_noise")

# N, T, D, C, H, G: every size of the contract at least once, small sizes with large ones.
SHAPES = [
    (0, 2, 2, 2, 64, None),
    (1, 5, 1, 0, 64, None),
    (2, 20, 2, 2, 64, None),
    (63, 2, 3, 7, 128, 3),
    (64, 5, 5, 64, 64, None),
    (65, 5, 16, 1, 128, 1),
    (257, 2, 33, 2, 64, 3),
    (17, 2, 64, 0, 256, None),
    (130, 5, 2, 2, 128, None),
]


def _case(rows, steps, latent, context_width, hidden, groups):
    """Inputs in the order of the kernel: start, context, five weights, coefficients, noise."""
    denoiser = ResidualMLP(latent, context_width, steps, hidden, groups=groups)
    lead = () if groups is None else (groups,)
    start = rng.normal(Draws(1), (*lead, rows, latent), 0)
    context = rng.normal(Draws(2), (*lead, rows, context_width), 0) if context_width else None
    weights = [value.detach() for value in denoiser.chain_weights()]
    noise = reference.chain_noise(Draws(3), steps, (*lead, rows), latent, start)
    return [start, context, *weights, schedules.make("cosine", steps).coefficients("v"), noise], denoiser.residual


def _run(function, inputs, residual, dtype, upstream_seeds=(5, 6, 7), **options):
    leaves = [None if value is None else value.to(dtype).detach().clone().requires_grad_() for value in inputs]
    outputs = function(leaves[0], leaves[1], ChainWeights(*leaves[2:7]), leaves[7], leaves[8], residual, **options)
    present = [value for value in leaves if value is not None]
    upstream = [testing.upstream_gradient(value.float(), seed).to(dtype) for value, seed in zip(outputs, upstream_seeds, strict=True)]
    found = iter(torch.autograd.grad(outputs, present, upstream))
    gradients = [None if value is None else next(found) for value in leaves]
    return dict(zip(NAMES, (*outputs, *gradients), strict=True))


def _compare(got, plain, exact, **options):
    for name, value in got.items():
        if value is not None:
            testing.assert_within_budget(value, plain[name], exact[name], name=name, **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(isa, shape):
    inputs, residual = _case(*shape)
    plain, exact = (_run(reference.sample_chain, inputs, residual, dtype) for dtype in (torch.float32, torch.float64))
    _compare(_run(chain.sample_chain, inputs, residual, torch.float32), plain, exact)


@pytest.mark.parametrize("residual", [False, True])
def test_residual_does_not_follow_the_context(isa, residual):
    inputs, usual = _case(19, 3, 2, 2, 64, None) if not residual else _case(19, 3, 2, 0, 64, None)
    assert usual != residual
    plain, exact = (_run(reference.sample_chain, inputs, residual, dtype) for dtype in (torch.float32, torch.float64))
    _compare(_run(chain.sample_chain, inputs, residual, torch.float32), plain, exact)


def test_deterministic_chain_has_no_path(isa):
    inputs, residual = _case(33, 4, 2, 2, 64, None)
    inputs[7] = schedules.make("cosine", 4).coefficients("eps", eta=0.0)

    def run(function, dtype):
        leaves = [value.to(dtype).detach().clone().requires_grad_() for value in inputs[:8]]
        z, path, trajectory = function(leaves[0], leaves[1], ChainWeights(*leaves[2:7]), leaves[7], None, residual)
        assert path is None
        return z, trajectory, *torch.autograd.grad(z, leaves[:7], testing.upstream_gradient(z.float()).to(dtype))

    every = (run(chain.sample_chain, torch.float32), run(reference.sample_chain, torch.float32), run(reference.sample_chain, torch.float64))
    for got, plain, exact in zip(*every, strict=True):
        testing.assert_within_budget(got, plain, exact)


@pytest.mark.parametrize("shape", [(65,), (3, 22), (2, 5, 7)])
def test_drawn_noise_is_the_handed_noise(isa, shape):
    """Rows keep their draws however they were flattened, forward and backward."""
    rows = torch.Size(shape).numel()
    inputs, residual = _case(rows, 3, 5, 2, 64, None)
    inputs[8] = reference.chain_noise(Draws(11, 7), 3, shape, 5, inputs[0]).reshape(3, rows, 5)

    def drawn(y, context, weights, coefficients, noise, residual):
        return chain.sample_chain_from_draws(y, context, weights, coefficients, Draws(11, 7), shape, residual, return_trajectory=True)

    exact, plain = (_run(reference.sample_chain, inputs, residual, dtype) for dtype in (torch.float64, torch.float32))
    leaves = [value.detach().clone().requires_grad_() for value in inputs[:8]]
    outputs = drawn(leaves[0], leaves[1], ChainWeights(*leaves[2:7]), leaves[7], None, residual)
    upstream = [testing.upstream_gradient(value, seed) for value, seed in zip(outputs, (5, 6, 7), strict=True)]
    got = dict(zip(NAMES, (*outputs, *torch.autograd.grad(outputs, leaves, upstream)), strict=False))
    _compare(got, plain, exact)


def test_grouped_draws_count_groups_as_samples(isa):
    inputs, residual = _case(21, 3, 2, 0, 64, 2)
    shape = (2, 3, 7)
    noise = reference.chain_noise(Draws(4), 3, shape, 2, inputs[0]).reshape(3, 2, 21, 2)
    weights = ChainWeights(*inputs[2:7])
    handed = chain.sample_chain(inputs[0], None, weights, inputs[7], noise, residual)
    drawn = chain.sample_chain_from_draws(inputs[0], None, weights, inputs[7], Draws(4), shape, residual)
    testing.assert_close(drawn[0], handed[0], rtol=1e-5, atol=1e-5, name="z")
    assert drawn[2] is None


def test_same_bits_twice_and_for_any_number_of_threads(isa, threads):
    inputs, residual = _case(200, 3, 3, 2, 64, 2)
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(_run(chain.sample_chain, inputs, residual, torch.float32))
    for name, value in results[0].items():
        assert all(torch.equal(value, other[name]) for other in results[1:]), name


def test_strided_and_expanded_inputs(isa):
    inputs, residual = _case(40, 3, 3, 2, 64, None)
    inputs[1] = inputs[1][:1].expand(40, 2)
    weights = ChainWeights(*inputs[2:7])
    plain = chain.sample_chain(inputs[0], inputs[1].contiguous(), weights, inputs[7], inputs[8], residual)
    odd = ChainWeights(*[testing.strided(value) for value in weights])
    got = chain.sample_chain(testing.strided(inputs[0]), inputs[1], odd, testing.strided(inputs[7]), testing.strided(inputs[8]), residual)
    assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))


def test_expanded_upstream_gradient(isa):
    """The gradient of a sum arrives with stride zero."""
    inputs, residual = _case(40, 3, 3, 2, 64, None)

    def gradient(function, dtype):
        start = inputs[0].to(dtype).requires_grad_()
        rest = [value.to(dtype) for value in inputs[1:]]
        z, path, _ = function(start, rest[0], ChainWeights(*rest[1:6]), rest[6], rest[7], residual)
        return torch.autograd.grad(z.sum() + path.sum(), start)[0]

    got, plain = (gradient(function, torch.float32) for function in (chain.sample_chain, reference.sample_chain))
    testing.assert_within_budget(got, plain, gradient(reference.sample_chain, torch.float64))


def test_frozen_weights_get_no_gradient():
    inputs, residual = _case(40, 3, 3, 2, 64, None)
    start = inputs[0].requires_grad_()
    z, _, _ = chain.sample_chain(start, inputs[1], ChainWeights(*inputs[2:7]), inputs[7], inputs[8], residual)
    (got,) = torch.autograd.grad(z.sum(), start)
    exact = [value.detach().double() for value in inputs]
    start = exact[0].requires_grad_()
    z, _, _ = reference.sample_chain(start, exact[1], ChainWeights(*exact[2:7]), exact[7], exact[8], residual)
    testing.assert_close(got, torch.autograd.grad(z.sum(), start)[0], rtol=1e-4, atol=1e-5, name="d_start")


@pytest.mark.parametrize("shape", [(1, 2, 1, 0, 64, None), (65, 4, 3, 2, 128, None), (127, 2, 16, 7, 64, 2)], ids=str)
def test_bf16_stays_within_bf16_rounding(shape):
    """Weights and activations lose 8 bits each; a wrong pairing of neighbours would be off by the size of the values."""
    if loader.library().ddvi_isa() < 3:
        pytest.skip("this processor has no bf16 products")
    inputs, residual = _case(*shape)
    exact = _run(reference.sample_chain, inputs, residual, torch.float64)
    got = _run(chain.sample_chain, inputs, residual, torch.float32, bf16=True)
    differs = False
    for name, value in got.items():
        if value is None:
            continue
        error = (value.double() - exact[name]).norm() / exact[name].norm()
        assert error < 0.06, f"{name}: relative error {error:.3g}"
        differs |= bool(error > 1e-5)
    assert differs


def test_golden_trajectory(golden, isa):
    """The paper's conditional chain, eta = 0."""
    state = {name.removeprefix("cond/state/"): torch.tensor(golden[name]) for name in golden if name.startswith("cond/state/")}
    denoiser = denoiser_from_ddvi(state)
    start, context = torch.tensor(golden["cond/x_T"]), torch.tensor(golden["cond/context"])
    weights = ChainWeights(*[value.detach() for value in denoiser.chain_weights()])
    expected, table = torch.tensor(golden["cond/trajectory"]), schedules.make("linear", 40).coefficients("eps", eta=0.0)
    _, _, trajectory = chain.sample_chain(start, context, weights, table, None, denoiser.residual)
    testing.assert_close(trajectory, expected, rtol=0, atol=1e-5 * float(expected.abs().max()), name="trajectory")
