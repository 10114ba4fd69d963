"""Bounds of posteriors that draw a class: gradients against the bound summed over all classes, which is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ddvi_fast import InputError
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.objectives import ELBO, IWAE, Progress
from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.objectives.elbo import zero_with_score
from ddvi_fast.posteriors.base import split_mean_log_var
from ddvi_fast.posteriors.class_conditional import ClassConditional
from ddvi_fast.rng import Draws
from tests.class_models import BIAS, CLASSES, DATA_DIM, MEANS, SCALE, SPREAD, WEIGHT, make_model, observations, placed
from tests.linear_gaussian import EXACT_PRIOR

END, ROWS, BATCHES = Progress(9, 10), 200, 60
NAMES = ("classifier.weight", "classifier.bias", "encoder.weight", "encoder.bias")


def exact_bound(posterior: ClassConditional, x: Tensor, kl: float) -> Tensor:
    """`E_q[ log p(x|z) + kl log_prior_ratio ]` [N] of a Gaussian posterior, summed over all classes, without a random number."""
    log_q = torch.log_softmax(posterior.classifier(x), 1)
    mean, log_var = split_mean_log_var(posterior.family.encoder(x))
    deviation, weight, bound = torch.exp(0.5 * log_var), WEIGHT.to(x), 0.0
    for label in range(CLASSES):
        q = Normal(mean[label], deviation[label])
        if posterior.pushes:
            prior, centre, width = Normal(0.0, 1.0), MEANS[label].to(x) + SPREAD * q.mean, SPREAD * q.stddev
        else:
            prior, centre, width = Normal(MEANS[label].to(x), SPREAD), q.mean, q.stddev
        prior = Normal(*(torch.as_tensor(part, dtype=x.dtype).expand(q.mean.shape) for part in (prior.mean, prior.stddev)))
        squared = (x - centre @ weight.mT - BIAS.to(x)).square().sum(1) + (width.square() * weight.square().sum(0)).sum(1)
        likelihood = -0.5 * squared / SCALE**2 - DATA_DIM * math.log(SCALE * math.sqrt(2 * math.pi))
        ratio = -kl_divergence(q, prior).sum(1) - math.log(CLASSES) - log_q[:, label]
        bound = bound + log_q[:, label].exp() * (likelihood + kl * ratio)
    return bound


def model_and_posterior(coordinates: str) -> tuple[LatentVariableModel, ClassConditional]:
    model = make_model().double()
    return model, placed("gaussian", coordinates, model.prior).double()


@pytest.mark.parametrize(("coordinates", "kl"), [("latent", 1.0), ("prior", 0.3), ("prior+encoder", 1.0)])
def test_the_expected_gradient_is_that_of_the_bound_summed_over_classes(coordinates, kl):
    model, posterior = model_and_posterior(coordinates)
    objective, x = ELBO(model, posterior, KLSchedule("constant", kl), 2, EXACT_PRIOR), observations(3).double()
    parameters = [posterior.classifier.layers[0].weight, posterior.classifier.layers[0].bias, *posterior.family.encoder.parameters()]
    exact = torch.autograd.grad(-exact_bound(posterior, x, kl).mean(), parameters)
    values, gradients = [], []
    for number in range(BATCHES):
        loss = objective.terms(x.repeat(ROWS, 1), END, Draws(number)).total()
        values.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, parameters))
    values = torch.stack(values)
    assert abs(values.mean() + exact_bound(posterior, x, kl).mean()) < 4 * values.std() / math.sqrt(BATCHES)
    for name, sampled, expected in zip(NAMES, zip(*gradients, strict=True), exact, strict=True):
        sampled = torch.stack(sampled)
        error = sampled.std(0) / math.sqrt(BATCHES)
        assert bool(((sampled.mean(0) - expected).abs() < 4 * error + 1e-9).all()), name
        assert float((expected.abs() > 4 * error).double().mean()) > 0.4, f"{name}: too few draws to tell"


@pytest.mark.parametrize("name", ["gaussian", "diffusion"])
def test_the_score_term_changes_neither_the_value_nor_the_gradient_of_the_family(name):
    model = make_model()
    model.decoder.requires_grad_(True)
    posterior, x, draws = placed(name, "prior+encoder", model.prior), observations(6), Draws(4)
    terms = ELBO(model, posterior, KLSchedule("constant", 0.5), 3).terms(x, END, draws)
    sample = posterior.sample(x, 3, draws)
    plain = -(model.log_likelihood(x, sample.z) + 0.5 * sample.log_prior_ratio).mean()
    torch.testing.assert_close(terms.total(), plain)
    parameters = [part for part in (*posterior.family.parameters(), *model.decoder.parameters()) if part.requires_grad]
    for found, expected in zip(torch.autograd.grad(terms.total(), parameters), torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(found, expected)


def test_one_sample_gives_the_classifier_no_gradient():
    model, posterior = model_and_posterior("prior")
    parameters = list(posterior.classifier.parameters())
    for num_samples, none in ((1, True), (2, False)):
        loss = ELBO(model, posterior, num_samples=num_samples).terms(observations(4).double(), END, Draws(0)).total()
        assert all((gradient is None) == none for gradient in torch.autograd.grad(loss, parameters, allow_unused=True))


def test_the_score_is_weighted_by_the_difference_to_the_other_samples():
    log_class, log_weights = torch.tensor([[-1.0], [-2.0], [-3.0]], requires_grad=True), torch.tensor([[5.0], [1.0], [3.0]])
    value = zero_with_score(log_class, log_weights)
    assert value.tolist() == [0.0]
    (gradient,) = torch.autograd.grad(value.sum(), log_class)
    torch.testing.assert_close(gradient[:, 0], torch.tensor([5 - 2, 1 - 4, 3 - 3]) / 3.0)


@pytest.mark.parametrize("name", ["gaussian", "iaf", "diffusion"])
@pytest.mark.parametrize("coordinates", ["latent", "prior+encoder"])
def test_the_importance_weighted_bound_is_that_of_the_drawn_classes(name, coordinates):
    model, x, draws = make_model(), observations(5), Draws(2)
    posterior = placed(name, coordinates, model.prior)
    objective = IWAE(model, posterior, 7, kl=KLSchedule("constant"), guide=EXACT_PRIOR)
    expected = torch.logsumexp(posterior.log_weights(model, x, 7, draws), 0) - math.log(7)
    terms = objective.terms(x, END, draws)
    torch.testing.assert_close(-terms.values["bound"], expected)
    terms.total().backward()
    assert all(parameter.grad is None for parameter in posterior.classifier.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in posterior.family.encoder.parameters())


def test_drawn_classes_have_no_doubly_reparametrised_gradient():
    model, posterior = model_and_posterior("prior")
    with pytest.raises(InputError, match=r"^doubly_reparametrised: expected False for a posterior that draws a class[^\n]*got True$"):
        IWAE(model, posterior, doubly_reparametrised=True)
