"""Posteriors over latent and class: grouped calls against loops over classes, and an exact posterior whose weights are the evidence."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

import ddvi_fast
from ddvi_fast import InputError, metrics, ops, priors, rng
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.evidence import log_evidence_quadrature
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors import Adversarial, Gaussian
from ddvi_fast.posteriors.base import draw_start
from ddvi_fast.posteriors.class_conditional import ClassConditional, ClassDiffusion, ClassMLP, PerClass, draw_classes
from ddvi_fast.reference import chain as reference
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import make
from tests.class_models import CLASSES, DATA_DIM, LATENT_DIM, exact_posterior, family, log_joint, make_model, observations, posterior

FAMILIES = ["gaussian", "iaf", "diffusion"]


def chain_of(diffusion: ClassDiffusion, label: int) -> ResidualMLP:
    """A network with the weights of one class of the group."""
    grouped = diffusion.denoiser
    alone = ResidualMLP(grouped.latent_dim, grouped.context_dim, grouped.num_steps, grouped.hidden_dim)
    alone.load_state_dict({name: value[label] for name, value in grouped.state_dict().items()})
    return alone


@pytest.mark.parametrize("shared_context", [True, False])
def test_the_grouped_call_is_a_loop_over_classes(shared_context):
    diffusion, x, draws, samples = family("diffusion", shared_context=shared_context), observations(7), Draws(3, 11), 4
    sample = diffusion.sample(x, samples, draws)
    assert sample.z.shape == (samples, CLASSES, 7, LATENT_DIM) and sample.log_ratio.shape == (samples, CLASSES, 7)
    encoded = diffusion.encode(x)
    y_T = draw_start(encoded.mean, encoded.log_var, samples, draws)
    for label in range(CLASSES):
        context = encoded.context if shared_context else encoded.context[label]
        # Sample k of class c is importance sample c K + k of the chain's noise.
        own = draws.importance(label * samples)
        chain = ops.sample_chain(y_T[:, label], context, chain_of(diffusion, label), diffusion.coefficients(), draws=own)
        torch.testing.assert_close(sample.z[:, label], chain.z, rtol=1e-4, atol=1e-5)
        start = ops.gaussian_log_prob(y_T[:, label], encoded.mean[label], encoded.log_var[label])
        torch.testing.assert_close(sample.log_ratio[:, label], chain.path - start, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shared_context", [True, False])
def test_rows_of_mixed_classes_are_each_their_classs_chain(shared_context):
    whole, x, draws = posterior("diffusion", shared_context=shared_context), observations(9), Draws(4, 2)
    labels = torch.tensor([[0, 2, 2, 0, 2, 2, 1, 0, 2], [2, 2, 2, 2, 2, 2, 2, 2, 2]])
    found = whole.sample_of_class(x, labels, draws)
    diffusion = whole.family
    encoded, coefficients = diffusion.encode(x), diffusion.coefficients()
    start_noise = rng.normal(draws, (2, 9, LATENT_DIM), rng.START)
    noise = rng.normal(draws, (2, 9, LATENT_DIM), rng.CHAIN, planes=len(coefficients))
    for k, n in [(k, n) for k in range(2) for n in range(9)]:
        label = int(labels[k, n])
        mean, log_var = encoded.mean[label, n], encoded.log_var[label, n]
        context = encoded.context[n] if shared_context else encoded.context[label, n]
        y_T = mean + torch.exp(0.5 * log_var) * start_noise[k, n]
        chain = ops.sample_chain(y_T[None], context[None], chain_of(diffusion, label), coefficients, noise=noise[:, k, n : n + 1])
        torch.testing.assert_close(found.z[k, n], chain.z[0], rtol=1e-4, atol=1e-5)
        expected = chain.path[0] - ops.gaussian_log_prob(y_T, mean, log_var)
        torch.testing.assert_close(found.log_ratio[k, n], expected, rtol=1e-4, atol=1e-4)


def test_a_row_goes_through_the_network_of_its_drawn_class_only(monkeypatch):
    """The denoiser computes K N rows a step for K N drawn rows: there are no padding rows, and no rows of other classes."""
    rows, denoise, samples = [], reference.denoise, 3
    whole, x = posterior("diffusion"), observations(9)
    steps = len(whole.family.coefficients())
    monkeypatch.setattr(reference, "denoise", lambda y, *others: rows.append(y[..., 0].numel()) or denoise(y, *others))
    with ddvi_fast.use_backend("reference"):
        whole.sample(x, samples, Draws(5))
        assert sum(rows) == steps * samples * len(x)
        rows.clear()
        whole.sample_of_class(x, torch.ones(1, 9, dtype=torch.int64), Draws(5))
        assert sum(rows) == steps * len(x)


def test_with_the_exact_posterior_every_weight_is_the_evidence():
    model, exact, x = make_model(), exact_posterior(), observations(20)
    evidence = torch.logsumexp(log_joint(x), 0)
    weights = exact.log_weights(model, x, 6, Draws(1)).double()
    torch.testing.assert_close(weights, evidence.expand(6, -1), rtol=0, atol=2e-4)
    z, log_ratio, log_prior_ratio = exact.sample_classes(x, 2, Draws(2))
    labels = torch.arange(CLASSES).view(-1, 1, 1)
    torch.testing.assert_close(log_prior_ratio, model.prior.log_prob(z, labels) + log_ratio)
    each = model.log_likelihood(x, z) + log_prior_ratio - math.log(CLASSES)
    torch.testing.assert_close(each.double(), log_joint(x).unsqueeze(1).expand_as(each), rtol=0, atol=2e-4)


def test_quadrature_knows_that_evidence_too():
    x = observations(20)
    torch.testing.assert_close(log_evidence_quadrature(make_model(), x).double(), torch.logsumexp(log_joint(x), 0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_bounds_stay_below_the_evidence_and_rise(name):
    model, whole, x, samples = make_model(), posterior(name), observations(60), 400
    evidence = torch.logsumexp(log_joint(x), 0)
    weights = whole.log_weights(model, x, samples, Draws(3)).detach().double()
    error = weights.std(0) / math.sqrt(samples)
    assert bool((weights.mean(0) < evidence + 4 * error).all())
    elbo, few, many = (float(metrics.iwae_bound(model, whole, x, k, Draws(3)).mean()) for k in (1, 20, 2000))
    assert elbo < few < many < float(evidence.mean()) + 0.3
    # The weights' mean is the evidence itself: classes and paths are counted exactly once.
    share = torch.exp(whole.log_weights(model, x[:1].expand(2000, -1), 40, Draws(9)).detach().double() - evidence[0]).flatten()
    assert abs(share.mean() - 1) < 4 * share.std() / math.sqrt(len(share))


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_and_gradients_to_every_parameter(name):
    whole, x = posterior(name), observations(5)
    for samples in (1, 3):
        sample = whole.sample(x, samples, Draws(0))
        assert sample.z.shape == (samples, 5, LATENT_DIM) and sample.log_ratio.shape == (samples, 5)
        each = whole.sample_classes(x, samples, Draws(0))
        assert each.z.shape == (CLASSES, samples, 5, LATENT_DIM) and each.log_ratio.shape == (CLASSES, samples, 5)
    (each.z.square().sum() + each.log_ratio.sum() + whole.log_class_probs(x)[:, 0].sum()).backward()
    missing = [key for key, parameter in whole.named_parameters() if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())]
    assert missing == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_gets_the_same_samples_in_any_batch(name):
    whole, x = posterior(name), observations(6)
    together, apart = whole.sample(x, 2, Draws(1, 40)), whole.sample(x[4:], 2, Draws(1, 44))
    torch.testing.assert_close(together.z[:, 4:], apart.z, rtol=1e-5, atol=1e-6)


def test_drawn_classes_follow_their_probabilities():
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0]])
    labels = draw_classes(probs.log(), 20_000, Draws(2))
    shares = torch.nn.functional.one_hot(labels, 3).double().mean(0)
    assert ((shares - probs).abs() <= 4 * (probs * (1 - probs) / 20_000).sqrt() + 1e-12).all()


def test_an_implicit_family_has_samples_for_every_class_but_no_bound():
    encoder = PerClass(MLP(DATA_DIM, [], CLASSES * (LATENT_DIM + 4)), CLASSES)
    whole = ClassConditional(MLP(DATA_DIM, [], CLASSES), Adversarial(encoder, LATENT_DIM, 4), make_model().prior)
    assert whole.sample_classes(observations(5), 2).z.shape == (CLASSES, 2, 5, LATENT_DIM)
    assert whole.sample(observations(5), 2).log_ratio is None
    with pytest.raises(InputError, match=r"^posterior: expected one with a density[^\n]*objectives adversarial[^\n]*$"):
        whole.log_weights(make_model(), observations(2))


def test_an_encoder_of_data_and_class_is_the_plain_network_on_both():
    encoder = ClassMLP(4, [6, 5], 3, num_classes=2, draws=Draws(8))
    plain, x = MLP(6, [6, 5], 3), torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain.layers[0].weight.copy_(torch.cat((encoder.first.layers[0].weight, encoder.classes.weight), 1))
        plain.layers[0].bias.copy_(encoder.first.layers[0].bias + encoder.classes.bias)
        for mine, theirs in zip(encoder.rest.layers, plain.layers[1:], strict=True):
            theirs.load_state_dict(mine.state_dict())
    found = encoder(x)
    for label in range(2):
        code = torch.zeros(7, 2).index_fill(1, torch.tensor([label]), 1.0)
        torch.testing.assert_close(found[label], plain(torch.cat((x, code), 1)))


def test_style_latents_carry_the_class_they_were_encoded_for():
    prior = priors.OneHotGaussian(style_dim=2, num_classes=3)
    styles = Gaussian(ClassMLP(4, [6], 4, 3), 2, coordinates="prior", prior=prior)
    whole = ClassConditional(MLP(4, [], 3, draws=Draws(3)), styles, prior)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    each = whole.sample_classes(x, 2, Draws(0))
    assert each.z.shape == (3, 2, 5, 5) and (each.z[..., 2:].argmax(-1) == torch.arange(3).view(3, 1, 1)).all()
    labels = torch.tensor([[0, 2, 1, 1, 0]])
    mine = whole.sample_of_class(x, labels, Draws(0))
    assert torch.equal(mine.z[0, :, 2:].argmax(-1), labels[0])
    encoded, (sample, log_class) = whole.encode(x), whole.sample_with_class(whole.encode(x), 3, Draws(1))
    style, drawn, rows = sample.z[..., :2], sample.z[..., 2:].argmax(-1), torch.arange(5)
    torch.testing.assert_close(log_class, encoded.log_probs[rows, drawn])
    mean, log_var = (part[drawn, rows] for part in encoded.family)
    expected = Normal(0.0, 1.0).log_prob(style).sum(-1) - Normal(mean, (0.5 * log_var).exp()).log_prob(style).sum(-1) - math.log(3) - log_class
    torch.testing.assert_close(sample.log_prior_ratio, expected)
    # The prior has the density of the style times the probability of the class.
    same = whole.sample(x, 3, Draws(1))
    torch.testing.assert_close(same.log_ratio, expected - Normal(0.0, 1.0).log_prob(style).sum(-1) + math.log(3))


@pytest.mark.parametrize(
    ("make_it", "words"),
    [
        (lambda: ClassConditional(MLP(3, [], 3), family("gaussian"), priors.make("gaussian")), "with classes, got a Gaussian prior"),
        (lambda: ClassDiffusion(MLP(3, [], 4), ResidualMLP(2, 0, 5), make("cosine", 5)), r"a group for each class \(groups=C\)"),
        (
            lambda: ClassConditional(MLP(3, [], 3), family("gaussian", coordinates="prior", prior=make_model().prior), make_model().prior),
            "prior: expected that of the family's coordinates",
        ),
        (lambda: ClassMLP(4, [], 2, 3), "hidden: expected at least one layer"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make_it, words):
    with pytest.raises(InputError, match=words):
        make_it()


def test_a_deterministic_chain_of_classes_has_samples_and_no_bound():
    whole = posterior("diffusion", eta=0.0)
    assert whole.sample(observations(4), 2).log_ratio is None and whole.sample_classes(observations(4)).log_ratio is None
    with pytest.raises(InputError, match="eta = 0"):
        whole.log_weights(make_model(), observations(2))
    assert isinstance(family("gaussian"), Gaussian)
