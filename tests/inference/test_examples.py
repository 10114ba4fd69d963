"""The example models against their reference posteriors: densities exactly, short fits with wide margins."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ddvi_fast.inference import Architecture, Training
from ddvi_fast.inference.compare import c2st, moment_errors
from examples import eight_schools, gaussian_mixture, logistic_regression, references, two_moons

SHORT = Training(steps=150, batch_size=128)
SMALL = Architecture(num_steps=10)
NUTS = Path(__file__).resolve().parents[2] / "bench/references"


@pytest.mark.parametrize(
    ("module", "model", "reach"), [(two_moons, two_moons.TwoMoons(), 0.3), (gaussian_mixture, gaussian_mixture.GaussianMixture(), 6.0)]
)
def test_densities_of_the_simulators_are_densities_of_their_simulations(module, model, reach) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z, x = model.simulate(1)
        grid = reach * torch.cartesian_prod(*[torch.linspace(-1, 1, 1201).double()] * 2) + x.double()
        density = model.log_joint(grid, z.double()).exp()
        volume = (2 * model.support.upper_bound) ** 2  # of the prior's box
        cell = (2 * reach / 1200) ** 2
        assert abs(float(density.sum()) * cell * volume - 1) < 0.02
        mean = (density.unsqueeze(1) * grid).sum(0) * cell * volume
        many = torch.stack([x - moved for x, moved in _simulated_at(model, z)])
        torch.testing.assert_close(mean.float(), many.mean(0), rtol=0, atol=float(4 * many.std() / math.sqrt(len(many))) + 0.005)


def _simulated_at(model, z):
    """Data of other parameters, brought to those of `z` where the model only moves them."""
    others, x = model.simulate(4000)
    place = model._shift if isinstance(model, two_moons.TwoMoons) else lambda z: z
    return zip(x, place(others) - place(z), strict=True)


def test_reference_draws_of_the_moons_lie_on_their_crescents(shared_data) -> None:
    data = shared_data("posteriors/README.md").parents[1]
    for number in (1, 7):
        x, draws = references.observation(data, "two_moons", number), references.simulator_draws(data, "two_moons", number)
        log_joint = two_moons.TwoMoons().log_joint(x, draws)
        assert bool(torch.isfinite(log_joint).all())
        # Given its place, the radius is normal with deviation WIDTH: half its squared deviations add up to half a unit each.
        across = -0.5 * ((x - two_moons.TwoMoons._shift(draws) - torch.tensor([two_moons.CENTRE, 0.0])).norm(dim=1) - two_moons.RADIUS).square()
        assert abs(float(across.mean()) / two_moons.WIDTH**2 + 0.5) < 0.05


def test_the_schools_come_near_their_long_chain(shared_data) -> None:
    data = shared_data("posteriors/eight_schools_draws.npz").parents[1]
    reference = references.eight_schools_draws(data)
    effects = eight_schools.EightSchools.effects
    assert abs(float(reference["tau"].mean()) - 3.602) < 0.01 and abs(float(effects(reference)[:, 0].mean()) - 6.2) < 0.2
    posterior = eight_schools.fit(training=SHORT, architecture=SMALL)
    draws = posterior.sample(4000)
    mean, _ = moment_errors(
        torch.cat((effects(draws), draws["mu"].unsqueeze(1)), 1), torch.cat((effects(reference), reference["mu"].unsqueeze(1)), 1)
    )
    assert mean < 0.2
    weighted = posterior.importance_sample(4000)
    assert abs(weighted.log_evidence + 31.31) < 0.15  # by quadrature below
    assert weighted.effective_sample_size > 400


def test_the_schools_evidence_is_that_of_quadrature() -> None:
    # Effects integrate out: y_j ~ N(mu, tau^2 + sigma_j^2).
    mu, tau = torch.linspace(-40, 45, 600).double(), torch.logspace(-4, 3, 1200).double()
    deviation = torch.hypot(tau.unsqueeze(1), eight_schools.ERRORS.double())
    inner = torch.distributions.Normal(mu[:, None, None], deviation).log_prob(eight_schools.EFFECTS.double()).sum(-1)
    prior = torch.distributions.Normal(0, 5).log_prob(mu).unsqueeze(1) + torch.distributions.HalfCauchy(5).log_prob(tau)
    evidence = torch.trapezoid(torch.trapezoid((inner + prior).exp(), tau, dim=1), mu).log()
    assert abs(float(evidence) + 31.31) < 0.01


def test_the_regression_comes_near_its_chain() -> None:
    reference = references.logistic_regression_draws(NUTS)
    posterior = logistic_regression.fit(training=SHORT, architecture=SMALL)
    mean, deviation = moment_errors(posterior.sample(4000), reference)
    assert mean < 0.2 and deviation < 0.3
    assert c2st(posterior.sample(400), reference[:400]) < 0.65
    weighted = posterior.importance_sample(4000)
    corrected, _ = moment_errors(weighted.resample(4000), reference)
    assert corrected < 0.2


def test_the_mixture_lies_around_its_data(shared_data) -> None:
    data = shared_data("posteriors/observations.json").parents[1]
    posterior = gaussian_mixture.fit(training=Training(steps=400, batch_size=256), architecture=SMALL)
    x = references.observation(data, "gaussian_mixture", 3)
    draws, reference = posterior.sample(4000, x), references.simulator_draws(data, "gaussian_mixture", 3)

    assert bool((draws.abs() < gaussian_mixture.BOX).all())
    assert float((draws.mean(0) - reference.mean(0)).abs().max()) < 0.5 and 0.3 < float((draws.std(0) / reference.std(0)).mean()) < 2.5
    assert 0.6 < posterior.diagnostics(300, 99).coverage(0.8)["joint"] < 0.95


def test_the_moons_are_two_and_thin(shared_data) -> None:
    data = shared_data("posteriors/observations.json").parents[1]
    posterior = two_moons.fit(training=Training(steps=400, batch_size=256), architecture=SMALL)
    x = references.observation(data, "two_moons", 3)
    draws = posterior.sample(4000, x)
    assert 0.3 < float((draws.sum(1) > 0).float().mean()) < 0.7
    radius = (x - two_moons.TwoMoons._shift(draws) - torch.tensor([two_moons.CENTRE, 0.0])).norm(dim=1)
    assert abs(float(radius.median()) - two_moons.RADIUS) < 0.03
