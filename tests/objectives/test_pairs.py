"""Pairs to which posteriors and decoders are fitted: latents against quadrature, losses by hand, random numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from ddvi_fast import InputError, likelihoods, priors
from ddvi_fast.distributed import Part, part_of_batch
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.objectives.pairs import PairFit, Pairs, Sleep, uniform_timesteps
from ddvi_fast.posteriors import Adversarial, Gaussian
from ddvi_fast.posteriors.class_conditional import of_class
from ddvi_fast.rng import Draws
from tests.class_models import CLASSES, DATA_DIM, MEANS, SPREAD, log_joint, make_model, observations, placed, posterior
from tests.linear_gaussian import BIAS, SCALE, WEIGHT, diffusion_posterior, gaussian_posterior
from tests.linear_gaussian import make_model as linear_model
from tests.linear_gaussian import observations as linear_observations

ROWS, CANDIDATES = 1500, 5


def bent_model() -> LatentVariableModel:
    """A mixture of three Gaussians, of which a nonlinear decoder makes three bits."""
    decoder = MLP(2, [8], DATA_DIM, draws=Draws(31))
    with torch.no_grad():
        decoder.output_layer.weight.mul_(6)
    return LatentVariableModel(priors.Mixture(MEANS, SPREAD), decoder, likelihoods.make("bernoulli"))


def pairs_of(fit: PairFit, x: Tensor, draws: Draws, monkeypatch) -> Pairs:
    """The pairs to which `fit` fits the posterior for the batch `x`."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(fit, "_fit", lambda pairs, encoded, draws: seen.append(pairs))
        fit.terms(x, draws)
    return seen[0]


def grid_of(model: LatentVariableModel) -> tuple[Tensor, Tensor, Tensor]:
    """Noise [C, M, 2], latents [C, M, 2] and probabilities [C, M] of a grid over the mixture."""
    line = torch.linspace(-6, 6, 121, dtype=torch.float64)
    u = torch.cartesian_prod(line, line)
    weight = Normal(0.0, 1.0).log_prob(u).sum(1).exp()
    return u.expand(CLASSES, -1, -1), MEANS.double().unsqueeze(1) + SPREAD * u, (weight / weight.sum()).expand(CLASSES, -1) / CLASSES


@pytest.mark.parametrize("coordinates", ["latent", "prior+encoder"])
def test_data_come_with_latents_and_classes_of_their_exact_posterior(coordinates, monkeypatch):
    model, x = bent_model(), torch.tensor([[1.0, 0.0, 1.0]])
    fit = PairFit(model, placed("gaussian", coordinates, model.prior), Sleep(1.0, 0.0, data=True, candidates=CANDIDATES))
    pairs = pairs_of(fit, x.expand(ROWS, -1), Draws(4, 100), monkeypatch)
    u, z, weight = grid_of(model)
    likelihood = Bernoulli(logits=model.decoder.double()(z)).log_prob(x.double()).sum(-1).exp()
    ratio = likelihood / (weight * likelihood).sum()  # p(z | x) / p(z)
    exact = weight * ratio

    def close(sampled: Tensor, of_grid: Tensor, rows: float = ROWS) -> None:
        """The mean over rows, which draw their latents among the same prior samples, is that of the posterior within 4 standard errors."""
        mean = (exact * of_grid).sum()
        spread = (of_grid - mean).square()
        error = torch.sqrt((exact * spread).sum() / rows + (weight * ratio.square() * spread).sum() / (ROWS * CANDIDATES))
        assert abs(sampled.double().mean() - mean) < 4 * error
        assert error < 0.15 * spread.mean().sqrt(), "too few draws to tell"

    own = u if coordinates == "prior+encoder" else z
    for axis in range(2):
        close(pairs.z[:, axis], z[..., axis])
        close(pairs.u[:, axis], own[..., axis])
        close(pairs.z[:, axis].square(), z[..., axis].square())
    for label in range(CLASSES):
        indicator = torch.zeros_like(weight).index_fill(0, torch.tensor([label]), 1.0)
        close((pairs.labels == label).double(), indicator)
        close(pairs.class_probs[:, label], indicator, rows=math.inf)
    torch.testing.assert_close(pairs.class_probs.sum(1), torch.ones(ROWS))
    assert torch.equal(pairs.x, x.expand(ROWS, -1))


def test_soft_targets_are_the_exact_class_probabilities_of_each_datum(monkeypatch):
    x = observations(400)
    fit = PairFit(make_model(), placed("gaussian", "prior", make_model().prior), Sleep(1.0, 0.0, data=True, candidates=200))
    found = pairs_of(fit, x, Draws(1), monkeypatch).class_probs
    assert (found - torch.softmax(log_joint(x), 0).mT).abs().max() < 0.03  # of 80,000 candidates at least 1,000 count for every datum


@pytest.mark.parametrize("prior", ["pinwheel", "swiss_roll_noisy", "square"])
@pytest.mark.parametrize("data", [False, True])
def test_noise_and_labels_push_to_the_latents(prior, data, monkeypatch):
    prior = priors.make(prior)
    model = LatentVariableModel(prior, MLP(2, [8], DATA_DIM), likelihoods.make("bernoulli"))
    x, sleep = torch.rand(50, DATA_DIM, generator=torch.Generator().manual_seed(0)), Sleep(1.0, 0.0, data=data)
    pairs = pairs_of(PairFit(model, placed("gaussian", "prior+encoder", prior), sleep), x, Draws(3), monkeypatch)
    torch.testing.assert_close(prior.push(pairs.u, pairs.labels), pairs.z, rtol=1e-4, atol=1e-4)
    assert pairs.class_probs.shape == (50, 10) and len(pairs.labels.unique()) > 3
    whole = Gaussian(MLP(DATA_DIM, [], 2 * prior.joint_noise_dim), prior.joint_noise_dim, "prior", prior)
    pairs = pairs_of(PairFit(model, whole, sleep), x, Draws(3), monkeypatch)
    torch.testing.assert_close(prior.push(pairs.u), pairs.z, rtol=1e-4, atol=1e-4)
    assert pairs.u.shape == (50, prior.joint_noise_dim) and pairs.class_probs is None
    pairs = pairs_of(PairFit(model, Gaussian(MLP(DATA_DIM, [], 4), 2), sleep), x, Draws(3), monkeypatch)
    assert torch.equal(pairs.u, pairs.z)
    if not data:
        made = model.simulate(50, Draws(3))
        assert torch.equal(pairs.z, made.z) and torch.equal(pairs.x, made.x)


@pytest.mark.parametrize("name", ["gaussian", "iaf", "diffusion"])
@pytest.mark.parametrize("data", [False, True])
def test_losses_by_hand(name, data, monkeypatch):
    model, x, draws = make_model(), observations(12), Draws(5, 24)
    whole = placed(name, "prior+encoder", model.prior)
    chain = name == "diffusion"
    fit = PairFit(model, whole, Sleep(0.3, 0.4 if chain else 0.0, data=data, decoder=0.5, classes=0.6))
    pairs, terms = pairs_of(fit, x, draws, monkeypatch), fit.terms(x, draws)
    shown = x if data else pairs.x
    log_q = torch.log_softmax(whole.classifier(shown), 1)
    torch.testing.assert_close(terms.values["sleep_class"], -(pairs.class_probs * log_q).sum(1))
    if not data:
        assert torch.equal(pairs.class_probs, torch.eye(CLASSES)[pairs.labels])
    encoded = of_class(whole.family.encode(shown), pairs.labels)
    mean, deviation = encoded[0], torch.exp(0.5 * encoded[1])
    if chain:
        t, v = uniform_timesteps(draws, 12, 5, torch.device("cpu")), (pairs.u - mean) / deviation
        torch.testing.assert_close(terms.values["sleep"], whole.family.step_divergence(encoded.context, v, t, draws))
        torch.testing.assert_close(terms.values["sleep_top"], -Normal(mean, deviation).log_prob(pairs.u).sum(1))
    elif name == "gaussian":
        torch.testing.assert_close(terms.values["sleep"], -Normal(mean, deviation).log_prob(pairs.u).sum(1))
    else:
        torch.testing.assert_close(terms.values["sleep"], -whole.family.log_density(encoded, pairs.u))
    weights = {"sleep_class": 0.6, "sleep": 0.3}
    assert terms.weights == weights | ({"sleep_top": 0.4} if chain else {}) | ({"sleep_decoder": 0.5} if data else {})
    if data:
        squared = ((x - model.decoder(pairs.z)) / 0.7).square().sum(1)
        expected = 0.5 * squared + DATA_DIM * math.log(0.7 * math.sqrt(2 * math.pi))
        torch.testing.assert_close(terms.values["sleep_decoder"], expected)


def test_the_chains_loss_does_not_train_the_frame():
    model, x = make_model(), observations(12)
    whole = placed("diffusion", "prior+encoder", model.prior)
    terms = PairFit(model, whole, Sleep(1.0, 1.0, data=True)).terms(x, Draws(0))
    frame = list(whole.family.encoder.parameters())
    assert all(part is None for part in torch.autograd.grad(terms.values["sleep"].sum(), frame, retain_graph=True, allow_unused=True))
    assert all(part.any() for part in torch.autograd.grad(terms.values["sleep_top"].sum(), frame))


def test_the_decoder_learns_the_evidence_from_pairs_of_data():
    """Its gradient, averaged over many draws, is that of the exact log-evidence of a linear-Gaussian model."""
    model, x = linear_model().requires_grad_(True), linear_observations(2).repeat_interleave(20, 0)
    fit = PairFit(model, diffusion_posterior(), Sleep(1.0, 0.0, data=True, decoder=2.0, candidates=50))
    gradients = []
    for number in range(100):
        terms = fit.terms(x, Draws(number))
        assert terms.weights["sleep_decoder"] == 2.0
        gradients.append(torch.autograd.grad(terms.values["sleep_decoder"].mean(), model.decoder.layers[0].bias)[0])
    weight = torch.tensor(WEIGHT)
    covariance = weight @ weight.mT + SCALE**2 * torch.eye(3)
    exact = -torch.linalg.solve(covariance, (linear_observations(2) - torch.tensor(BIAS)).mean(0))
    sampled, error = torch.stack(gradients).mean(0), torch.stack(gradients).std(0) / 10
    assert ((sampled - exact).abs() < 4 * error + 0.01 * exact.abs()).all()


def test_fantasies_give_the_decoder_no_gradient():
    model = linear_model().requires_grad_(True)
    fit = PairFit(model, diffusion_posterior(), Sleep(1.0, 1.0, data=False))
    terms = fit.terms(linear_observations(8), Draws(0))
    assert "sleep_decoder" not in terms.values
    terms.total().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in fit.posterior.parameters())


@pytest.mark.parametrize(("name", "data", "factor"), [("gaussian", True, 1), ("diffusion", True, 1), ("diffusion", False, 1), ("diffusion", None, 2)])
def test_several_processes_have_the_pairs_of_one(name, data, factor):
    model, x, draws = make_model(), observations(6), Draws(3, 12)
    sleep = Sleep(1.0, 1.0 if name == "diffusion" else 0.0, data=data, batch_factor=factor, timesteps=3)
    fit, parts = PairFit(model, placed(name, "prior+encoder", model.prior), sleep), []
    whole = fit.terms(x, draws).values
    for number in range(3):
        with part_of_batch(Part(number, 3)):
            parts.append(fit.terms(x[2 * number : 2 * number + 2], draws.advance(2 * number)).values)
    for key, value in whole.items():
        torch.testing.assert_close(torch.cat([part[key] for part in parts]), value, rtol=1e-4, atol=1e-5)


def test_a_row_depends_on_its_own_datum_alone():
    model, draws = bent_model(), Draws(2)
    fit = PairFit(model, placed("diffusion", "prior+encoder", model.prior), Sleep(1.0, 1.0, data=True))
    x = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    others = torch.cat((x[:1], 1 - x[1:]))
    first, second = fit.terms(x, draws).values, fit.terms(others, draws).values
    for key in first:
        torch.testing.assert_close(first[key][0], second[key][0])
        assert not torch.allclose(first[key][1:], second[key][1:])


def test_batches_share_neither_candidates_nor_choices(monkeypatch):
    model = make_model()
    fit = PairFit(model, placed("gaussian", "latent", model.prior), Sleep(1.0, 0.0, data=True, candidates=3))
    pairs = [pairs_of(fit, observations(40), Draws(0, 40 * step), monkeypatch).z for step in range(2)]
    assert not {tuple(z) for z in pairs[0].tolist()} & {tuple(z) for z in pairs[1].tolist()}


@pytest.mark.parametrize(
    ("dim", "options", "expected"),
    [
        (3, {}, True), (4, {}, False), (3, {"alternating": True}, False), (3, {"batch_factor": 2}, False), (3, {"data": False}, False),
        (4, {"data": True}, True),
    ],
)  # fmt: skip
def test_a_posterior_of_few_coordinates_has_pairs_of_data_by_default(dim, options, expected):
    model = LatentVariableModel(priors.make("gaussian", dim=dim), MLP(dim, [], DATA_DIM), likelihoods.make("bernoulli"))
    fit = PairFit(model, Gaussian(MLP(DATA_DIM, [], 2 * dim), dim), Sleep(1.0, 0.0, **options))
    assert fit.from_data is expected
    assert ("sleep_decoder" in fit.terms(torch.rand(5, DATA_DIM, generator=torch.Generator()), Draws(0)).values) is expected


def test_refuses_terms_that_the_posterior_does_not_have(one_line):
    one_line(lambda: PairFit(linear_model(), gaussian_posterior(), Sleep()), r"^sleep\.top_weight: expected 0 without a chain, got 'Gaussian'")
    separate = posterior("diffusion")
    one_line(lambda: PairFit(make_model(), separate, Sleep()), r"^sleep\.weight: expected 0 for a ClassDiffusion")
    implicit = Adversarial(MLP(3, [], 6), 2, 4)
    one_line(lambda: PairFit(linear_model(), implicit, Sleep(1.0, 0.0)), r"^sleep\.weight: expected 0 for a posterior without a tractable density")
    assert PairFit(linear_model(), implicit, Sleep(0.0, 0.0)).terms(linear_observations(3), Draws(0)).weights == {"sleep_decoder": 1.0}
    with pytest.raises(InputError, match=r"^sleep\.data: expected false with sleep\.alternating"):
        Sleep(data=True, alternating=True)
