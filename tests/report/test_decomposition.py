"""Tests of the decomposition of a bound into terms and steps."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import denoisers, likelihoods, models, networks, objectives, ops, posteriors, priors, schedules
from ddvi_fast.recipes.phases import Experiment, Phase
from ddvi_fast.report.decomposition import decompose, step_ratios, timings
from ddvi_fast.rng import Draws


def experiment(family: str, eta: float = 1.0) -> Experiment:
    model = models.LatentVariableModel(priors.make("gaussian", dim=2), networks.MLP(2, [8], 6, draws=Draws(1)), likelihoods.make("bernoulli"))
    encoder = networks.MLP(6, [8], 4, draws=Draws(2))
    if family == "gaussian":
        posterior = posteriors.Gaussian(encoder, 2)
    else:
        denoiser, context = denoisers.ResidualMLP(2, 3, 5, 64, draws=Draws(3)), networks.MLP(6, [8], 3, draws=Draws(4))
        posterior = posteriors.Diffusion(encoder, denoiser, schedules.make("cosine", 5), context_encoder=context, eta=eta, learn_variances=eta > 0)
    objective = objectives.ELBO(model, posterior) if eta else objectives.WAE(model, posterior)
    return Experiment(model, posterior, [Phase("train", objective, 1)])


@pytest.fixture
def x() -> torch.Tensor:
    return (torch.arange(12 * 6).reshape(12, 6) % 3 > 0).float()


@pytest.mark.parametrize("family", ["gaussian", "diffusion"])
def test_terms_add_up_to_the_bound(family: str, x: torch.Tensor) -> None:
    made = experiment(family)
    weights = made.posterior.log_weights(made.model, x, 1, Draws(9))[0]
    found = decompose(made, x, Draws(9))
    assert sum(found.terms.values()) == pytest.approx(float(weights.detach().mean()), abs=1e-4)
    assert found.error == pytest.approx(float(weights.detach().std() / 12**0.5), abs=1e-4)


def test_steps_add_up_to_the_path_of_every_example_and_the_first_sampled_step_is_shown_first(x: torch.Tensor) -> None:
    """Densities of the first sampled step, T, are those of torch.distributions."""
    posterior = experiment("diffusion").posterior
    encoded = posterior.encode(x)
    path = posterior.latent_path(encoded, 1, Draws(5))[:, 0]
    steps = step_ratios(posterior, encoded.context, path)
    assert steps.shape == (5, 12)
    whole = ops.trajectory_log_ratio(path, encoded.context, posterior.denoiser, posterior.coefficients())
    torch.testing.assert_close(steps.sum(0), whole, atol=1e-4, rtol=1e-4)

    a, b, deviation, scale, beta = posterior.coefficients()[4]
    mean = a * path[0] + b * posterior.denoiser(path[0], encoded.context, torch.full((12,), 4))
    forward = torch.distributions.Normal(scale * path[1], beta.sqrt()).log_prob(path[0]).sum(1)
    reverse = torch.distributions.Normal(mean, deviation).log_prob(path[1]).sum(1)
    torch.testing.assert_close(steps[0], forward - reverse, atol=1e-4, rtol=1e-4)


def test_without_a_density_there_is_no_bound(x: torch.Tensor) -> None:
    assert decompose(experiment("diffusion", eta=0.0), x, Draws(0)) is None


def test_every_part_is_timed_and_no_gradient_is_left(x: torch.Tensor) -> None:
    made = experiment("diffusion")
    measured = timings(made, x, Draws(0))
    assert len(measured) == 5 and all(seconds > 0 for seconds in measured.values())
    assert all(parameter.grad is None for parameter in made.posterior.parameters())
