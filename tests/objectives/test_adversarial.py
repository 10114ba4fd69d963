"""The adversarial objective: its terms by hand, who moves in which update, and what it does."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ddvi_fast import InputError, likelihoods, ops, priors
from ddvi_fast.engine.engine import Engine
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.objectives import Adversarial, Progress
from ddvi_fast.objectives.adversarial import make_discriminator
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws
from tests.linear_gaussian import gaussian_posterior, make_model, observations
from tests.posteriors.families import adversarial as implicit

START = Progress(0, 1)


def objective(model=None, **options) -> Adversarial:
    model = make_model() if model is None else model
    return Adversarial(model, implicit(model), make_discriminator(2, Draws(9), hidden_dim=32), **options)


def test_terms_by_hand():
    subject, x, draws = objective(weight=3.0).eval(), observations(6), Draws(2)
    wake, discriminator = (update.terms() for update in subject.updates(x, START, draws))
    z = subject.posterior.sample(x, 1, draws).z[0]
    logits, real = subject.discriminator(z), subject.discriminator(subject.model.prior.sample(6, draws=draws))
    ones, zeros = torch.ones(6, 1), torch.zeros(6, 1)
    torch.testing.assert_close(wake.values["reconstruction"], -subject.model.log_likelihood(x, z))
    torch.testing.assert_close(wake.values["generator"].mean(), binary_cross_entropy_with_logits(logits, ones))
    assert wake.weights == {"reconstruction": 1.0, "generator": 3.0}
    expected = binary_cross_entropy_with_logits(real, ones) + binary_cross_entropy_with_logits(logits, zeros)
    torch.testing.assert_close(discriminator.total(), expected)


def test_each_update_moves_its_own_half():
    subject, x = objective(make_model().requires_grad_(True)), observations(6)
    groups = subject.parameter_groups()
    assert not {id(part) for part in groups["wake"]} & {id(part) for part in groups["discriminator"]}
    assert {id(part) for group in groups.values() for part in group} == {id(part) for part in subject.parameters() if part.requires_grad}
    for update in subject.updates(x, START, Draws(0)):
        subject.zero_grad()
        update.terms().total().backward()
        reached = {id(part) for part in subject.parameters() if part.grad is not None and part.grad.abs().sum() > 0}
        assert reached == {id(part) for part in groups[update.group]}


def test_dropout_is_on_while_training_alone():
    subject, x = objective(), observations(6)
    values = [[update.terms().total().item() for update in subject.train(mode).updates(x, START, Draws(0))] for mode in (True, True, False)]
    assert values[0] == values[1] and values[0][0] != values[2][0] and values[0][1] != values[2][1]


def test_it_pulls_the_latents_to_the_prior():
    subject = objective(weight=5.0)
    x, prior = observations(500), subject.model.prior.sample(500, Draws(8))

    def distance():
        with torch.no_grad():
            return ops.mmd(subject.posterior.sample(x, 1, Draws(4)).z[0], prior, (1.0,)).item()

    with torch.no_grad():
        subject.posterior.encoder.layers[-1].bias[:2] += 3.0
    before, engine = distance(), Engine(subject, Optimisation(lr=5e-3, max_norm=None))
    for step in range(200):
        engine.run(observations(64, seed=100 + step), Progress(step, 200), Draws(3, 64 * step))
    assert distance() < 0.3 * before


def test_a_prior_without_density_and_a_posterior_with_one_will_do():
    model = LatentVariableModel(priors.make("swiss_roll", noise=0.0), MLP(2, [], 3), likelihoods.make("bernoulli"))
    for posterior in (implicit(model), gaussian_posterior()):
        updates = Adversarial(model, posterior, make_discriminator(2, hidden_dim=8)).updates(
            torch.rand(4, 3, generator=torch.Generator()), START, Draws(0)
        )
        assert all(bool(update.terms().total().isfinite()) for update in updates)


def test_the_weight_is_positive():
    with pytest.raises(InputError, match=r"^weight: expected a positive number, got 0"):
        objective(weight=0)
