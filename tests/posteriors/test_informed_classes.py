"""Class probabilities that see the model (docs/method.md, section 7)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, special
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

from ddvi_fast import InputError, export, likelihoods, networks, objectives, ops, rng, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.evidence import log_evidence_quadrature
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.posteriors.class_conditional import ClassConditional
from ddvi_fast.posteriors.class_factors import best_factors
from ddvi_fast.priors import Mixture
from ddvi_fast.rng import Draws
from tests.posteriors import coordinates as small

_NOISE = 0.5
COORDINATES = pytest.mark.parametrize("coordinates", ["encoder", "prior+encoder"])


FACTORS = (0.8, 0.7)


def informed(coordinates: str, name: str = "diffusion", **options) -> tuple[LatentVariableModel, ClassConditional]:
    """A model with three classes, and a posterior whose q(c | x) sees it."""
    model = small.make_model("mixture")
    plain = small.make(name, model, coordinates, by_class=True, **options)
    posterior = ClassConditional(plain.classifier, plain.family, model.prior, informed="fitted").inform(model).eval()
    posterior.class_factors.copy_(torch.tensor(FACTORS))
    return model, posterior


class Exact(nn.Module):
    """Encoder with the mean and log-variance [C, N, 4] of the exact posterior of each class, plus `off`, for orthogonal columns of a decoder."""

    def __init__(self, model: LatentVariableModel, coordinates: str, off: float) -> None:
        super().__init__()
        self.off = off
        self.prior, self.noise, self.coordinates = model.prior, _NOISE, coordinates
        self.weight, self.bias = model.decoder.layers[0].weight, model.decoder.layers[0].bias

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        means, scale = self.prior.means.unsqueeze(1), self.prior.scale
        precision = scale**-2 + self.weight.square().sum(0) / self.noise**2
        mean = (means * scale**-2 + (x - self.bias) @ self.weight / self.noise**2) / precision
        width = precision.rsqrt()
        if "prior" in self.coordinates:
            mean, width = (mean - means) / scale, width / scale
        return torch.cat((mean, (2 * width.log()).expand_as(mean)), -1) + self.off


def with_frames(coordinates: str, off: float = 0.0, **options) -> tuple[LatentVariableModel, ClassConditional]:
    """A mixture under a linear decoder, and a posterior with the exact Gaussians as frames, or `off` beside them; its classifier knows nothing."""
    decoder = networks.MLP(2, [], 3, draws=Draws(1)).requires_grad_(False)
    with torch.no_grad():
        decoder.layers[0].weight.copy_(torch.tensor([[0.8, 0.0], [0.0, 0.5], [0.0, 0.0]]))
    model = LatentVariableModel(Mixture(num_classes=3, scale=0.4, radius=1.0), decoder, likelihoods.make("gaussian", scale=_NOISE))
    pushed = {"prior": model.prior} if "prior" in coordinates else {}
    schedule = schedules.make("constant", 4, beta=0.3)
    family = Diffusion(Exact(model, coordinates, off), ResidualMLP(2, 0, 4, 16), schedule, coordinates=coordinates, **pushed, **options)
    classifier = networks.MLP(3, [], 3)
    with torch.no_grad():
        for part in classifier.parameters():
            part.zero_()
    return model, ClassConditional(classifier, family, model.prior, informed="fitted").inform(model).eval()


@COORDINATES
@pytest.mark.parametrize(("off", "updates"), [(0.0, 0), (0.2, 3)])
@torch.no_grad()
def test_classes_are_exact_where_the_frames_are(coordinates: str, off: float, updates: int) -> None:
    """With exact frames, or frames that updates make exact, and a factor of 1, q(c | x) is p(c | x)."""
    model, posterior = with_frames(coordinates, off, frame_updates=updates)
    posterior.class_factors.copy_(torch.tensor((1.0, 1.0)))
    x = model.simulate(50, Draws(3)).x
    weight, bias = (part.detach() for part in model.decoder.layers[0].parameters())
    covariance = 0.4**2 * weight @ weight.T + _NOISE**2 * torch.eye(3)
    centres = model.prior.means @ weight.T + bias
    exact = torch.log_softmax(torch.stack([MultivariateNormal(centre, covariance).log_prob(x) for centre in centres], -1), -1)
    assert float(exact.exp().amax(-1).min()) < 0.9  # some rows are uncertain
    torch.testing.assert_close(posterior.log_class_probs(x), exact, rtol=1e-4, atol=1e-4)


@COORDINATES
@pytest.mark.parametrize("name", ["diffusion", "class_diffusion"])
@torch.no_grad()
def test_logits_against_densities_of_torch(coordinates: str, name: str) -> None:
    model, posterior = informed(coordinates, name)
    x = model.simulate(6, Draws(5)).x
    encoded = posterior.encode(x)
    scores = []
    for label in range(3):
        mean, log_var = encoded.family.mean[label], encoded.family.log_var[label]
        z = model.prior.means[label] + model.prior.scale * mean if posterior.pushes else mean
        centre, width = (0.0, 1.0) if posterior.pushes else (model.prior.means[label], model.prior.scale)
        density = Normal(model.decoder(z), 0.9).log_prob(x).sum(-1) + Normal(centre, width).log_prob(mean).sum(-1)
        scores.append(density + 0.5 * log_var.sum(-1))
    expected = torch.log_softmax(0.8 * posterior.classifier(x) + 0.7 * torch.stack(scores, -1), -1)
    torch.testing.assert_close(encoded.log_probs, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(posterior.log_class_probs(x), encoded.log_probs)
    torch.testing.assert_close(posterior.encode(x[2:3]).log_probs, encoded.log_probs[2:3])  # no row depends on the others
    posterior.train()
    torch.testing.assert_close(posterior.log_class_probs(x), torch.log_softmax(posterior.classifier(x), -1))


@COORDINATES
@torch.no_grad()
def test_bounds_stay_below_the_evidence_and_weights_average_to_it(coordinates: str) -> None:
    model, posterior = informed(coordinates, informed_steps=2)
    x = model.simulate(4, Draws(5)).x
    evidence = log_evidence_quadrature(model, x, resolution=100).double()
    weights = posterior.log_weights(model, x, 4000, Draws(3)).double()
    for bounds in (weights, ops.log_mean_exp(weights.unflatten(0, (-1, 50)), 1)):
        assert ((bounds.mean(0) - evidence) < 4 * bounds.std(0) / len(bounds) ** 0.5).all()
    share = torch.exp(weights - evidence)
    assert ((share.mean(0) - 1).abs() < 4 * share.std(0) / len(share) ** 0.5).all()


def trained(coordinates: str, gain: float) -> tuple[LatentVariableModel, ClassConditional]:
    """A posterior whose factor of the model is trained."""
    model = small.make_model("mixture")
    plain = small.make("diffusion", model, coordinates, by_class=True)
    posterior = ClassConditional(plain.classifier, plain.family, model.prior, informed="trained").inform(model)
    with torch.no_grad():
        posterior.score_gain.fill_(gain)
    return model, posterior


def test_only_the_classifier_and_the_factor_take_gradients() -> None:
    model, posterior = trained("prior+encoder", 0.7)
    x = model.simulate(6, Draws(5)).x
    weight = rng.normal(Draws(1), (6, 3), rng.NOISE)
    (weight * posterior.log_class_probs(x)).sum().backward()
    probs = posterior.log_class_probs(x).exp().detach()
    scores = posterior._scores(x, posterior.encode(x).family)
    torch.testing.assert_close(posterior.log_class_probs(x), torch.log_softmax(posterior.classifier(x) + 0.7 * scores, -1))
    expected = (weight * (scores - (probs * scores).sum(-1, keepdim=True))).sum()
    torch.testing.assert_close(posterior.score_gain.grad, expected)
    assert all(part.grad is None for part in (*posterior.family.parameters(), *model.parameters()))
    assert all(part.grad is not None for part in posterior.classifier.parameters())


def test_the_factor_is_trained_through_the_bound() -> None:
    """Where the classifier knows nothing, the bound raises the model's part of the logits."""
    model, posterior = trained("prior+encoder", 0.1)
    x = model.simulate(256, Draws(5)).x
    optimizer, objective = torch.optim.Adam([posterior.score_gain], 0.02), objectives.ELBO(model, posterior, num_samples=4)
    for step in range(60):
        optimizer.zero_grad()
        objective(x, draws=Draws(step)).backward()
        optimizer.step()
    assert 0.4 < float(posterior.score_gain.detach()) < 1.6


@COORDINATES
def test_factors_of_exact_frames_are_exact(coordinates: str) -> None:
    """Where the scores are log p(x, c) and the classifier knows nothing, the best factor of the model is 1."""
    model, posterior = with_frames(coordinates)
    x = model.simulate(200, Draws(5)).x
    assert posterior.fit_factors(model, x, draws=Draws(2)).class_factors[1].item() == pytest.approx(1, abs=0.02)  # the bounds have noise


@torch.no_grad()
def test_factors_raise_the_bound() -> None:
    model, posterior = informed("prior+encoder")
    x = model.simulate(300, Draws(5)).x
    bounds = {}
    for name, factors in (("classifier", (1.0, 0.0)), ("both", FACTORS)):
        posterior.class_factors.copy_(torch.tensor(factors))
        bounds[name] = posterior.log_weights(model, x, 50, Draws(3)).mean()
    posterior.fit_factors(model, x, num_samples=50, draws=Draws(2))
    fitted = posterior.log_weights(model, x, 50, Draws(3)).mean()
    assert fitted > max(bounds.values())
    again = posterior.class_factors.clone()
    assert torch.equal(posterior.fit_factors(model, x, num_samples=50, draws=Draws(2)).class_factors, again)


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_best_factors_against_scipy(scale: float) -> None:
    """On scores that differ by a few nats, or by hundreds."""
    bounds = 2 * rng.normal(Draws(1), (100, 4), rng.NOISE).double()
    logits, scores = ((bounds + rng.normal(Draws(seed), (100, 4), rng.NOISE)).numpy() for seed in (2, 3))
    scores = scale * scores

    def loss(factors: list[float]) -> float:
        logs = special.log_softmax(factors[0] * logits + factors[1] * scores, axis=-1)
        return float(-(np.exp(logs) * (bounds.numpy() - logs)).sum(-1).mean())

    best = best_factors(*(torch.as_tensor(part) for part in (logits, scores, bounds)))
    found = min((optimize.minimize(loss, first, method="Nelder-Mead") for first in ((1, 0), (0, 1 / scale), best.tolist())), key=lambda one: one.fun)
    assert loss(best.tolist()) <= found.fun + 1e-6
    assert loss(best.tolist()) < loss([1.0, 0.0])


def test_the_classifier_stays_alone_where_a_bound_is_not_a_number() -> None:
    bounds = torch.tensor([[0.0, float("nan")], [-3.0, 0.0]])
    assert best_factors(torch.zeros(2, 2), torch.ones(2, 2), bounds).tolist() == [1, 0]


@pytest.mark.slow
def test_a_compiled_call_gives_the_same(validation) -> None:
    model, posterior = informed("prior+encoder")
    x = model.simulate(6, Draws(5)).x
    torch.testing.assert_close(torch.compile(posterior.log_class_probs, backend="eager")(x), posterior.log_class_probs(x))


def test_what_cannot_see_the_model_is_refused() -> None:
    model = small.make_model("mixture")
    for name, coordinates in (("gaussian", "prior+encoder"), ("diffusion", "prior")):
        plain = small.make(name, model, coordinates, by_class=True)
        with pytest.raises(InputError, match=r"^informed: expected None without a chain in the encoder's frame, got 'fitted'"):
            ClassConditional(plain.classifier, plain.family, model.prior, informed="fitted")
    plain = small.make("diffusion", model, "prior+encoder", by_class=True)
    with pytest.raises(InputError, match=r"^target: expected the model that q\(c \| x\) sees, got None"):
        ClassConditional(plain.classifier, plain.family, model.prior, informed="fitted").eval().sample(torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"^informed: expected fitted, for factors that are not trained, got 'trained'"):
        trained("prior+encoder", 0.7)[1].fit_factors(model, torch.zeros(3, 3))
    with pytest.raises(InputError, match=r"^informed: expected one of trained, fitted, got 'always'"):
        ClassConditional(plain.classifier, plain.family, model.prior, informed="always")
    with pytest.raises(InputError, match=r"^posterior: expected one whose q\(c \| x\) does not see the model, for export"):
        export.sampler(informed("prior+encoder")[1], torch.zeros(3, 3))
