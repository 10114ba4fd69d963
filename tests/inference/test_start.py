"""The Gaussian from which a fit of one data set starts: densities in any units, and what it did not find."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Normal, constraints

from ddvi_fast import fit_posterior, rng
from ddvi_fast.inference import Architecture, Model, Support, Training, start
from ddvi_fast.inference.model import FlatModel
from ddvi_fast.inference.whitening import Whitening
from ddvi_fast.rng import Draws

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short_start() -> None:
    """All steps in these tests, in place of the shared fixture's."""


def model(unit: float) -> Model:
    """z ~ N(0, unit^2), x = z + 0.3 noise in that unit: at x = 1 unit the posterior is N(0.917, 0.287^2)."""
    return Model(log_joint=lambda x, z: Normal(0, unit).log_prob(z[..., 0]) + Normal(z[..., 0], 0.3 * unit).log_prob(x * unit))


def found(density: Model, dim: int = 1) -> Tensor:
    flat = FlatModel(density, Support(constraints.real, dim), Whitening(torch.zeros(dim), torch.eye(dim)))
    return start.units(flat, torch.tensor(1.0), torch.randn(16, dim, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("unit", [1e-12, 1e-9, 1e-6, 1e6, 1e9])
def test_the_scale_of_a_coordinate_is_that_of_its_curvature(unit: float) -> None:
    assert abs(float(found(model(unit))) / (unit / math.sqrt(1 + 1 / 0.09)) - 1) < 0.5


def test_coordinates_of_order_1_keep_their_scale() -> None:
    assert found(model(1.0)).tolist() == [1.0] and found(model(0.1)).tolist() == [1.0]
    far = Model(log_joint=lambda x, z: Normal(3, 1e-5).log_prob(z[..., 0]))  # out of reach in units of its deviation
    assert found(far).tolist() == [1.0]
    both = Model(log_joint=lambda x, z: Normal(0, 1e-9).log_prob(z[..., 0]) + Normal(2, 1.0).log_prob(z[..., 1]))
    assert abs(float(found(both, 2)[0]) / 1e-9 - 1) < 0.5 and float(found(both, 2)[1]) == 1.0


@pytest.mark.parametrize("unit", [1e-9])
def test_the_posterior_of_a_density_follows_its_units(unit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "STEPS", 500)
    whitening = start.gaussian_start(model(unit), torch.tensor(1.0), Support(constraints.real, 1), 0, CPU)
    assert abs(float(whitening.shift) / unit - 0.9174) < 0.01 and abs(float(whitening.factor) / unit / 0.2873 - 1) < 0.05
    options = {"dim": 1, "architecture": Architecture(num_steps=4, width=16), "training": Training(steps=60, batch_size=64)}
    weighted = fit_posterior(model(unit), torch.tensor(1.0), **options).importance_sample(1000)
    exact = float(Normal(0, unit * math.sqrt(1.09)).log_prob(torch.tensor(unit)))
    assert weighted.effective_sample_size > 800 and abs(weighted.log_evidence - exact) < 0.05


def test_a_positive_parameter_of_any_size_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "STEPS", 600)
    density = Model(log_joint=lambda x, z: Gamma(2, 1e6).log_prob(z["rate"]))
    whitening = start.gaussian_start(density, None, Support({"rate": constraints.positive}), 0, CPU)
    # The best Gaussian for log z has variance 1/2, and E[z] under it is the mean of z.
    assert abs(float(whitening.factor) - math.sqrt(0.5)) < 0.02
    assert abs(float(whitening.shift) + 0.25 - math.log(2e-6)) < 0.05


def test_what_is_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "STEPS", 30)
    density = Model(log_joint=lambda x, z: Normal(1e6, 1.0).log_prob(z["mu"]) + Normal(0, 1.0).log_prob(z["nu"]))
    options = {"architecture": Architecture(family="gaussian"), "training": Training(steps=1, batch_size=8)}
    with pytest.warns(UserWarning, match="log_joint: the Gaussian from which the fit starts did not find mu; bring"):
        fit_posterior(density, support={"mu": constraints.real, "nu": constraints.real}, **options)


def test_strong_correlations_do_not_slow_the_start_down() -> None:
    """A Gaussian with a condition number of 10^8, which Adam alone leaves far from its place."""
    draws = rng.normal(Draws(3), (12, 12), rng.START).double()
    axes, _ = torch.linalg.qr(draws)
    covariance = axes @ torch.diag(torch.logspace(-4, 4, 12).double()) @ axes.T
    mean, precision = torch.linspace(-2, 2, 12).double(), torch.linalg.inv(covariance)

    def log_joint(x, z):
        away = z.double() - mean
        return -0.5 * (away @ precision * away).sum(-1)

    found = start.gaussian_start(Model(log_joint=log_joint), None, Support(constraints.real, 12), 0, CPU)
    factor = found.factor.double()
    ratio = torch.linalg.solve_triangular(factor, torch.linalg.cholesky(covariance), upper=False)
    assert torch.allclose(ratio @ ratio.T, torch.eye(12, dtype=torch.float64), atol=0.05)
    assert float(found.inverse(mean.float().unsqueeze(0)).abs().max()) < 0.1


def test_a_density_without_values_at_other_scales_can_be_fitted() -> None:
    def log_joint(x, z):
        if bool((z.abs() > 1e4).any()):
            raise ValueError("out of range")
        return -0.5 * z.square().sum(-1)

    found = start.gaussian_start(Model(log_joint=log_joint), None, Support(constraints.real, 2), 0, CPU)
    assert torch.allclose(found.factor, torch.eye(2), atol=0.05)


def test_a_narrow_posterior_far_from_the_start_is_found() -> None:
    """A regression whose coefficients lie a thousand standard deviations from 0, given an unknown scale."""
    draws = rng.normal(Draws(5), (100, 3), rng.START).double()
    design = 100 * draws
    y = design.sum(1) + rng.normal(Draws(6), (100, 1), rng.START)[:, 0]

    def log_joint(x, z):
        beta, sigma = z["beta"].double(), z["sigma"].double()
        return Normal(beta @ design.T, sigma.unsqueeze(-1)).log_prob(y).sum(-1)

    support = Support({"beta": (constraints.real, (3,)), "sigma": constraints.positive})
    found = start.gaussian_start(Model(log_joint=log_joint), None, support, 0, CPU)
    best = torch.linalg.lstsq(design, y.unsqueeze(1)).solution.squeeze(1)
    rest = (y - design @ best).square().sum() / 97
    deviations = (rest * torch.linalg.inv(design.T @ design).diagonal()).sqrt()
    assert float(((found.shift[:3] - best) / deviations).abs().max()) < 0.1
    assert torch.allclose((found.factor @ found.factor.T).diagonal()[:3].double().sqrt(), deviations, rtol=0.1)
