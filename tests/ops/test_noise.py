"""Forward noising: formula, law, sources of noise, gradients."""

from __future__ import annotations

import pytest
import torch

import ddvi_fast
from ddvi_fast import InputError, _backend, denoisers, ops, rng, schedules
from ddvi_fast.reference import noise as reference
from ddvi_fast.rng import Draws
from ddvi_fast.testing import assert_close, strided


@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_law(kind):
    schedule, rows = schedules.make("linear", 8, kind=kind, start=0.05, end=0.3), 40_000
    x_t, _ = ops.add_noise(torch.full((rows, 2), 1.5), torch.full((rows,), 5), schedule, draws=Draws(4))
    variance = schedule.noise_variances[5]
    assert ((x_t.double().mean(0) - 1.5 * schedule.alpha_bars[5].sqrt()).abs() < 4 * (variance / rows).sqrt()).all()
    assert ((x_t.double().var(0) - variance).abs() < 4 * variance * (2 / rows) ** 0.5).all()


@pytest.mark.parametrize("shape", [(0, 2), (1, 1), (3, 5), (2, 3, 4)])
def test_draws_are_the_noise_stream(shape):
    schedule, draws = schedules.make("cosine", 6), Draws(1, 50)
    x0, t = rng.normal(draws, shape, rng.PRIOR), torch.zeros(shape[:-1], dtype=torch.int64) + 3
    with ddvi_fast.use_backend("reference"):  # kernels make the same normals to a few units in the last place
        x_t, noise = ops.add_noise(x0, t, schedule, draws=draws)
        assert torch.equal(noise, rng.normal(draws, shape, rng.NOISE))
    expected = schedule.alpha_bars[3].sqrt() * x0.double() + (1 - schedule.alpha_bars[3]).sqrt() * noise.double()
    assert_close(x_t, expected, rtol=1e-6, atol=1e-6)
    with ddvi_fast.use_backend("reference"):
        again, _ = ops.add_noise(strided(x0), t, schedule, noise=strided(noise))
    assert torch.equal(again, x_t)


def test_gradcheck():
    inputs = [rng.normal(Draws(seed), shape, 0, dtype=torch.float64).requires_grad_() for seed, shape in enumerate([(3, 2), (1, 5), (1, 5), (3, 2)])]
    t = torch.tensor([0, 2, 4])
    assert torch.autograd.gradcheck(lambda x0, a, s, n: reference.add_noise(x0, t, a[0], s[0], n, None)[0], inputs)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"draws": None}, "noise, draws: expected exactly one of the two, got '?neither"),
        ({"noise": torch.zeros(3, 2)}, "got '?both"),
        ({"noise": torch.zeros(3, 1), "draws": None}, r"noise: expected shape \[3, 2\]"),
        ({"t": torch.tensor([0, 1, 6])}, r"t: expected timesteps in \[0, 6\), got '?0 to 6"),
        ({"t": torch.tensor([-1, 1, 2])}, "t: expected timesteps"),
        ({"t": torch.zeros(3)}, "t: expected an int64 or int32 tensor"),
        ({"x0": torch.zeros(3, 2, dtype=torch.int64)}, "x0: expected a floating-point"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x0": torch.zeros(3, 2), "t": torch.zeros(3, dtype=torch.int64), "noise": None, "draws": Draws(0)} | change
    with pytest.raises(InputError, match=message):
        ops.add_noise(arguments.pop("x0"), arguments.pop("t"), schedules.make("cosine", 6), **arguments)


@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
def test_timesteps_of_32_bits_are_those_of_64(backend):
    """In the noising and in the regression, values and gradients."""
    reason = _backend.unavailable(backend) if backend != "reference" else ""
    if reason or (backend == "triton" and not _backend.interpreted()):
        pytest.skip(reason or "the operands are on the CPU")
    schedule, draws = schedules.make("cosine", 4), Draws(1)
    denoiser = denoisers.ResidualMLP(2, 0, 4, hidden_dim=64, draws=Draws(2))
    t, found = torch.arange(9) % 4, []
    with ddvi_fast.use_backend(backend):
        for steps in (t, t.int()):
            x0 = rng.normal(draws, (9, 2), rng.PRIOR).requires_grad_()
            x_t, _ = ops.add_noise(x0, steps, schedule, draws=draws)
            losses = ops.denoising_loss(x0, steps, None, denoiser, schedule, draws=draws)
            found.append((x_t, losses, *torch.autograd.grad(x_t.square().sum() + losses.sum(), (x0, denoiser.hidden))))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
