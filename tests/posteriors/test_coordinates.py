"""Posteriors in the coordinates of the latents, the prior and the encoder (docs/method.md, section 7), for every family and prior."""

from __future__ import annotations

import copy
import functools
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence

from ddvi_fast import metrics, ops, rng
from ddvi_fast.evidence import log_evidence_quadrature
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.objectives import ELBO, IWAE, Progress
from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.posteriors import Gaussian, Posterior
from ddvi_fast.posteriors.class_conditional import ClassConditional, class_major, of_class
from ddvi_fast.rng import Draws
from tests import class_models
from tests.posteriors import coordinates as small

F64 = torch.float64
FRAMES = pytest.mark.parametrize("coordinates", ["encoder", "prior+encoder"])
SAMPLES = 2500


class Case(NamedTuple):
    """A prior, the coordinates, whether the posterior draws a class, and the family."""

    prior: str
    coordinates: str
    by_class: bool
    family: str

    def __str__(self) -> str:
        return "-".join((self.prior, self.coordinates, "class" if self.by_class else "joint", self.family))

    def make(self, model: LatentVariableModel, **options) -> Posterior:
        return small.make(self.family, model, self.coordinates, self.by_class, **options)


def cases(*chosen: str, also: tuple[str, ...] = ()) -> list[Case]:
    """All combinations that exist under the priors `chosen` (default: all)."""
    found = []
    for prior in chosen or small.PRIORS:
        forms = (False,) if small.PRIORS[prior]().num_classes is None else (False, True)
        for coordinates in small.COORDINATES if prior in small.DENSE_PRIORS else ("prior", "prior+encoder"):
            for by_class in forms:
                families = small.PER_CLASS if by_class else small.WITH_DENSITY
                found += [Case(prior, coordinates, by_class, family) for family in (*families, *also)]
    return found


def every(found: list[Case]):
    return pytest.mark.parametrize("case", found, ids=str)


PLACED = [case for case in cases("centres") if case.coordinates == "prior+encoder"]


class Setting(NamedTuple):
    """A model, data drawn from it, and their log-evidence by quadrature."""

    model: LatentVariableModel
    x: Tensor
    evidence: Tensor


@functools.cache
def setting(prior: str) -> Setting:
    model = small.make_model(prior)
    x = model.simulate(4, Draws(5)).x
    return Setting(model, x, log_evidence_quadrature(model, x, resolution=100).double())


def data(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return rng.normal(Draws(9), (rows, small.DATA_DIM), 0, dtype=dtype)


@every(cases())
@torch.no_grad()
def test_bounds_stay_below_the_evidence_and_weights_average_to_it(case):
    model, x, evidence = setting(case.prior)
    weights = case.make(model).log_weights(model, x, SAMPLES, Draws(3)).double()
    for bounds in (weights, ops.log_mean_exp(weights.unflatten(0, (-1, 50)), 1)):
        assert ((bounds.mean(0) - evidence) < 4 * bounds.std(0) / len(bounds) ** 0.5).all()
    share = torch.exp(weights - evidence)
    effective = share.sum(0).square() / share.square().sum(0)
    decent = effective > 20
    assert decent.any()
    error = share[:, decent].std(0).square().sum().sqrt() / int(decent.sum()) / SAMPLES**0.5
    assert abs(share[:, decent].mean() - 1) < 4 * error


@pytest.mark.parametrize("by_class", [False, True], ids=["joint", "class"])
def test_metrics_bound_the_evidence_of_a_prior_without_density(by_class):
    model, x, evidence = setting("swiss_roll")
    posterior = small.make("diffusion", model, "prior+encoder", by_class)
    weights = posterior.log_weights(model, x, 1000, Draws(4)).detach()
    elbo, iwae = metrics.elbo(model, posterior, x, 1000, Draws(4)), metrics.iwae_bound(model, posterior, x, 1000, Draws(4))
    torch.testing.assert_close(elbo, weights.mean(0))
    torch.testing.assert_close(iwae, ops.log_mean_exp(weights, 0))
    assert (elbo < iwae).all() and (iwae < evidence + 0.3).all() and (elbo < evidence).all()


# One family of each kind: the ratios of a sample are formed by the base class.
@every([case for case in cases(also=("adversarial",)) if case.family in ("gaussian", "diffusion", "class_diffusion", "adversarial")])
@torch.no_grad()
def test_both_ratios_of_a_sample_belong_to_one_weight(case):
    model, x, _ = setting(case.prior)
    posterior, draws = case.make(model), Draws(7)
    z, log_ratio, log_prior_ratio = sample = posterior.sample(x, 3, draws)
    assert z.shape == (3, 4, 2) and bool(z.isfinite().all())
    if case.family == "adversarial":
        assert log_ratio is None and log_prior_ratio is None
        return
    weights = posterior.log_weights(model, x, 3, draws)
    torch.testing.assert_close(model.log_likelihood(x, z) + posterior.log_prior_ratio(model.prior, sample), weights)
    assert (log_prior_ratio is not None) == ("prior" in case.coordinates or case.by_class)
    assert (log_ratio is not None) == model.prior.has_density
    if log_ratio is not None:
        torch.testing.assert_close(model.log_joint(x, z) + log_ratio, weights, rtol=1e-4, atol=1e-4)


@FRAMES
def test_a_gaussian_in_the_frame_is_that_of_the_encoder(coordinates):
    model, x = small.make_model("mixture"), data(5)
    framed, plain = (small.make("gaussian", model, place) for place in (coordinates, "prior" if "prior" in coordinates else "latent"))
    for found, expected in zip(framed.sample(x, 3, Draws(1)), plain.sample(x, 3, Draws(1)), strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("coordinates", ["prior", "prior+encoder"])
def test_a_gaussian_of_a_components_noise_is_a_gaussian_of_latents(coordinates):
    """A mixture pushes noise affinely, so that q(z | x, c) is known in closed form."""
    model, x = small.make_model("mixture"), data(5)
    posterior = small.make("gaussian", model, coordinates, by_class=True)
    z, _, log_prior_ratio = posterior.sample_classes(x, 4, Draws(1))
    mean, log_var = (part.unsqueeze(1) for part in posterior.encode(x).family)
    centres = model.prior.means.view(3, 1, 1, 2)
    of_latent = Independent(Normal(centres + 0.4 * mean, 0.4 * torch.exp(0.5 * log_var)), 1).log_prob(z)
    of_prior = Independent(Normal(centres, 0.4), 1).log_prob(z)
    torch.testing.assert_close(log_prior_ratio, of_prior - of_latent, rtol=1e-4, atol=1e-4)


def at_zero_output(posterior: Posterior) -> Posterior:
    with torch.no_grad():
        for part in (posterior.denoiser.last, posterior.denoiser.last_bias, posterior.log_variance_factors):
            part.zero_()
    return posterior


@FRAMES
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("family", ["diffusion", "class_diffusion"])
def test_without_output_a_chain_in_the_frame_is_the_gaussian_draw_by_draw(family, coordinates, dtype):
    model, x, by_class = small.make_model("mixture").to(dtype), data(6, dtype), family == "class_diffusion"
    whole = small.make(family, model, coordinates, by_class).to(dtype)
    posterior = at_zero_output(whole.family if by_class else whole)
    encoded = posterior.encode(x)
    v, log_ratio = posterior.draw(encoded, 5, Draws(2))
    standard = Independent(Normal(torch.zeros(v.shape[-1], dtype=dtype), 1.0), 1).log_prob(v)
    assert bool(((log_ratio + standard).abs() < 1e-5).all())
    assert bool((v.std() - 1).abs() < 0.2)
    # The Gaussian at the same noise.
    labels = torch.arange(3).unsqueeze(1) if by_class else None
    mean, scale = encoded.mean, torch.exp(0.5 * encoded.log_var)
    u = mean + scale * v
    gaussian = Independent(Normal(mean, scale), 1).log_prob(u)
    found = posterior.place(encoded, v, log_ratio, labels)
    if "prior" in coordinates:
        expected = Independent(Normal(torch.zeros_like(u), 1.0), 1).log_prob(u) - gaussian
        torch.testing.assert_close(found.log_prior_ratio, expected, rtol=0, atol=2e-5)
        torch.testing.assert_close(found.z, model.prior.push(u, labels))
    else:
        torch.testing.assert_close(found.log_ratio, -gaussian, rtol=0, atol=2e-5)
        assert torch.equal(found.z, u)


@FRAMES
def test_weights_without_output_are_those_of_the_gaussian_family(coordinates):
    model, x = small.make_model("pinwheel"), data(6)
    chain = at_zero_output(small.make("diffusion", model, coordinates))
    pushes = chain.pushes
    gaussian = Gaussian(chain.encoder, chain.latent_dim, coordinates="prior" if pushes else "latent", prior=model.prior if pushes else None)
    u = chain.unwhitened_path(chain.encode(x), 4, Draws(3))[-1:]
    sample = gaussian.push(u[-1], gaussian(x, u))
    expected = model.log_likelihood(x, sample.z) + gaussian.log_prior_ratio(model.prior, sample)
    torch.testing.assert_close(chain.log_weights(model, x, 4, Draws(3)), expected, rtol=0, atol=1e-4)


@FRAMES
@pytest.mark.parametrize("family", ["diffusion", "class_diffusion"])
def test_sleep_in_the_frame_by_hand(family, coordinates):
    """The output is compared with mu~(v_0, v_t) - A v_t, and the divergence is that of two normals, class by class."""
    model, rows = small.make_model("mixture").double(), 4
    by_class = family == "class_diffusion"
    whole = small.make(family, model, coordinates, by_class).double()
    posterior, labels = (whole.family, class_major(3, rows)) if by_class else (whole, torch.zeros(rows, dtype=torch.int64))
    x = data(len(labels), F64)
    encoded = of_class(posterior.encode(x), labels)
    u = rng.normal(Draws(1), (len(labels), posterior.latent_dim), 0, dtype=F64)
    v = (u - encoded.mean) / torch.exp(0.5 * encoded.log_var)
    torch.testing.assert_close(posterior.whitened(encoded, u), v)
    top = Independent(Normal(encoded.mean, torch.exp(0.5 * encoded.log_var)), 1).log_prob(u)
    torch.testing.assert_close(posterior.start_log_prob(encoded, u, Draws(2)), top)

    t, draws = torch.arange(len(labels)) % small.STEPS, Draws(3)
    betas = posterior.learned_schedule().betas
    signals = torch.cat((torch.ones(1, dtype=F64), torch.cumprod(1 - betas, 0)))
    beta, signal, previous = betas[t, None], signals[t + 1, None], signals[t, None]
    noise = rng.normal(draws, tuple(v.shape), rng.NOISE, dtype=F64)
    v_t = signal.sqrt() * v + (1 - signal).sqrt() * noise
    mean = (previous.sqrt() * beta * v + (1 - beta).sqrt() * (1 - previous) * v_t) / (1 - signal)
    network = posterior.active_denoiser()
    output = network(v_t, encoded.context, t)
    squared = (output - (mean - (1 - beta).sqrt() * v_t)).square().mean(-1)
    torch.testing.assert_close(posterior.denoising_loss(encoded.context, v, t, draws), squared, rtol=1e-5, atol=1e-6)

    deviation = torch.sqrt(beta * torch.exp(posterior.log_variance_factors[t, None]))
    step = Normal((1 - beta).sqrt() * v_t + output, deviation)
    later = t > 0
    known = Normal(mean, ((1 - previous) / (1 - signal) * beta).sqrt(), validate_args=False)
    expected = torch.where(later, (kl_divergence(known, step) + known.entropy()).sum(-1), -step.log_prob(v).sum(-1))
    found = posterior.step_divergence(encoded.context, v, t, draws)
    torch.testing.assert_close(found, small.STEPS * expected, rtol=1e-5, atol=1e-5)


@every([case for case in cases("mixture") if not case.by_class])
def test_the_log_ratio_of_a_drawn_path_is_that_of_the_sample(case):
    model, x = small.make_model("mixture").double(), data(5, F64)
    options = {"learn_schedule": False} if case.family == "diffusion" else {}
    posterior, draws = case.make(model, **options).double(), Draws(3)
    encoded = posterior.encode(x)
    path = posterior.unwhitened_path(encoded, 3, draws)
    expected = posterior.sample_encoded(encoded, 3, draws)
    for log_ratio in (posterior(x, path), posterior.frozen_log_ratio(x, path)):
        for found, part in zip(posterior.push(path[-1], log_ratio), expected, strict=True):
            assert (found is None) == (part is None)
            if found is not None:
                torch.testing.assert_close(found, part, rtol=1e-5, atol=1e-5)
    if posterior.tractable:
        torch.testing.assert_close(-posterior.log_density(encoded, path[-1][0]), posterior(x, path)[0])


# Parts of the target, whose gradient is kept: an auxiliary model and its context, the uncontrolled motion, and the frame where these start.
TARGET = {
    "hierarchical_iaf": ("reverse.", "context_encoder.", "encoder."),
    "hamiltonian": ("reverse.", "context_encoder.", "log_step_sizes", "encoder."),
    "path_integral": ("log_scales", "encoder."),
    "diffusion": ("encoder.",),
}


@every([case for case in cases("mixture") if case.coordinates == "prior+encoder" and not case.by_class])
def test_the_frozen_log_ratio_has_the_gradient_of_the_path_alone(case):
    model, x = small.make_model("mixture").double(), data(3, F64)
    options = {"learn_schedule": False} if case.family == "diffusion" else {}
    posterior = case.make(model, **options).double()
    path = posterior.unwhitened_path(posterior.encode(x), 2, Draws(0)).detach().requires_grad_()
    posterior.frozen_log_ratio(x, path).sum().backward()
    reached = [name for name, part in posterior.named_parameters() if part.grad is not None and part.grad.any()]
    assert all(name.startswith(TARGET.get(case.family, ())) for name in reached)
    # With constant parameters it is the gradient of `forward`, by finite differences.
    for place in ((0, 0, 0, 0), (-1, 1, 2, 1)):
        step = torch.zeros_like(path).index_put_(tuple(torch.tensor(index) for index in place), torch.tensor(1e-6, dtype=F64))
        with torch.no_grad():
            difference = (posterior(x, path + step) - posterior(x, path - step)).sum() / 2e-6
        assert path.grad[place].item() == pytest.approx(difference.item(), rel=1e-4, abs=1e-5)


def bound(case: Case, model: LatentVariableModel, posterior: Posterior, x: Tensor) -> Tensor:
    """Minus the ELBO of two samples, whose gradient reaches q(c | x) too."""
    objective = ELBO(model, posterior, KLSchedule("constant"), num_samples=2)
    return objective.terms(x, Progress(0, 1), Draws(3)).total()


@pytest.mark.parametrize("family", ["hierarchical_iaf", "hamiltonian", "path_integral", "diffusion"])
def test_a_doubly_reparametrised_gradient_in_the_frame_keeps_what_belongs_to_the_target(family):
    model, x, _ = setting("gaussian")
    options = {"learn_schedule": False} if family == "diffusion" else {}
    posterior, same = small.make(family, model, "prior+encoder", **options), x[:1].expand(400, -1)
    parts = dict(posterior.encoder.named_parameters())
    differences = []
    for batch in range(20):
        gradients = []
        for doubly in (False, True):
            (update,) = IWAE(model, posterior, 3, doubly, KLSchedule("constant")).updates(same, Progress(0, 1), Draws(2, 400 * batch))
            gradients.append(torch.cat([one.flatten() for one in torch.autograd.grad(update.terms().total(), list(parts.values()))]))
        differences.append(gradients[1] - gradients[0])
    # Both are unbiased for one gradient, entry by entry.
    found = torch.stack(differences).double()
    assert (found.mean(0).abs() < 4.5 * found.std(0) / 20**0.5 + 1e-6).all()


# The class that a coordinate of the noise carries would make the bound discontinuous; the swiss roll is smooth.
SMOOTH = [case if case.by_class else case._replace(prior="swiss_roll_noisy") for case in PLACED]


@every(SMOOTH)
def test_gradients_reach_every_parameter_and_are_right(case):
    model, x = small.make_model(case.prior).double(), data(12, F64)
    posterior = case.make(model).double()
    objective = ELBO(model, posterior, KLSchedule("constant"), num_samples=2)
    objective.terms(x, Progress(0, 1), Draws(3)).total().backward()
    parts = {name: part for name, part in posterior.named_parameters() if part.requires_grad}
    dead = [name for name, part in parts.items() if part.grad is None or not part.grad.isfinite().all() or not part.grad.any()]
    assert dead == []

    def loss() -> float:
        return -float(posterior.log_weights(model, x, 2, Draws(3)).detach().mean())

    tables = [name for name in parts if name.endswith(("learned_schedule.raw", "log_scales", "log_variance_factors"))]
    for name in {*tables, *list(parts)[::4]}:
        if name.startswith("classifier."):  # it learns from the draws of the class, see below
            continue
        part = parts[name].data.view(-1)
        place = int(parts[name].grad.abs().argmax())
        size, tolerance = (0.02, 1e-2) if name in tables else (1e-5, 1e-3)  # tables of the chain are float32
        here = part[place].item()
        values = [loss() for part[place] in (here + size, here - size)]
        part[place] = here
        assert parts[name].grad.view(-1)[place].item() == pytest.approx((values[0] - values[1]) / (2 * size), rel=tolerance, abs=1e-6), name


class Logits(nn.Module):
    """The same logits for every row, each row with its own gradient."""

    def __init__(self, logits: Tensor, rows: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.expand(rows, -1).clone())

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.logits


LOGITS, ROWS = torch.tensor([1.5, -1.0, 0.2]), 4000


def score_gradients(posterior: ClassConditional, model: LatentVariableModel, x: Tensor) -> Tensor:
    """Gradients [N, C] of the ELBO for the logits of q(c | x), of data `x` [N, P]."""
    posterior.classifier = Logits(LOGITS, len(x))
    objective = ELBO(model, posterior, KLSchedule("constant"), num_samples=3)
    objective.terms(x, Progress(0, 1), Draws(1)).values["reconstruction"].sum().backward()
    return -posterior.classifier.logits.grad.double()


def agree(gradients: Tensor, of_class: Tensor) -> None:
    """Compare with the gradient of `sum_c q(c) (of_class_c - log q(c))`, where `of_class` is the expected log-weight given the class."""
    logits = LOGITS.double().requires_grad_()
    log_probs = torch.log_softmax(logits, 0)
    (log_probs.exp() * (of_class.double() - log_probs)).sum().backward()
    error = gradients.std(0) / len(gradients) ** 0.5
    assert ((gradients.mean(0) - logits.grad).abs() < 4 * error + 1e-3).all()
    assert float(logits.grad.abs().max()) > 10 * float(error.max())  # the comparison says something


def test_the_score_term_is_unbiased_for_the_gradient_of_the_classifier():
    x = class_models.observations(1).expand(ROWS, -1)
    # With the exact q(z | x, c) every log-weight given the class is log p(x, c).
    agree(score_gradients(class_models.exact_posterior(), class_models.make_model(), x), class_models.log_joint(x[:1])[:, 0])


@pytest.mark.parametrize("family", ["gaussian", "class_diffusion"])
def test_the_score_term_is_unbiased_in_the_priors_coordinates(family):
    model, x, _ = setting("mixture")
    posterior, same = small.make(family, model, "prior+encoder", by_class=True), x[:1].expand(ROWS, -1)
    with torch.no_grad():
        sample = posterior.sample_classes(same, 20, Draws(8))
        of_class = (model.log_likelihood(same, sample.z) + sample.log_prior_ratio).flatten(1).mean(1) - math.log(3)
    agree(score_gradients(posterior, model, same), of_class)


@every([case._replace(family=family) for family in ("gaussian", "adversarial") for case in PLACED[:1]] + PLACED)
def test_saved_loaded_or_copied_it_is_the_same(case):
    model, x = small.make_model(case.prior), data(5)
    posterior = case.make(model)
    parts = [part for name, part in posterior.named_parameters() if not name.startswith("model.")]  # a model is saved in its own place
    with torch.no_grad():
        for part in parts:
            part.add_(0.05)
    expected = posterior.sample(x, 3, Draws(5))
    twin, fresh = copy.deepcopy(posterior), case.make(other := small.make_model(case.prior))
    missing, unexpected = fresh.load_state_dict(posterior.state_dict())
    assert not missing and not unexpected and twin.prior is not posterior.prior
    if case.by_class:
        assert twin.family.prior is twin.prior
    with torch.no_grad():
        for part in parts:
            part.sub_(0.05)
    for same in (fresh, twin):
        for found, part in zip(same.sample(x, 3, Draws(5)), expected, strict=True):
            assert (found is None and part is None) or torch.equal(found, part)
    assert not torch.equal(posterior.sample(x, 3, Draws(5)).z, expected.z)
    assert fresh.prior is other.prior


@every(PLACED)
@torch.no_grad()
def test_rows_have_their_samples_in_any_batch(case):
    model, x, draws = setting(case.prior).model, data(9), Draws(7, 30)
    posterior = case.make(model)
    whole = posterior.sample(x, 3, draws)
    parts = [posterior.sample(x[:4], 3, draws), posterior.sample(x[4:], 3, draws.advance(4))]
    for number in range(3):
        joined = torch.cat([part[number] for part in parts], 1)
        torch.testing.assert_close(joined, whole[number], rtol=1e-4, atol=1e-4)
