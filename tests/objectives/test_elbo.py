"""The ELBO objective against its formula written by hand for the same draws."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from ddvi_fast._checks import InputError
from ddvi_fast.objectives import ELBO, Progress, Terms
from ddvi_fast.objectives.annealing import KLSchedule, PriorGuide
from ddvi_fast.rng import Draws
from tests.linear_gaussian import BIAS, EXACT_PRIOR, SCALE, WEIGHT, diffusion_posterior, gaussian_posterior, make_model, observations

START, END = Progress(0, 10), Progress(9, 10)


def test_terms_by_hand():
    posterior, x, draws = gaussian_posterior(), observations(5), Draws(2, 9)
    objective = ELBO(make_model(), posterior, KLSchedule("constant", 0.7), num_samples=3, guide=EXACT_PRIOR)
    terms = objective.wake_terms(x, posterior.encode(x, draws), START, draws)
    z = posterior.sample(x, 3, draws).z
    mean, log_var = posterior.encoder(x).chunk(2, -1)
    reconstruction = -Normal(z @ torch.tensor(WEIGHT).mT + torch.tensor(BIAS), SCALE).log_prob(x).sum(-1).mean(0)
    kl = (Normal(mean, (0.5 * log_var).exp()).log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(-1).mean(0)
    assert list(terms.values) == ["reconstruction", "kl"] and terms.weights == {"reconstruction": 1.0, "kl": 0.7}
    torch.testing.assert_close(terms.values["reconstruction"], reconstruction)
    torch.testing.assert_close(terms.values["kl"], kl)
    torch.testing.assert_close(terms.total(), reconstruction.mean() + 0.7 * kl.mean())
    torch.testing.assert_close(terms.means()["kl"], kl.mean().detach())


@pytest.mark.parametrize("make_posterior", [gaussian_posterior, diffusion_posterior])
def test_value_and_gradient_are_those_of_the_mean_log_weight(make_posterior):
    model, posterior, x, draws = make_model().requires_grad_(True), make_posterior(), observations(6), Draws(1)
    parameters = [*model.decoder.parameters(), *posterior.parameters()]
    loss = ELBO(model, posterior, KLSchedule("constant"), num_samples=4, guide=EXACT_PRIOR).terms(x, START, draws).total()
    expected = -posterior.log_weights(model, x, 4, draws).mean()
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make_posterior", [gaussian_posterior, diffusion_posterior])
def test_reweighted_the_decoder_follows_the_importance_weighted_bound_and_the_posterior_the_elbo(make_posterior):
    model, posterior, x, draws = make_model().requires_grad_(True), make_posterior(), observations(6), Draws(1)
    decoder, encoder = list(model.decoder.parameters()), list(posterior.parameters())
    terms = ELBO(model, posterior, KLSchedule("constant", 0.7), 4, EXACT_PRIOR, reweighted=True).terms(x, START, draws)
    plain = ELBO(model, posterior, KLSchedule("constant", 0.7), 4, EXACT_PRIOR).terms(x, START, draws)
    for name, value in plain.values.items():
        torch.testing.assert_close(terms.values[name], value)
    found = torch.autograd.grad(terms.total(), decoder + encoder)
    z, log_ratio, _ = posterior.sample(x, 4, draws)
    z, rest = z.detach(), 0.7 * (model.prior.log_prob(z) + log_ratio).detach()
    importance_weighted = -(torch.logsumexp(model.log_likelihood(x, z) + rest, 0)).mean()
    expected = (*torch.autograd.grad(importance_weighted, decoder), *torch.autograd.grad(plain.total(), encoder))
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], torch.autograd.grad(ELBO(model, posterior, num_samples=4).terms(x, END, draws).total(), decoder[0])[0])


def test_one_sample_cannot_be_reweighted():
    with pytest.raises(InputError, match=r"^num_samples: expected at least 2 with reweighted=True, got 1$"):
        ELBO(make_model(), gaussian_posterior(), reweighted=True)


def test_kl_weight_follows_progress():
    objective = ELBO(make_model(), gaussian_posterior(), KLSchedule("linear", 2.0, fraction=0.5))
    weights = [objective.terms(observations(2), Progress(epoch, 10), Draws(0)).weights["kl"] for epoch in (0, 2.5, 5, 9)]
    assert weights == [0.0, 1.0, 2.0, 2.0]


def test_kl_weight_of_whole_epochs_is_the_released_one(golden):
    schedule = KLSchedule("linear", 0.01, fraction=0.8, whole_epochs=True)
    weights = [schedule.at(Progress(epoch + within, 60)) for epoch in range(60) for within in (0.0, 0.5, 0.99)]
    torch.testing.assert_close(torch.tensor(weights), torch.tensor(golden["kl_weight/linear/plain"]).float().repeat_interleave(3))


def test_blur_enters_the_prior_of_training_alone():
    posterior, x = gaussian_posterior(), observations(4)
    objective = ELBO(make_model(), posterior, KLSchedule("constant"), guide=PriorGuide(blur=0.75, fraction=0.5))
    z, log_ratio, _ = posterior.sample(x, 1, Draws(0))
    expected = -(Normal(0.0, 1.25).log_prob(z).sum(-1) + log_ratio)[0]  # sqrt(1 + 0.75^2)
    torch.testing.assert_close(objective.terms(x, START, Draws(0)).values["kl"], expected)
    plain = -(Normal(0.0, 1.0).log_prob(z).sum(-1) + log_ratio)[0]
    torch.testing.assert_close(objective.terms(x, Progress(5, 10), Draws(0)).values["kl"], plain)


def test_one_update_of_the_wake_group():
    objective, x = ELBO(make_model(), gaussian_posterior()), observations(3)
    (update,) = objective.updates(x, START, Draws(0))
    assert update.group == "wake"
    torch.testing.assert_close(update.terms().total(), objective.terms(x, START, Draws(0)).total(), rtol=0, atol=0)
    # The model is frozen, so only the posterior is trained.
    assert {id(p) for p in objective.parameter_groups()["wake"]} == {id(p) for p in objective.posterior.parameters()}


def test_a_term_of_weight_zero_cannot_spoil_the_total():
    terms = Terms({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([float("nan")])}, {"a": 0.5, "b": 0.0})
    assert terms.total().item() == 1.0
    assert terms.means()["b"].isnan()


def test_refuses_a_posterior_without_density():
    with pytest.raises(InputError, match=r"^posterior: expected one with a density[^\n]*eta = 0[^\n]*$"):
        ELBO(make_model(), diffusion_posterior(eta=0.0))


def test_the_blur_narrows_to_a_hundredth():
    guide = PriorGuide(blur=0.5, fraction=0.8)
    assert guide.width(0.0) == 0.5 and guide.width(0.8) == 0.0
    assert guide.width(0.4) == pytest.approx(0.05) and guide.width(0.799) == pytest.approx(0.5 * 0.01 ** (39 / 40))
