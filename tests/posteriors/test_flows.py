"""Normalizing flows: inverse, Jacobian, density, and the import of zuko."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.distributions import Distribution

from ddvi_fast import InputError
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors import IAF, Planar, RealNVP, Spline
from ddvi_fast.posteriors.planar import PlanarStep
from ddvi_fast.rng import Draws

FAMILIES = pytest.mark.parametrize("family", [IAF, Planar, RealNVP, Spline])
WITH_ZUKO = pytest.mark.parametrize("family", [RealNVP, Spline])


def make(family, latent_dim, **options):
    encoder, context = MLP(5, [8], 2 * latent_dim), MLP(5, [8], 4, draws=Draws(1))
    posterior = family(encoder, context, latent_dim=latent_dim, context_dim=4, draws=Draws(2), **options).double()
    with torch.no_grad():
        for parameter in posterior.steps.parameters():
            parameter.mul_(2)  # away from the identity
    return posterior


def inputs(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@FAMILIES
@pytest.mark.parametrize("latent_dim", [1, 2, 3, 5])
def test_inverse_and_jacobian_of_each_step(family, latent_dim):
    z, context = inputs(4, latent_dim), inputs(4, 4)
    for step in make(family, latent_dim).steps:
        y, log_det = step(z, context)
        back, same_log_det = step.inverse(y, context)
        torch.testing.assert_close(back, z, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(same_log_det, log_det, rtol=1e-6, atol=1e-7)
        for row in (slice(number, number + 1) for number in range(4)):
            jacobian = torch.autograd.functional.jacobian(lambda value, step=step, row=row: step(value, context[row])[0][0], z[row])[:, 0]
            torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], log_det[row][0])


@FAMILIES
def test_the_inverse_has_the_right_gradients(family):
    posterior, z, context = make(family, 2), inputs(3, 2), inputs(3, 4)
    for step in posterior.steps:
        y = step(z, context)[0].detach()
        assert torch.autograd.gradcheck(step.inverse, (y.requires_grad_(), context.clone().requires_grad_()), atol=1e-5)


@FAMILIES
def test_the_density_integrates_to_one(family):
    posterior, x = make(family, 2), inputs(1, 5)
    axis = torch.linspace(-9, 9, 241, dtype=torch.float64)
    with torch.no_grad():
        density = torch.exp(-posterior(x, torch.cartesian_prod(axis, axis).view(1, -1, 1, 2)))
    assert float(density.sum() * 0.075**2) == pytest.approx(1, abs=2e-3)


def test_a_planar_step_is_invertible_where_its_parameters_would_fold():
    step, context = PlanarStep(2, 3).double(), torch.ones(1, 3, dtype=torch.float64)
    with torch.no_grad():
        step.layer.weight.zero_()
        step.layer.bias.copy_(torch.tensor([-4.0, 0.0, 5.0, 0.0, 0.3]))  # w . u = -20
    z = torch.linspace(-2, 2, 41, dtype=torch.float64).view(-1, 1, 1) * torch.tensor([1.0, 0.5], dtype=torch.float64)
    y, log_det = step(z, context)
    assert bool(log_det.isfinite().all()) and bool((y.diff(dim=0)[..., 0] > 0).all())
    torch.testing.assert_close(step.inverse(y, context)[0], z, rtol=1e-4, atol=1e-4)


@WITH_ZUKO
def test_zuko_leaves_the_process_as_it_was(family, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    checked, state = Distribution._validate_args, torch.get_rng_state()
    make(family, 2)
    assert Distribution._validate_args is checked and torch.equal(torch.get_rng_state(), state)


@WITH_ZUKO
def test_without_zuko_one_line_says_what_to_do(family, monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(InputError, match=r"^posterior: expected zuko[^\n]*ddvi-fast\[flows\][^\n]*Planar and IAF[^\n]*$"):
        make(family, 2)
    assert make(Planar, 2).has_density


@FAMILIES
def test_at_least_one_step(family):
    with pytest.raises(InputError, match=r"^num_steps: expected at least 1, got 0"):
        make(family, 2, num_steps=0)
