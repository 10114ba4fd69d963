"""Objectives that need samples only, Adversarial and WAE: terms by hand, parameter groups, and their effect on the latents."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ddvi_fast import InputError, likelihoods, ops, priors
from ddvi_fast.engine.engine import Engine
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.objectives import WAE, Adversarial, Progress, Sleep
from ddvi_fast.objectives.adversarial import make_discriminator
from ddvi_fast.objectives.pairs import PairFit
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws
from tests import class_models
from tests.linear_gaussian import gaussian_posterior, make_model, observations
from tests.posteriors.families import adversarial as implicit

START = Progress(0, 1)


def adversarial(model=None, posterior=None, **options) -> Adversarial:
    model = make_model() if model is None else model
    return Adversarial(model, posterior or implicit(model), make_discriminator(2, Draws(9), hidden_dim=32), **options)


def wae(model=None, posterior=None, **options) -> WAE:
    model = make_model() if model is None else model
    return WAE(model, posterior or implicit(model), **options)


BOTH = pytest.mark.parametrize("make", [adversarial, wae])


def test_adversarial_terms_by_hand():
    subject, x, draws = adversarial(weight=3.0).eval(), observations(6), Draws(2)
    wake, discriminator = (update.terms() for update in subject.updates(x, START, draws))
    z = subject.posterior.sample(x, 1, draws).z[0]
    logits, real = subject.discriminator(z), subject.discriminator(subject.model.prior.sample(6, draws=draws))
    ones, zeros = torch.ones(6, 1), torch.zeros(6, 1)
    torch.testing.assert_close(wake.values["reconstruction"], -subject.model.log_likelihood(x, z))
    torch.testing.assert_close(wake.values["generator"].mean(), binary_cross_entropy_with_logits(logits, ones))
    assert wake.weights == {"reconstruction": 1.0, "generator": 3.0}
    expected = binary_cross_entropy_with_logits(real, ones) + binary_cross_entropy_with_logits(logits, zeros)
    torch.testing.assert_close(discriminator.total(), expected)


@pytest.mark.parametrize("sigmas", [None, (0.5, 3.0)])
def test_wae_terms_by_hand(sigmas):
    subject, x, draws = wae(weight=7.0, sigmas=sigmas), observations(6), Draws(2)
    (update,) = subject.updates(x, START, draws)
    terms, z = update.terms(), subject.posterior.sample(x, 1, draws).z[0]
    prior = subject.model.prior.sample(6, draws=draws)
    squared = 0.0
    for first, second, sign in ((z, z, 1), (prior, prior, 1), (z, prior, -2)):
        distances = (first.unsqueeze(1) - second).square().sum(-1)
        squared = squared + sign * sum(torch.exp(-distances / (2 * s)).mean() for s in sigmas or (0.02, 0.2, 2.0))
    torch.testing.assert_close(terms.values["mmd"], squared, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms.values["reconstruction"], -subject.model.log_likelihood(x, z))
    assert update.group == "wake" and terms.weights == {"reconstruction": 1.0, "mmd": 7.0}


def test_each_adversarial_update_trains_its_own_group():
    subject, x = adversarial(make_model().requires_grad_(True)), observations(6)
    groups = subject.parameter_groups()
    assert not {id(part) for part in groups["wake"]} & {id(part) for part in groups["discriminator"]}
    assert {id(part) for group in groups.values() for part in group} == {id(part) for part in subject.parameters() if part.requires_grad}
    for update in subject.updates(x, START, Draws(0)):
        subject.zero_grad()
        update.terms().total().backward()
        reached = {id(part) for part in subject.parameters() if part.grad is not None and part.grad.abs().sum() > 0}
        assert reached == {id(part) for part in groups[update.group]}


def test_the_discriminators_dropout_is_on_in_training_mode_only():
    subject, x = adversarial(), observations(6)
    values = [[update.terms().total().item() for update in subject.train(mode).updates(x, START, Draws(0))] for mode in (True, True, False)]
    assert values[0] == values[1] and values[0][0] != values[2][0] and values[0][1] != values[2][1]


@pytest.mark.parametrize(("make", "weight", "shift", "lr"), [(adversarial, 5.0, 3.0, 5e-3), (wae, 100.0, 1.5, 2e-2)])
def test_training_pulls_the_latents_to_the_prior(make, weight, shift, lr):
    subject = make(weight=weight)
    x, prior = observations(500), subject.model.prior.sample(500, Draws(8))

    def distance():
        with torch.no_grad():
            return ops.mmd(subject.posterior.sample(x, 1, Draws(4)).z[0], prior, (1.0,)).item()

    with torch.no_grad():
        subject.posterior.encoder.layers[-1].bias[:2] += shift
    before, engine = distance(), Engine(subject, Optimisation(lr=lr, max_norm=None))
    for step in range(200):
        engine.run(observations(64, seed=100 + step), Progress(step, 200), Draws(3, 64 * step))
    assert distance() < 0.3 * before


@BOTH
@pytest.mark.parametrize("with_density", [False, True])
def test_a_prior_needs_no_density_and_a_posterior_can_have_one(make, with_density):
    model = LatentVariableModel(priors.make("swiss_roll", noise=0.0), MLP(2, [], 3), likelihoods.make("bernoulli"))
    subject = make(model, gaussian_posterior() if with_density else implicit(model))
    updates = subject.updates(torch.rand(4, 3, generator=torch.Generator()), START, Draws(0))
    assert all(bool(update.terms().total().isfinite()) for update in updates)


@BOTH
def test_the_weight_is_positive(make):
    for weight in (0, -1):
        with pytest.raises(InputError, match=rf"^weight: expected a positive number, got {weight}"):
            make(weight=weight)


@BOTH
@pytest.mark.parametrize("coordinates", ["latent", "prior+encoder"])
def test_a_drawn_class_learns_from_pairs(make, coordinates):
    model, x, draws = class_models.make_model(), class_models.observations(8), Draws(2, 16)
    model.decoder.requires_grad_(True)
    posterior, sleep = class_models.placed("gaussian", coordinates, model.prior), Sleep(0.0, 0.0, decoder=0.7, classes=0.6)
    subject = make(model, posterior, sleep=sleep).eval()
    wake, *others = list(subject.updates(x, START, draws))
    terms, z = wake.terms(), posterior.sample(x, 1, draws).z[0]
    torch.testing.assert_close(terms.values["reconstruction"], -model.log_likelihood(x, z))
    pairs = PairFit(model, posterior, sleep).terms(x, draws)
    assert pairs.weights == {"sleep_class": 0.6, "sleep_decoder": 0.7}
    for name, value in pairs.values.items():
        torch.testing.assert_close(terms.values[name], value)
        assert terms.weights[name] == pairs.weights[name]
    # q(c | x) has no other gradient, and the families none from the pairs.
    classifier, family = list(posterior.classifier.parameters()), list(posterior.family.encoder.parameters())
    found = torch.autograd.grad(terms.total(), classifier, retain_graph=True)
    for gradient, expected in zip(found, torch.autograd.grad(pairs.total(), classifier, retain_graph=True), strict=True):
        torch.testing.assert_close(gradient, expected)
        assert gradient.any()
    assert all(part is None for part in torch.autograd.grad(pairs.total(), family, allow_unused=True))
    assert all(part.any() for part in torch.autograd.grad(terms.total(), [*family, *model.decoder.parameters()], retain_graph=True))
    assert all(update.terms().total().isfinite() for update in others)
