"""Informed steps: the last steps of a chain see the gradient of the model (docs/method.md, section 7)."""

from __future__ import annotations

import copy
import functools
import io
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, MultivariateNormal, Normal

from ddvi_fast import export, likelihoods, ops, priors, rng, testing
from ddvi_fast._checks import InputError
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.engine.engine import Engine
from ddvi_fast.evidence import log_evidence_quadrature
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.native import loader
from ddvi_fast.networks import MLP
from ddvi_fast.objectives import ELBO, IWAE, Progress
from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.objectives.pairs import PairFit, Sleep
from ddvi_fast.posteriors import Diffusion, Gaussian
from ddvi_fast.posteriors.class_conditional import class_major, of_class
from ddvi_fast.posteriors.informed import MAX_NORM, Target
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.reference.chain import denoise, time_rows
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import make
from tests import linear_gaussian
from tests.posteriors import coordinates as small

F64 = torch.float64
STEPS = small.STEPS
FRAMES = pytest.mark.parametrize("coordinates", ["encoder", "prior+encoder"])
KINDS = pytest.mark.parametrize("kind", ["joint", "shared chain", "chain for each class"])


def data(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return rng.normal(Draws(9), (rows, small.DATA_DIM), 0, dtype=dtype)


def informed(model: LatentVariableModel, coordinates: str = "encoder", steps: int = 2, kind: str = "joint", **options):
    """An untrained posterior with random networks and gains."""
    name = "class_diffusion" if kind == "chain for each class" else "diffusion"
    return small.make(name, model, coordinates, kind != "joint", informed_steps=steps, **options)


def without_output(posterior: Diffusion) -> Diffusion:
    with torch.no_grad():
        for part in (posterior.denoiser.last, posterior.denoiser.last_bias, posterior.log_variance_factors, posterior.direction_gains):
            part.zero_()
    return posterior


def by_hand(posterior: Diffusion, encoded, x: Tensor, v: Tensor, step: int) -> Tensor:
    """The direction of a model with a standard normal prior, a linear decoder and the likelihood's scale, in closed form."""
    model = posterior._target.model
    weight, bias = (part.double() for part in (model.decoder.layers[0].weight, model.decoder.layers[0].bias))
    scale = model.likelihood.log_scale.double().exp()
    mean, deviation = encoded.mean.detach().double(), torch.exp(0.5 * encoded.log_var.detach().double())
    signal = torch.sqrt(torch.prod(1 - posterior.schedule.betas.detach().double()[: step + 1]))
    u = mean + deviation * signal * v.detach().double()
    direction = deviation * ((x.double() - u @ weight.mT - bias) @ weight / scale**2 - u + (u - mean) / deviation**2)
    norm, largest = direction.norm(dim=-1, keepdim=True), MAX_NORM * 2**0.5
    return torch.where(norm > largest, direction * largest / norm, direction)


def gain(posterior: Diffusion, step: int) -> Tensor:
    """The factor of the direction in the mean of a step."""
    betas = posterior.schedule.betas.detach()
    return posterior.direction_gains[step].double() * torch.sqrt(torch.prod(1 - betas[:step])) * betas[step]


def written_out(posterior: Diffusion, encoded, x: Tensor, path: Tensor) -> Tensor:
    """The log-ratio of a path under the informed chain, from densities of torch.distributions."""
    table, rows = posterior.coefficients().double(), path.shape[1:-1]
    ratio = -Independent(Normal(torch.zeros(2, dtype=F64), 1.0), 1).log_prob(path[0])
    for step in reversed(range(STEPS)):
        v, following = path[STEPS - 1 - step], path[STEPS - step]
        direction = by_hand(posterior, encoded, x, v, step) if step < posterior.informed_steps else torch.zeros_like(v)
        context = torch.cat((encoded.context.expand(*rows, -1), direction), -1)
        a, b, deviation, scale, beta = table[step]
        mean = a * v + b * posterior.denoiser(v, context, torch.full(rows, step)) + gain(posterior, step) * direction
        ratio = ratio + Independent(Normal(scale * following, beta.sqrt()), 1).log_prob(v)
        ratio = ratio - Independent(Normal(mean, deviation), 1).log_prob(following)
    return ratio


@FRAMES
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("steps", [1, STEPS])
def test_without_output_and_gains_the_path_telescopes_to_the_gaussian(coordinates, dtype, steps):
    model, x = small.make_model("gaussian").to(dtype), data(5, dtype)
    posterior = without_output(informed(model, coordinates, steps).to(dtype))
    encoded = posterior.encode(x)
    v, log_ratio = posterior.draw(encoded, 6, Draws(2))
    standard = Independent(Normal(torch.zeros(2, dtype=dtype), 1.0), 1).log_prob(v)
    assert bool(((log_ratio + standard).abs() < 2e-5).all())
    gaussian = Gaussian(posterior.encoder, 2, "prior" if posterior.pushes else "latent", model.prior if posterior.pushes else None)
    u = posterior.unwhitened(encoded, v)
    expected = -Independent(Normal(encoded.mean, torch.exp(0.5 * encoded.log_var)), 1).log_prob(u)
    torch.testing.assert_close(log_ratio + posterior.log_scale(encoded), expected, rtol=0, atol=3e-5)
    torch.testing.assert_close(gaussian.log_ratio(gaussian.encode(x), u[None]), expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("steps", [1, 3, STEPS])
@pytest.mark.parametrize("spread", [0.3, 30.0], ids=["within the bound", "clipped"])
def test_log_ratio_against_densities_and_a_direction_written_out(steps, spread):
    model, x = small.make_model("gaussian").double(), spread * data(4, F64)
    posterior = informed(model, steps=steps).double()
    encoded = posterior.encode(x)
    encoded = encoded._replace(log_var=encoded.log_var + 2 * math.log(0.3))
    path = posterior.latent_path(encoded, 3, Draws(2))
    expected = written_out(posterior, encoded, x, path)
    torch.testing.assert_close(posterior.log_ratio(encoded, path), expected)
    v, along = posterior.draw(encoded, 3, Draws(2))
    assert torch.equal(v, path[-1])
    torch.testing.assert_close(along, expected)
    norms = torch.stack([by_hand(posterior, encoded, x, path[STEPS - 1 - step], step).norm(dim=-1) for step in range(steps)])
    assert bool((norms > 0.999 * MAX_NORM * 2**0.5).any()) == (spread > 1)


@pytest.mark.parametrize("doubly", [False, True], ids=["plain", "doubly reparametrized"])
def test_gradients_are_those_of_a_reference_that_stops_the_direction(doubly):
    model, x = small.make_model("gaussian").double(), data(5, F64)
    posterior = informed(model, learn_schedule=not doubly).double()
    objective = IWAE(model, posterior, 3, doubly, KLSchedule("constant"), linear_gaussian.EXACT_PRIOR)
    objective.terms(x, Progress(0, 1), Draws(3)).total().backward()
    found = {name: part.grad for name, part in posterior.named_parameters() if part.grad is not None}
    posterior.zero_grad()

    encoded, table = posterior.encode(x), posterior.coefficients().double()
    states = [rng.normal(Draws(3), (3, 5, 2), rng.START, dtype=F64)]
    for step in reversed(range(STEPS)):
        # The informed steps take the streams behind those of the chain before them.
        place = step - 2 if step >= 2 else STEPS - 2 + step
        noise, v = rng.normal(Draws(3), (3, 5, 2), rng.CHAIN + place, dtype=F64), states[-1]
        direction = by_hand(posterior, encoded, x, v, step) if step < 2 else torch.zeros_like(v)
        context = torch.cat((encoded.context.expand(3, 5, -1), direction), -1)
        mean = table[step, 0] * v + table[step, 1] * posterior.denoiser(v, context, torch.full((3, 5), step))
        states.append(mean + gain(posterior, step) * direction + table[step, 2] * noise)
    scale = torch.exp(0.5 * encoded.log_var)
    z = encoded.mean + scale * states[-1]
    if not doubly:
        ratio = written_out(posterior, encoded, x, torch.stack(states)) + 0.5 * encoded.log_var.sum(-1)
        loss = -ops.log_mean_exp(model.log_joint(x, z) + ratio, 0).mean()
    else:
        loss = -_doubly_reparametrized(posterior, model, x, torch.stack([*states[:-1], z]))
    loss.backward()
    assert len(found) >= 10
    for name, part in posterior.named_parameters():
        torch.testing.assert_close(found.get(name), part.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def _doubly_reparametrized(posterior: Diffusion, model: LatentVariableModel, x: Tensor, path: Tensor) -> Tensor:
    """The surrogate whose gradient is that of Tucker et al. (2019): squared weights along the path, densities with constant parameters."""
    frozen = copy.deepcopy(posterior).requires_grad_(False)
    leaf = path.detach().requires_grad_()
    encoded = frozen.encode(x)
    live = posterior.encode(x)
    scale = torch.exp(0.5 * encoded.log_var)
    inner = torch.cat((leaf[:-1], ((leaf[-1] - encoded.mean) / scale).unsqueeze(0)))
    weights = model.log_joint(x, leaf[-1]) + written_out(frozen, encoded, x, inner) + 0.5 * encoded.log_var.sum(-1)
    shares = torch.softmax(weights.detach(), 0)
    (gradient,) = torch.autograd.grad((shares * weights).sum(), leaf)
    # The noising from the encoder's frame belongs to the target: its gradient for the encoder has the weights once.
    v = (path[-1].detach() - live.mean) / torch.exp(0.5 * live.log_var)
    beta = posterior.schedule.betas[0]
    noising = -0.5 * (path[-2].detach() - (1 - beta).sqrt() * v).square().sum(-1) / beta
    return (((shares.unsqueeze(-1) * gradient).detach() * path).sum() + (shares * noising).sum()) / len(x)


@FRAMES
def test_the_sleep_terms_regress_the_output_with_the_direction(coordinates):
    model, x = small.make_model("gaussian").double(), data(8, F64)
    posterior, t = informed(model, coordinates, 2).double(), torch.arange(8) % STEPS
    encoded, v = posterior.encode(x), rng.normal(Draws(4), (8, 2), 0, dtype=F64)
    noise, schedule = rng.normal(Draws(1), (8, 2), rng.NOISE, dtype=F64), posterior.schedule
    signal = schedule.alpha_bars[t].unsqueeze(1)
    y = signal.sqrt() * v + (1 - signal).sqrt() * noise
    direction = torch.stack([by_hand(posterior, encoded, x, y, step)[row] if step < 2 else torch.zeros(2) for row, step in enumerate(t.tolist())])
    gains = torch.stack([gain(posterior, step) for step in t.tolist()]).unsqueeze(1)
    output = posterior.denoiser(y, torch.cat((encoded.context, direction), 1), t) + gains * direction
    weight_v, weight_y = (column[t].unsqueeze(1) for column in schedule.posterior_mean_weights())
    error = output - (weight_v * v + weight_y * y - (1 - schedule.betas[t]).sqrt().unsqueeze(1) * y)
    found = posterior.denoising_loss(encoded.context, v, t, Draws(1), encoded=encoded)
    torch.testing.assert_close(found, error.square().mean(1), rtol=1e-4, atol=1e-6)
    variance = posterior.coefficients()[:, 2].double().square()[t].unsqueeze(1)
    left = schedule.posterior_variances[t].unsqueeze(1)
    divergence = STEPS * (0.5 * (error.square() + left) / variance + 0.5 * torch.log(2 * math.pi * variance)).sum(1)
    found = posterior.step_divergence(encoded.context, v, t, Draws(1), encoded)
    torch.testing.assert_close(found, divergence, rtol=1e-4, atol=1e-5)
    gains = [torch.autograd.grad(value.sum(), posterior.direction_gains, retain_graph=True)[0] for value in (found, divergence)]
    torch.testing.assert_close(*gains, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"^encoded: expected the output of encode[^\n]*informed steps[^\n]*$"):
        posterior.step_divergence(encoded.context, v, t, Draws(1))


@functools.cache
def setting(prior: str) -> tuple[LatentVariableModel, Tensor, Tensor]:
    model = small.make_model(prior)
    x = model.simulate(4, Draws(5)).x
    return model, x, log_evidence_quadrature(model, x, resolution=100).double()


@KINDS
@FRAMES
@torch.no_grad()
def test_bounds_stay_below_the_evidence_and_weights_average_to_it(kind, coordinates):
    model, x, evidence = setting("mixture")
    weights = informed(model, coordinates, kind=kind).log_weights(model, x, 2500, Draws(3)).double()
    for bounds in (weights, ops.log_mean_exp(weights.unflatten(0, (-1, 50)), 1)):
        assert ((bounds.mean(0) - evidence) < 4 * bounds.std(0) / len(bounds) ** 0.5).all()
    share = torch.exp(weights - evidence)
    error = share.std(0) / len(share) ** 0.5
    assert ((share.mean(0) - 1).abs() < 4 * error).all() and bool((error < 0.3).all())


@KINDS
@FRAMES
@torch.no_grad()
def test_rows_have_their_samples_in_any_batch(kind, coordinates):
    model, x, draws = small.make_model("mixture"), data(9), Draws(7, 30)
    posterior = informed(model, coordinates, kind=kind)
    whole = posterior.sample(x, 3, draws)
    parts = [posterior.sample(x[:4], 3, draws), posterior.sample(x[4:], 3, draws.advance(4))]
    for number in range(3):
        if whole[number] is not None:
            torch.testing.assert_close(torch.cat([part[number] for part in parts], 1), whole[number], rtol=1e-4, atol=1e-4)


@FRAMES
@pytest.mark.parametrize("kind", ["shared chain", "chain for each class"])
@torch.no_grad()
def test_a_row_goes_through_its_class_with_the_label_of_its_class(kind, coordinates):
    """All classes in one call give each class what rows of that class alone get, up to the noise that the class's place has."""
    model, x = small.make_model("mixture").double(), data(4, F64)
    posterior = informed(model, coordinates, STEPS, kind).double()
    family = posterior.family
    with torch.no_grad():  # without noise: the draws of the two calls differ
        family.log_variance_factors.fill_(-80.0)
    encoded = posterior.encode(x).family
    noise = torch.zeros(STEPS, 1, 4, 2, dtype=F64)
    for label in range(3):
        labels = torch.full((1, 4), label)
        chosen = of_class(encoded, labels)
        groups = {} if kind == "shared chain" else {"groups": labels}
        alone = family.run(chosen, torch.zeros(1, 4, 2, dtype=F64), noise=noise, **groups).z
        u = family.unwhitened(chosen, torch.full((1, 4, 2), 0.3, dtype=F64)).requires_grad_()
        with torch.enable_grad():
            if family.pushes:
                density = model.log_likelihood(x, model.prior.push(u, labels)) - 0.5 * u.square().sum(-1)
            else:
                density = model.log_joint(x, u) if labels is None else model.log_likelihood(x, u) + model.prior.log_prob(u, labels)
            (gradient,) = torch.autograd.grad(density.sum(), u)
        expected = torch.exp(0.5 * chosen.log_var) * gradient + 0.3
        expected = expected * (MAX_NORM * 2**0.5 / expected.norm(dim=-1, keepdim=True)).clamp(max=1)
        torch.testing.assert_close(family.direction(chosen, torch.full((1, 4, 2), 0.3, dtype=F64), torch.tensor(1.0, dtype=F64)), expected)
        if kind == "chain for each class":
            every = family.run(_with_sample_axis(encoded), torch.zeros(3, 1, 4, 2, dtype=F64), noise=torch.zeros(STEPS, 3, 1, 4, 2, dtype=F64)).z
        else:
            every = family.run(encoded, torch.zeros(1, 3, 4, 2, dtype=F64), noise=torch.zeros(STEPS, 1, 3, 4, 2, dtype=F64)).z.transpose(0, 1)
        torch.testing.assert_close(every[label, 0], alone[0])


def _with_sample_axis(encoded):
    parts = {name: getattr(encoded, name).unsqueeze(1) for name in ("mean", "log_var", "context", "labels")}
    return encoded._replace(**parts)


@pytest.mark.parametrize("kind", ["joint", "shared chain"])
def test_the_objective_with_all_terms_trains_every_part(kind):
    model = small.make_model("mixture")
    model.decoder.requires_grad_(True)
    posterior = informed(model, "prior+encoder", kind=kind)
    fit = PairFit(model, posterior, Sleep(timesteps=3))
    x = data(6)
    bound = ELBO(model, posterior, KLSchedule("constant"), num_samples=2).terms(x, Progress(0, 1), Draws(3)).total()
    (bound + fit.terms(x, Draws(3)).total()).backward()
    dead = [name for name, part in posterior.named_parameters() if part.requires_grad and (part.grad is None or not part.grad.any())]
    assert dead == []
    gains = (posterior if kind == "joint" else posterior.family).direction_gains.grad
    assert bool((gains[:2] != 0).all()) and bool((gains[2:] == 0).all())


def test_no_gradient_reaches_the_model_through_the_directions():
    model, x = small.make_model("gaussian"), data(5)
    model.decoder.requires_grad_(True)
    posterior = informed(model)
    posterior.sample(x, 2, Draws(1)).log_ratio.sum().backward()
    assert all(part.grad is None for part in model.parameters())
    assert not any(name.startswith("_target") or "decoder" in name for name in (*posterior.state_dict(), *dict(posterior.named_modules())))


class Dropping(nn.Module):
    """A decoder whose training mode is not that of evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = MLP(2, [], small.DATA_DIM)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z) + (1e3 if self.training else 0.0)


def test_the_model_is_in_evaluation_mode_for_the_directions_and_stays_in_its_own():
    model = LatentVariableModel(priors.make("gaussian", dim=2), Dropping(), likelihoods.make("gaussian"))
    posterior, x = informed(model), data(5)
    model.train()
    model.likelihood.eval()
    found = posterior.sample(x, 2, Draws(1))
    assert model.training and model.decoder.training and not model.likelihood.training
    model.eval()
    assert torch.equal(found.z, posterior.sample(x, 2, Draws(1)).z)


ASKED: list[tuple[bool, ...]] = []


class Product(torch.autograd.Function):
    """A product that keeps in `ASKED` which gradients were asked for."""

    @staticmethod
    def forward(ctx, z: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(z, weight)
        return z @ weight

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        ASKED.append(ctx.needs_input_grad)
        return upstream @ ctx.saved_tensors[1].mT, None


class Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(small.WEIGHT).T.contiguous())

    def forward(self, z: Tensor) -> Tensor:
        return Product.apply(z, self.weight)


def test_the_directions_ask_for_no_gradient_of_the_models_parameters():
    model = LatentVariableModel(priors.make("gaussian", dim=2), Asking(), likelihoods.make("gaussian"))
    ASKED.clear()
    informed(model, steps=2).sample(data(5), 2, Draws(1))
    assert ASKED == [(True, False)] * 2
    assert all(part.requires_grad == (part is model.decoder.weight) for part in model.parameters())


@pytest.mark.parametrize("state", [torch.no_grad, torch.inference_mode])
def test_samples_are_the_same_in_any_grad_mode(state):
    model, x = small.make_model("gaussian"), data(5)
    posterior = informed(model)
    expected = posterior.log_weights(model, x, 2, Draws(1))
    with state():
        found = posterior.log_weights(model, x.clone(), 2, Draws(1))
    assert torch.equal(found, expected) and not found.requires_grad


def test_single_and_double_precision_agree():
    model, x = small.make_model("gaussian"), data(5)
    posterior = informed(model)
    wide_model = copy.deepcopy(model).double()
    wide = copy.deepcopy(posterior).double().inform(wide_model)
    found, expected = posterior.log_weights(model, x, 4, Draws(1)), wide.log_weights(wide_model, x.double(), 4, Draws(1))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["joint", "shared chain"])
def test_saved_loaded_copied_or_pickled_it_is_the_same(kind):
    model, x = small.make_model("mixture"), data(5)
    posterior = informed(model, "prior+encoder", kind=kind)
    with torch.no_grad():
        for part in posterior.parameters():
            part.add_(0.05)
    expected = posterior.sample(x, 3, Draws(5)).z
    fresh = informed(model, "prior+encoder", kind=kind)
    missing, unexpected = fresh.load_state_dict(posterior.state_dict())
    assert not missing and not unexpected
    twin_model, twin = copy.deepcopy((model, posterior))
    stored = io.BytesIO()
    torch.save(posterior, stored)
    stored.seek(0)
    for same in (fresh, twin, copy.deepcopy(posterior), torch.load(stored, weights_only=False)):
        assert torch.equal(same.sample(x, 3, Draws(5)).z, expected)
    assert (twin if kind == "joint" else twin.family)._target.model is twin_model


def test_fewer_active_steps_keep_the_last_ones_informed():
    model, x = small.make_model("gaussian"), data(5)
    posterior = informed(model, steps=3)
    for number in (2, 3):
        posterior.use_steps(number)
        encoded = posterior.encode(x)
        path = posterior.latent_path(encoded, 2, Draws(1))
        assert path.shape == (number + 1, 2, 5, 2)
        torch.testing.assert_close(posterior.log_ratio(encoded, path), posterior.draw(encoded, 2, Draws(1))[1], rtol=1e-4, atol=1e-4)


def test_a_density_of_ones_own_is_that_of_the_model():
    class Own:
        def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
            return model.log_joint(x, z)

    model, x = small.make_model("gaussian"), data(5)
    posterior = informed(model)
    expected = posterior.sample(x, 2, Draws(1)).z
    torch.testing.assert_close(posterior.inform(Own()).sample(x, 2, Draws(1)).z, expected, rtol=1e-4, atol=1e-5)


@FRAMES
@KINDS
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "binomial"])
def test_directions_by_the_kernel_are_those_of_autograd(coordinates, kind, likelihood, monkeypatch):
    prior = small.make_model("mixture").prior
    model = LatentVariableModel(prior, MLP(2, [17], small.DATA_DIM, activation="tanh"), likelihoods.make(likelihood))
    posterior, x = informed(model, coordinates, STEPS, kind), model.simulate(7, Draws(1)).x
    target = posterior._target if kind == "joint" else posterior.family._target
    labels = None if kind == "joint" else torch.arange(3).unsqueeze(1)
    u = rng.normal(Draws(4), (3, 7, prior.joint_noise_dim if kind == "joint" and "prior" in coordinates else 2), 0)
    exact = copy.deepcopy(model).double()
    expected = Target(exact, target.prior and exact.prior).at(x.double(), labels)(u.double())
    if loader.available()[0]:
        monkeypatch.setattr(MLP, "forward", None)  # the kernel takes the decoder's place
    testing.assert_within_budget(target.at(x, labels)(u), expected.float(), expected, floor=1e-5)


DIM, WIDE, NOISE = 20, 30, 1.5


def conjugate() -> tuple[LatentVariableModel, Tensor, Tensor, Tensor]:
    """A linear-Gaussian model in 20 dimensions, its log p(x) [N] of data [N, 30], and the posterior's covariance [20, 20]."""
    decoder = MLP(DIM, [], WIDE, draws=Draws(1))
    model = LatentVariableModel(priors.make("gaussian", dim=DIM), decoder, likelihoods.make("gaussian", scale=NOISE)).requires_grad_(False)
    x = model.simulate(32, Draws(2)).x
    weight, bias = decoder.layers[0].weight.double(), decoder.layers[0].bias.double()
    evidence = MultivariateNormal(bias, weight @ weight.mT + NOISE**2 * torch.eye(WIDE, dtype=F64)).log_prob(x.double())
    return model, x, evidence, torch.linalg.inv(torch.eye(DIM, dtype=F64) + weight.mT @ weight / NOISE**2)


def in_the_best_diagonal_frame(model: LatentVariableModel, covariance: Tensor, num_steps: int = 4, beta: float = 0.3) -> Diffusion:
    """A chain that starts as the best diagonal Gaussian: the exact mean, and the variances of each coordinate given the others."""
    weight, bias = (part.double() for part in (model.decoder.layers[0].weight, model.decoder.layers[0].bias))
    encoder = MLP(WIDE, [], 2 * DIM)
    layer, slope = encoder.layers[0], covariance @ weight.mT / NOISE**2
    with torch.no_grad():
        layer.weight.copy_(torch.cat((slope, torch.zeros_like(slope))))
        layer.bias.copy_(torch.cat((-slope @ bias, -torch.linalg.inv(covariance).diagonal().log())))
    denoiser = ResidualMLP(DIM, DIM, num_steps, 16, zero_output=True, draws=Draws(3))
    schedule = make("constant", num_steps, beta=beta)
    return Diffusion(encoder.requires_grad_(False), denoiser, schedule, coordinates="encoder", informed_steps=num_steps, target=model)


def gap_to(evidence: Tensor, posterior: Diffusion, model: LatentVariableModel, x: Tensor, samples: int) -> tuple[float, float]:
    """Nats by which the bound is below the evidence, and the standard error."""
    with torch.no_grad():
        short = evidence - posterior.log_weights(model, x, samples, Draws(8)).double()
    return float(short.mean()), float(short.std() / short.numel() ** 0.5)


@pytest.mark.parametrize(("num_steps", "beta"), [(4, 0.3), (8, 0.15)])
def test_with_gains_of_one_a_chain_without_output_is_the_posterior_up_to_second_order(num_steps, beta):
    """With the covariance `I + E` in the frame a step loses `alpha_bar_{t-1}^2 beta^2 |E|^2 / 4`, and the start `alpha_bar_T^2 |E|^2 / 4`."""
    model, x, evidence, covariance = conjugate()
    posterior = in_the_best_diagonal_frame(model, covariance, num_steps, beta)
    with torch.no_grad():
        posterior.direction_gains.fill_(1.0)
    precisions = torch.linalg.inv(covariance).diagonal()
    size = float((covariance * torch.sqrt(precisions * precisions.unsqueeze(1)) - torch.eye(DIM, dtype=F64)).square().sum())
    signals = (1 - beta) ** torch.arange(num_steps + 1, dtype=F64)
    expected = size / 4 * (beta**2 * float(signals[:-1].square().sum()) + float(signals[-1] ** 2))
    best_diagonal = float(torch.logdet(covariance) + precisions.log().sum()) / 2
    found, error = gap_to(evidence, posterior, model, x, 1000)
    assert found == pytest.approx(expected, abs=4 * error + 0.3 * expected)
    assert found < 0.4 * best_diagonal


def test_a_conjugate_posterior_in_20_dimensions_is_recovered():
    model, x, evidence, covariance = conjugate()
    posterior = in_the_best_diagonal_frame(model, covariance)
    before, _ = gap_to(evidence, posterior, model, x, 500)
    objective = ELBO(model, posterior, KLSchedule("constant"), num_samples=8, guide=linear_gaussian.EXACT_PRIOR)
    engine = Engine(objective, Optimisation(lr=1e-2, max_norm=None, factors={"direction_gains": 5.0}))
    for step in range(60):
        engine.run(x, Progress(step, 60), Draws(5, len(x) * step))
    after, error = gap_to(evidence, posterior, model, x, 2000)
    assert before > 0.08
    assert -4 * error < after < 0.05
    assert bool(((posterior.direction_gains - 1).abs() < 0.25).all())


def test_gaussian_densities_of_a_known_posterior_are_found_by_importance_weights():
    x = linear_gaussian.observations(6)
    model = linear_gaussian.make_model()
    posterior = informed_linear(model)
    with torch.no_grad():
        ratio = (posterior.log_weights(model, x, 4000, Draws(3)).double() - linear_gaussian.exact_evidence(x)).exp()
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / 4000**0.5).all() and float(ratio.std(0).max()) < 8


def informed_linear(model: LatentVariableModel) -> Diffusion:
    encoder = MLP(3, [], 4, draws=Draws(2))
    with torch.no_grad():
        encoder.layers[0].weight.mul_(0.2)
    denoiser = ResidualMLP(2, 2, 4, 16, zero_output=True, draws=Draws(3))
    posterior = Diffusion(encoder, denoiser, make("constant", 4, beta=0.3), coordinates="encoder", informed_steps=2, target=model)
    with torch.no_grad():
        posterior.direction_gains.fill_(0.05)
    return posterior


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("informed_steps", {"coordinates": "latent"}),
        ("informed_steps", {"coordinates": "prior", "prior": priors.make("gaussian", dim=2)}),
        ("informed_steps", {"informed_steps": 7}),
        ("informed_steps", {"informed_steps": -1}),
        ("informed_steps", {"eta": 0.0, "learn_variances": False, "learn_schedule": False, "parametrisation": "v"}),
        ("denoiser", {"denoiser": ResidualMLP(2, 1, 6, 16)}),
        ("context_encoder", {"denoiser": ResidualMLP(2, 2, 6, 16), "context_encoder": MLP(3, [], 2)}),
        ("target", {"target": torch.zeros(2)}),
        ("target", {"coordinates": "prior+encoder", "prior": priors.make("gaussian", dim=2), "target": small.make_model("gaussian")}),
        ("prior", {"target": small.make_model("circle")}),
    ],
)
def test_refuses_what_informed_steps_cannot_honour(argument, options):
    parts = {"denoiser": ResidualMLP(2, 4, 6, 16), "schedule": make("constant", 6, beta=0.3), "coordinates": "encoder", "informed_steps": 2}
    with pytest.raises(InputError, match=rf"^{argument}: expected[^\n]*$"):
        Diffusion(encoder=MLP(3, [], 4), **parts | options)


def test_says_what_is_missing_or_impossible():
    model, x = small.make_model("gaussian"), data(3)
    encoder, denoiser = MLP(3, [], 4), ResidualMLP(2, 2, 6, 16)
    alone = Diffusion(encoder, denoiser, make("constant", 6, beta=0.3), coordinates="encoder", informed_steps=2)
    with pytest.raises(InputError, match=r"^target: expected the model that the chain sees, got None \(call posterior.inform\(model\)\)$"):
        alone.sample(x)
    blind = small.make("diffusion", model, "encoder")
    with pytest.raises(InputError, match=r"^informed_steps: expected at least 1[^\n]*$"):
        blind.inform(model)
    with pytest.raises(InputError, match=r"^posterior: expected one without informed steps, for export, got 2 informed steps[^\n]*$"):
        export.sampler(informed(model), data(3))
    with pytest.raises(InputError, match=r"^posterior: expected one with a chain, for informed steps, got 'Gaussian'$"):
        small.make("gaussian", small.make_model("mixture"), "encoder", by_class=True).inform(model)


@pytest.mark.slow
@pytest.mark.parametrize("updates", [0, 2])
def test_compiled_it_gives_the_same_bound_and_gradients(validation, updates):
    model, x = small.make_model("gaussian"), data(5)
    posterior = informed(model, frame_updates=updates)

    def loss(x: Tensor) -> Tensor:
        return posterior.log_weights(model, x, 2, Draws(1)).mean()

    loss(x).backward()
    expected = {name: part.grad.clone() for name, part in posterior.named_parameters() if part.grad is not None}
    posterior.zero_grad()
    found = torch.compile(loss, backend="aot_eager")(x)
    found.backward()
    torch.testing.assert_close(found, loss(x), rtol=1e-5, atol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(dict(posterior.named_parameters())[name].grad, gradient, rtol=1e-4, atol=1e-5)


def test_class_major_rows_of_the_regression_have_their_labels():
    model, x = small.make_model("mixture").double(), data(4, F64)
    posterior = informed(model, "prior+encoder", STEPS, "chain for each class").double()
    family, encoded = posterior.family, posterior.encode(x).family
    labels = class_major(3, 4)
    flat = encoded._replace(
        **{name: getattr(encoded, name).flatten(0, 1) for name in ("mean", "log_var", "context")}, x=x.repeat(3, 1), labels=labels
    )
    v, t = rng.normal(Draws(4), (4, 2), 0, dtype=F64).repeat(3, 1), (torch.arange(4) % STEPS).repeat(3)
    whole = family.denoising_loss(flat.context, v, t, Draws(1), encoded=flat).view(3, 4)
    for label in range(3):
        rows = slice(4 * label, 4 * label + 4)
        part = flat._replace(**{name: getattr(flat, name)[rows] for name in ("mean", "log_var", "context", "x", "labels")})
        noise, signal = rng.normal(Draws(1), (12, 2), rng.NOISE, dtype=F64)[rows], family.schedule.alpha_bars[t[rows]].unsqueeze(1)
        y = signal.sqrt() * v[rows] + (1 - signal).sqrt() * noise
        direction = family.direction(part, y, signal.sqrt())
        network = copy.deepcopy(family.denoiser)
        weights = network.chain_weights()
        one = type(weights)(*(weight[label] for weight in weights))
        output = denoise(y, torch.cat((part.context, direction), 1), one, time_rows(one.time_table, t[rows]), network.residual)
        output = output + torch.stack([gain(family, step) for step in t[rows].tolist()]).unsqueeze(1) * direction
        c0, c1 = (column[t[rows]].unsqueeze(1) for column in family.schedule.target_weights("increment"))
        torch.testing.assert_close(whole[label], (output - c0 * v[rows] - c1 * noise).square().mean(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 2])
def test_the_command_line_gives_the_steps_the_model_of_the_experiment(built, steps):
    made = built(f"method.chain.informed_steps={steps}", "dataset.encoder.hidden=[8]", "dataset.decoder.hidden=[8]", "method.chain.hidden_dim=16")
    family = made.posterior.family
    assert family.denoiser.context_dim == 32 + steps * (family.latent_dim // 2)
    assert ("family.direction_gains" in made.posterior.state_dict()) == (steps > 0)
    assert (family._target is not None) == (steps > 0)
    if steps:
        assert family._target.model is made.model
        objective = made.phases[0].objective
        assert len(set(map(id, objective.parameters()))) == len(list(objective.parameters()))
        assert len(list(objective.parameters())) == len([*made.model.parameters(), *made.posterior.parameters()])
