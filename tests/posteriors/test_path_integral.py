"""The path integral sampler: its weight against path measures written out, and the motion without control."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from ddvi_fast import InputError
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors import PathIntegral
from ddvi_fast.rng import Draws
from tests.linear_gaussian import observations

STEPS = 6


def make(**options) -> PathIntegral:
    control = ResidualMLP(2, 4, STEPS, 16, draws=Draws(3))
    return PathIntegral(MLP(3, [], 2), control, MLP(3, [], 4, draws=Draws(1)), **options)


def test_the_weight_is_the_ratio_of_the_path_measures():
    posterior, x, draws = make(first_scale=0.5, last_scale=0.1).double(), observations(4).double(), Draws(2)
    encoded = posterior.encode(x)
    path = posterior.latent_path(encoded, 3, draws)
    scales = posterior.log_scales.exp()
    context = encoded.context.expand(3, 4, 4)
    aims = [encoded.mean.expand(3, 4, 2)]
    for step in range(1, STEPS + 1):
        t = torch.full((3, 4), STEPS - step)
        aims.append(path[step - 1] + scales[step] * posterior.denoiser(path[step - 1], context, t))
    starts = [torch.zeros(3, 4, 2, dtype=torch.float64), *path[:-1]]
    controlled = sum(Normal(aim, scale).log_prob(y).sum(-1) for aim, scale, y in zip(aims, scales, path, strict=True))
    free = sum(Normal(start, scale).log_prob(y).sum(-1) for start, scale, y in zip(starts, scales, path, strict=True))
    terminal = Normal(0.0, scales.square().sum().sqrt()).log_prob(path[-1]).sum(-1)
    expected = free - controlled - terminal
    torch.testing.assert_close(posterior.log_ratio(encoded, path), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(posterior.sample(x, 3, draws).log_ratio, expected, rtol=1e-5, atol=1e-5)
    # The same by Girsanov: log dP/dQ = -sum(u . xi + |u|^2 / 2), u in units of the noise.
    controls = [(aim - start) / scale for aim, start, scale in zip(aims, starts, scales, strict=True)]
    noises = [(y - aim) / scale for y, aim, scale in zip(path, aims, scales, strict=True)]
    girsanov = -sum(((u * xi).sum(-1) + 0.5 * u.square().sum(-1)) for u, xi in zip(controls, noises, strict=True))
    torch.testing.assert_close(free - controlled, girsanov)


def test_without_control_it_is_a_brownian_motion_whose_weight_is_its_density():
    control = ResidualMLP(2, 4, STEPS, 16, zero_output=True)
    posterior = PathIntegral(MLP(3, [], 2, zero_output=True), control, MLP(3, [], 4), first_scale=0.6, last_scale=0.2).double()
    z, log_ratio, _ = posterior.sample(observations(1).double(), 20000, Draws(1))
    variance = posterior.log_scales.exp().square().sum()
    torch.testing.assert_close(-log_ratio, Normal(0.0, variance.sqrt()).log_prob(z).sum(-1), rtol=1e-5, atol=1e-5)
    error = 4 * variance * (2 / 40000) ** 0.5
    assert abs(z.square().mean() - variance) < error


@pytest.mark.parametrize("learn_scales", [True, False])
def test_scales_are_geometric_at_first_and_learned_if_asked(learn_scales):
    posterior = make(first_scale=0.8, last_scale=0.1, learn_scales=learn_scales)
    scales = posterior.log_scales.exp()
    assert scales[0].item() == pytest.approx(0.8) and scales[-1].item() == pytest.approx(0.1)
    torch.testing.assert_close(scales[1:] / scales[:-1], torch.full((STEPS,), 0.125 ** (1 / STEPS)))
    assert posterior.log_scales.requires_grad == learn_scales


def test_refuses_parts_that_do_not_fit():
    with pytest.raises(InputError, match=r"^first_scale, last_scale: expected positive numbers"):
        make(first_scale=0.0)
    with pytest.raises(InputError, match=r"^denoiser: expected one with a context"):
        PathIntegral(MLP(3, [], 2), ResidualMLP(2, 0, 4, 16), MLP(3, [], 4))
    with pytest.raises(InputError, match=r"^encoder: expected an output \[N, 2\]"):
        PathIntegral(MLP(3, [], 4), ResidualMLP(2, 4, 4, 16), MLP(3, [], 4)).sample(torch.zeros(2, 3))
