"""Tests of the split of the gap: closed forms of models whose posteriors are Gaussian, and what the parts are for each family."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MultivariateNormal, kl_divergence

from ddvi_fast import gap, posteriors
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.gap import Gap, split_gap
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.posteriors.class_conditional import ClassConditional, PerClass
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import make
from tests import class_models, linear_gaussian
from tests.linear_gaussian import DATA_DIM, LATENT_DIM, best_diagonal_gap, exact_evidence, exact_posterior
from tests.posteriors import families

STEPS = 4


def chain(factors: tuple[float, ...] = (0.0,) * STEPS, zero_output: bool = True) -> Diffusion:
    """A chain in the encoder's frame whose step variances are those of a stationary process times `exp(factors)`."""
    encoder = MLP(DATA_DIM, [], 2 * LATENT_DIM, draws=Draws(11))
    denoiser = ResidualMLP(LATENT_DIM, 0, STEPS, 64, draws=Draws(12), zero_output=zero_output)
    made = Diffusion(encoder, denoiser, make("linear", STEPS, start=0.1, end=0.6), coordinates="encoder")
    with torch.no_grad():
        made.log_variance_factors.copy_(torch.tensor(factors))
    return made


def path_divergence(table: Tensor) -> float:
    """KL( q(path | v_0) || r(path | v_0) ) in nats of one coordinate of a linear chain `v_{t-1} = A v_t + s xi` that starts from N(0, 1)."""
    variance, along = 1.0, 0.5 * math.log(2 * math.pi * math.e)
    for a, _, s, scale, beta in table.detach().double().flip(0).tolist():
        following = a**2 * variance + s**2
        residual = variance - 2 * scale * a * variance + scale**2 * following  # of the noising step, E(v_t - scale v_{t-1})^2
        along += 0.5 * math.log(s**2 / beta) + 0.5 - 0.5 * residual / beta
        variance = following
    return 0.5 * math.log(2 * math.pi * math.e * variance) - along


def close(values: Tensor, expected: Tensor | float, slack: float = 0.01) -> bool:
    """Whether the mean error is at most `slack` beyond four standard errors."""
    errors = (values - expected).double()
    return abs(float(errors.mean())) < 4 * float(errors.std()) / len(errors) ** 0.5 + slack


def test_a_wrong_gaussian_encoder_loses_what_the_closed_form_says() -> None:
    x = linear_gaussian.observations(30)
    posterior = linear_gaussian.gaussian_posterior()
    mean, log_var = posterior.encode(x)
    exact_mean, covariance = exact_posterior(x)
    own = MultivariateNormal(mean.detach().double(), torch.diag_embed(log_var.detach().double().exp()))
    lost = kl_divergence(own, MultivariateNormal(exact_mean, covariance))
    found = split_gap(linear_gaussian.make_model(), posterior, x, num_samples=1000)
    assert found.exact and torch.allclose(found.evidence.double(), exact_evidence(x), atol=1e-3)
    assert lost.mean() - best_diagonal_gap() > 1 and best_diagonal_gap() > 0.05
    assert close(found.amortisation, lost - best_diagonal_gap())
    assert close(found.family, best_diagonal_gap())
    assert torch.equal(found.steps, torch.zeros(30)) and torch.equal(found.steps_at_most, torch.zeros(30))
    assert torch.allclose(found.amortisation + found.family + found.steps, found.total, atol=1e-4)


def test_the_reversal_of_the_noising_process_loses_nothing_by_its_steps() -> None:
    found = split_gap(linear_gaussian.make_model(), chain(), linear_gaussian.observations(20), num_samples=1000)
    assert found.steps.abs().max() < 1e-4 and found.steps_at_most.abs().max() < 1e-4
    assert close(found.family, best_diagonal_gap())


def test_steps_with_other_variances_lose_what_the_closed_form_says() -> None:
    posterior, x = chain((0.5, -0.4, 0.3, -0.6)), linear_gaussian.observations(200)
    expected = LATENT_DIM * path_divergence(posterior.coefficients())
    low, high = gap.path_loss(posterior, x, posterior.encode(x), Draws(3))
    assert expected > 0.2 and path_divergence(chain().coefficients()) == pytest.approx(0, abs=1e-6)
    assert close(low, expected) and close(high, expected)
    assert 0 <= float((high - low).mean()) < 0.02


def test_the_two_estimates_of_the_steps_enclose_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, x = chain((1.2, -1.0, 0.8, -1.2)), linear_gaussian.observations(1000)
    expected = LATENT_DIM * path_divergence(posterior.coefficients())
    monkeypatch.setattr(gap, "_NOISED_PATHS", 4)
    low, high = gap.path_loss(posterior, x, posterior.encode(x), Draws(3))
    assert low.mean() + 4 * low.std() / 1000**0.5 < expected < high.mean() - 4 * high.std() / 1000**0.5


def test_wrong_class_probabilities_are_a_loss_by_amortisation() -> None:
    model, posterior, x = class_models.make_model(), class_models.exact_posterior(), class_models.observations(25)
    right = posterior.log_class_probs(x).detach()
    with torch.no_grad():
        posterior.classifier.layers[0].bias.add_(torch.tensor([4.0, -3.0, 0.5]))
    lost = kl_divergence(Categorical(logits=posterior.log_class_probs(x).detach()), Categorical(logits=right))
    found = split_gap(model, posterior, x, num_samples=500)
    assert lost.mean() > 0.2
    assert torch.allclose(found.evidence.double(), class_models.log_joint(x).logsumexp(0), atol=1e-3)
    assert close(found.amortisation, lost) and close(found.family, 0.0)


@pytest.mark.parametrize("coordinates", ["encoder", "prior+encoder"])
def test_chains_of_classes_are_split_too(coordinates: str) -> None:
    classes, prior = class_models.CLASSES, class_models.make_model().prior
    encoder = PerClass(MLP(DATA_DIM, [], classes * 2 * LATENT_DIM, draws=Draws(11)), classes)
    denoiser = ResidualMLP(LATENT_DIM, 0, STEPS, 64, draws=Draws(12), zero_output=True)
    options = {"coordinates": coordinates, "prior": prior if "prior" in coordinates else None}
    family = Diffusion(encoder, denoiser, make("linear", STEPS, start=0.1, end=0.6), **options)
    posterior, x = ClassConditional(MLP(DATA_DIM, [], classes, draws=Draws(13)), family, prior), class_models.observations(20)
    model = class_models.make_model()
    model.prior = prior
    found = split_gap(model, posterior, x)
    weights = posterior.log_weights(model, x, 2000).detach()
    assert close(found.elbo - weights.mean(0), 0.0)
    assert found.steps.abs().max() < 1e-4 and found.amortisation.mean() > 1
    assert close(found.family, 0.0, slack=0.03)  # the exact posterior of each class is a diagonal Gaussian


def test_a_row_has_the_same_parts_in_any_batch_and_nothing_is_trained() -> None:
    model, posterior, x = linear_gaussian.make_model(), chain((0.3,) * STEPS, zero_output=False), linear_gaussian.observations(6)
    before = {name: value.clone() for name, value in posterior.state_dict().items()}
    whole, part = (split_gap(model, posterior, rows, draws=Draws(5, first)) for rows, first in ((x, 0), (x[2:5], 2)))
    for name, value in whole.parts().items():
        assert torch.allclose(value[2:5], part.parts()[name], atol=1e-3), name
    assert all(torch.equal(value, before[name]) for name, value in posterior.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in posterior.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("maker", families.WITH_DENSITY, ids=lambda maker: maker.__name__)
def test_every_family_is_split(maker: families.Maker) -> None:
    model, x = linear_gaussian.make_model(), linear_gaussian.observations(8)
    posterior = maker(model)
    found = split_gap(model, posterior, x, resolution=100, num_samples=300)
    separate = posterior.tractable or isinstance(posterior, posteriors.Diffusion | posteriors.PathIntegral)
    assert (found.steps is not None) == separate and set(found.parts()) == {"amortisation", "family"} | ({"steps"} if separate else set())
    assert torch.allclose(sum(found.parts().values()), found.total, atol=1e-4)
    assert found.amortisation.mean() > -0.02 and found.family.mean() > -0.05 and (not separate or found.steps.mean() > -1e-5)


def test_without_a_quadrature_the_evidence_is_an_importance_weighted_bound() -> None:
    model, posterior, x = linear_gaussian.make_model(), linear_gaussian.gaussian_posterior(), linear_gaussian.observations(20)
    found = split_gap(model, posterior, x, resolution=None)
    assert not found.exact
    assert close(found.evidence, exact_evidence(x).float()) and found.evidence.mean() > found.refined.mean() + 0.05


def test_names_of_the_parts() -> None:
    found = Gap(*(torch.full((2,), value) for value in (-1.0, -6.0, -4.0, 0.5, 0.7)), exact=True)
    assert {name: value.tolist() for name, value in found.parts().items()} == {"amortisation": [2, 2], "family": [2.5, 2.5], "steps": [0.5, 0.5]}


def test_without_a_density_there_is_no_gap(one_line) -> None:
    model, x = linear_gaussian.make_model(), linear_gaussian.observations(2)
    one_line(lambda: split_gap(model, families.adversarial(model), x), "posterior")
    one_line(lambda: split_gap(model, linear_gaussian.gaussian_posterior(), x, num_samples=0), "num_samples")
