"""Tests of the decomposition of a bound into terms and steps."""

from __future__ import annotations

import math

import pytest
import torch

from ddvi_fast import denoisers, likelihoods, models, networks, objectives, ops, posteriors, priors, schedules
from ddvi_fast.posteriors.base import COORDINATES
from ddvi_fast.posteriors.class_conditional import ClassConditional, PerClass
from ddvi_fast.recipes.phases import Experiment, Phase
from ddvi_fast.report.decomposition import decompose, step_ratios, timings
from ddvi_fast.rng import Draws

FAMILIES = ("gaussian", "iaf", "diffusion")


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
    steps = step_ratios(posterior, encoded, path)
    assert steps.shape == (5, 12)
    whole = ops.trajectory_log_ratio(path, encoded.context, posterior.denoiser, posterior.coefficients())
    torch.testing.assert_close(steps.sum(0), whole, atol=1e-4, rtol=1e-4)

    a, b, deviation, scale, beta = posterior.coefficients()[4]
    mean = a * path[0] + b * posterior.denoiser(path[0], encoded.context, torch.full((12,), 4))
    forward = torch.distributions.Normal(scale * path[1], beta.sqrt()).log_prob(path[0]).sum(1)
    reverse = torch.distributions.Normal(mean, deviation).log_prob(path[1]).sum(1)
    torch.testing.assert_close(steps[0], forward - reverse, atol=1e-4, rtol=1e-4)


def placed(family: str, coordinates: str, classes: bool) -> Experiment:
    """An experiment of a family in any coordinates of a pinwheel, with q(c | x) where the prior's class is not part of its noise."""
    model = models.LatentVariableModel(priors.make("pinwheel"), networks.MLP(2, [8], 6, draws=Draws(1)), likelihoods.make("bernoulli"))
    joint = "prior" in coordinates and not classes
    dim, count = model.prior.joint_noise_dim if joint else 2, 10 if classes else 1

    def encoder(outputs: int, place: int):
        network = networks.MLP(6, [8], count * outputs, draws=Draws(place))
        return PerClass(network, count) if classes else network

    options = {"coordinates": coordinates, "prior": model.prior if "prior" in coordinates else None}
    if family == "gaussian":
        made = posteriors.Gaussian(encoder(2 * dim, 2), dim, **options)
    elif family == "iaf":
        made = posteriors.IAF(encoder(2 * dim, 2), encoder(3, 3), dim, 3, **options)
    else:
        denoiser, context = denoisers.ResidualMLP(dim, 3, 5, 64, draws=Draws(3)), encoder(3, 4)
        made = posteriors.Diffusion(encoder(2 * dim, 2), denoiser, schedules.make("cosine", 5), context_encoder=context, **options)
    if classes:
        made = ClassConditional(networks.MLP(6, [8], 10, draws=Draws(5)), made, model.prior)
    return Experiment(model, made, [Phase("train", objectives.ELBO(model, made), 1)])


@pytest.mark.parametrize("classes", [False, True], ids=["", "classes"])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("family", FAMILIES)
def test_terms_add_up_in_all_coordinates(family: str, coordinates: str, classes: bool, x: torch.Tensor) -> None:
    made = placed(family, coordinates, classes)
    weights = made.posterior.log_weights(made.model, x, 1, Draws(9))[0].detach()
    found = decompose(made, x, Draws(9))
    assert sum(found.terms.values()) == pytest.approx(float(weights.mean()), rel=1e-5, abs=1e-3)
    variable = "u" if "prior" in coordinates else "z"
    given = "log p(u)" if variable == "u" else "log p(z | c)" if classes else "log p(z)"
    expected = ["log p(x | z)", given, *(["log p(c)", "−log q(c | x)"] if classes else [])]
    if family == "diffusion":
        whitened = "encoder" in coordinates
        expected += [*([f"log |d{variable} / dv|"] if whitened else []), "path", "−log q(v_T | x)" if whitened else "−log q(y_T | x)"]
    else:
        expected += [f"−log q({variable} | x)"]
    assert list(found.terms) == expected and len(found.steps) == (5 if family == "diffusion" else 0)


def test_the_terms_of_the_class_are_its_probabilities(x: torch.Tensor) -> None:
    """With equal probabilities of all classes, the two terms are the uniform prior's and cancel."""
    made = placed("gaussian", "prior", classes=True)
    torch.nn.init.zeros_(made.posterior.classifier.layers[-1].weight)
    torch.nn.init.zeros_(made.posterior.classifier.layers[-1].bias)
    terms = decompose(made, x, Draws(9)).terms
    assert terms["log p(c)"] == pytest.approx(-math.log(10)) and terms["−log q(c | x)"] == pytest.approx(math.log(10))


def test_a_prior_without_a_density_is_decomposed_in_its_coordinates(x: torch.Tensor) -> None:
    model = models.LatentVariableModel(priors.make("swiss_roll"), networks.MLP(2, [8], 6, draws=Draws(1)), likelihoods.make("bernoulli"))
    posterior = posteriors.Gaussian(networks.MLP(6, [8], 2, draws=Draws(2)), 1, coordinates="prior", prior=model.prior)
    made = Experiment(model, posterior, [Phase("train", objectives.ELBO(model, posterior), 1)])
    found = decompose(made, x, Draws(9))
    weights = posterior.log_weights(model, x, 1, Draws(9))[0]
    assert sum(found.terms.values()) == pytest.approx(float(weights.detach().mean()), abs=1e-4)
    assert not model.prior.has_density and "prior density" not in timings(made, x, Draws(0))


def test_without_a_density_there_is_no_bound(x: torch.Tensor) -> None:
    assert decompose(experiment("diffusion", eta=0.0), x, Draws(0)) is None


def test_every_part_is_timed_and_no_gradient_is_left(x: torch.Tensor) -> None:
    made = experiment("diffusion")
    measured = timings(made, x, Draws(0))
    assert len(measured) == 5 and all(seconds > 0 for seconds in measured.values())
    assert all(parameter.grad is None for parameter in made.posterior.parameters())
