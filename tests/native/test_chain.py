"""The chain in C++ on every instruction set: parity, draws, determinism, bf16, golden values."""

from __future__ import annotations

import pytest
import torch

import ddvi_fast
from ddvi_fast import ops, parity, rng, schedules, testing
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.interop import denoiser_from_ddvi
from ddvi_fast.native import chain
from ddvi_fast.reference import chain as reference
from ddvi_fast.rng import Draws

CASES = {str(case): case for case in parity.cases("chain")}
# All sizes run on this processor's best instruction set in tests/ops; here one of each kind runs on all.
SOME = [name for name in CASES if name.startswith(("chain (0,", "chain (63, 2,", "chain (64, 5,", "chain (65,", "chain (2, 2, 64"))]


def _inputs(rows, steps, latent, context_width, hidden, groups):
    """Inputs in the order of the kernel: start, context, five weights, coefficients, noise."""
    denoiser = ResidualMLP(latent, context_width, steps, hidden, groups=groups)
    lead = () if groups is None else (groups,)
    start = rng.normal(Draws(1), (*lead, rows, latent), 0)
    context = rng.normal(Draws(2), (*lead, rows, context_width), 0) if context_width else None
    weights = [value.detach() for value in denoiser.chain_weights()]
    noise = reference.chain_noise(Draws(3), steps, (*lead, rows), latent, start)
    return [start, context, *weights, schedules.make("cosine", steps).coefficients("v"), noise]


def _run(inputs, residual=True, precision="float32"):
    """Everything that the kernel computes, forward and backward."""
    options = (None, 0, inputs[0].shape[-2], residual, precision)
    outputs = chain.forward(*inputs, *options, True)
    upstream = [testing.upstream_gradient(value, seed) for seed, value in enumerate(outputs)]
    return [*outputs, *chain.backward(*inputs, *options, outputs[2], *upstream, [value is not None for value in inputs])]


@pytest.mark.parametrize("name", SOME)
def test_values_and_gradients(isa, name):
    parity.check(CASES[name], "cpp")


@pytest.mark.parametrize("residual", [False, True])
def test_residual_does_not_follow_the_context(isa, residual):
    denoiser = ResidualMLP(2, 0 if residual else 2, 3, 64, residual=residual)
    y, context = rng.normal(Draws(1), (19, 2), 0), None if residual else rng.normal(Draws(2), (19, 2), 0)
    table = schedules.make("cosine", 3).coefficients("v")

    def run(backend, dtype):
        own = denoiser.to(dtype)
        with ddvi_fast.use_backend(backend):
            return testing.gradients(
                lambda y: ops.sample_chain(y, None if context is None else context.to(dtype), own, table, draws=Draws(4)).path, y.to(dtype)
            )

    every = (run("cpp", torch.float32), run("reference", torch.float32), run("reference", torch.float64))
    for got, plain, exact in zip(*every, strict=True):
        testing.assert_within_budget(got, plain, exact, floor=5e-6)


@pytest.mark.parametrize("shape", [(65,), (3, 22), (2, 5, 7)])
def test_drawn_noise_is_the_handed_noise(isa, shape):
    """Rows keep their draws however they were flattened, forward and backward."""
    rows, draws = torch.Size(shape).numel(), Draws(11, 7)
    inputs = _inputs(rows, 3, 5, 2, 64, None)
    inputs[8] = reference.chain_noise(draws, 3, shape, 5, inputs[0]).reshape(3, rows, 5)
    handed = _run(inputs)
    drawn = [*inputs[:8], None, draws.advance(-4).state(), 4, shape[-1], True, "float32"]
    outputs = chain.forward(*drawn, True)
    upstream = [testing.upstream_gradient(value, seed) for seed, value in enumerate(outputs)]
    got = [*outputs, *chain.backward(*drawn, outputs[2], *upstream, [True] * 8 + [False])]
    for value, expected in zip(got[:-1], handed[:-1], strict=True):
        testing.assert_close(value, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert got[-1] is None


def test_grouped_draws_count_groups_as_samples(isa):
    inputs, shape = _inputs(21, 3, 2, 0, 64, 2), (2, 3, 7)
    inputs[8] = reference.chain_noise(Draws(4), 3, shape, 2, inputs[0]).reshape(3, 2, 21, 2)
    handed = chain.forward(*inputs, None, 0, 7, False, "float32", False)
    drawn = chain.forward(*inputs[:8], None, Draws(4).state(), 0, 7, False, "float32", False)
    testing.assert_close(drawn[0], handed[0], rtol=1e-5, atol=1e-5, name="z")
    assert drawn[2] is None


def test_same_bits_twice_and_for_any_number_of_threads(isa, threads):
    inputs, results = _inputs(200, 3, 3, 2, 64, 2), []
    for count in (1, 2, 2):
        threads(count)
        results.append(_run(inputs))
    for later in results[1:]:
        assert all(torch.equal(value, other) for value, other in zip(results[0], later, strict=True))


def test_gradients_that_nobody_needs_are_not_computed():
    inputs = _inputs(40, 3, 3, 2, 64, None)
    options = (None, 0, 40, True, "float32")
    z, _, trajectory = chain.forward(*inputs, *options, True)
    for needed in ([True] + [False] * 8, [False, True] + [False] * 7, [False] * 3 + [True] + [False] * 5, [False] * 8 + [True]):
        found = chain.backward(*inputs, *options, trajectory, torch.ones_like(z), None, None, needed)
        assert [value is not None for value in found] == needed


@pytest.mark.parametrize(
    "case", [case for name, case in CASES.items() if name.startswith(("chain (0,", "chain (1, 5", "chain (65", "chain (257"))], ids=str
)
def test_bf16_stays_within_bf16_rounding(case, bf16_isa):
    """The reference rounds the same operands of the hidden products, so its error is the measure."""
    parity.check(case, "cpp", precision="bf16")


def test_bf16_is_not_float32(bf16_isa):
    inputs = _inputs(65, 4, 3, 2, 128, None)
    error = (_run(inputs)[0] - _run(inputs, precision="bf16")[0]).abs().max()
    assert 1e-4 < error < 0.1


def test_golden_trajectory(golden, isa):
    """The paper's conditional chain, eta = 0."""
    state = {name.removeprefix("cond/state/"): torch.tensor(golden[name]) for name in golden if name.startswith("cond/state/")}
    denoiser = denoiser_from_ddvi(state)
    start, context = torch.tensor(golden["cond/x_T"]), torch.tensor(golden["cond/context"])
    weights = [value.detach().contiguous() for value in denoiser.chain_weights()]
    expected, table = torch.tensor(golden["cond/trajectory"]), schedules.make("linear", 40).coefficients("eps", eta=0.0)
    _, path, trajectory = chain.forward(start, context, *weights, table, None, None, 0, len(start), denoiser.residual, "float32", True)
    assert path is None
    testing.assert_close(trajectory, expected, rtol=0, atol=1e-5 * float(expected.abs().max()), name="trajectory")
