"""The Wasserstein autoencoder's objective: its terms by hand, and what it does."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import InputError, likelihoods, ops, priors
from ddvi_fast.engine.engine import Engine
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.objectives import WAE, Progress
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws
from tests.linear_gaussian import gaussian_posterior, make_model, observations
from tests.posteriors.families import adversarial as implicit

START = Progress(0, 1)


@pytest.mark.parametrize("sigmas", [None, (0.5, 3.0)])
def test_terms_by_hand(sigmas):
    model, x, draws = make_model(), observations(6), Draws(2)
    subject = WAE(model, implicit(model), weight=7.0, sigmas=sigmas)
    (update,) = subject.updates(x, START, draws)
    terms, z = update.terms(), subject.posterior.sample(x, 1, draws).z[0]
    prior = model.prior.sample(6, draws=draws)
    squared = 0.0
    for first, second, sign in ((z, z, 1), (prior, prior, 1), (z, prior, -2)):
        distances = (first.unsqueeze(1) - second).square().sum(-1)
        squared = squared + sign * sum(torch.exp(-distances / (2 * s)).mean() for s in sigmas or (0.02, 0.2, 2.0))
    torch.testing.assert_close(terms.values["mmd"], squared, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms.values["reconstruction"], -model.log_likelihood(x, z))
    assert update.group == "wake" and terms.weights == {"reconstruction": 1.0, "mmd": 7.0}


def test_it_pulls_the_latents_to_the_prior():
    model = make_model()
    subject = WAE(model, implicit(model), weight=100.0)
    x, prior = observations(500), model.prior.sample(500, Draws(8))

    def distance():
        with torch.no_grad():
            return ops.mmd(subject.posterior.sample(x, 1, Draws(4)).z[0], prior, (1.0,)).item()

    with torch.no_grad():
        subject.posterior.encoder.layers[-1].bias[:2] += 1.5
    before, engine = distance(), Engine(subject, Optimisation(lr=2e-2, max_norm=None))
    for step in range(200):
        engine.run(observations(64, seed=100 + step), Progress(step, 200), Draws(3, 64 * step))
    assert distance() < 0.3 * before


def test_a_prior_without_density_and_a_posterior_with_one_will_do():
    model = LatentVariableModel(priors.make("swiss_roll", noise=0.0), MLP(2, [], 3), likelihoods.make("bernoulli"))
    for posterior in (implicit(model), gaussian_posterior()):
        (update,) = WAE(model, posterior).updates(torch.ones(4, 3), START, Draws(0))
        assert bool(update.terms().total().isfinite())


def test_the_weight_is_positive():
    with pytest.raises(InputError, match=r"^weight: expected a positive number, got -1"):
        WAE(make_model(), gaussian_posterior(), weight=-1)
