"""Frames that are updated with the gradient of the model (docs/method.md, section 7)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from ddvi_fast import InputError, likelihoods, networks, ops, priors, rng, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.evidence import log_evidence_quadrature
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.posteriors import Diffusion, frames
from ddvi_fast.posteriors.frames import NARROWER, Frame, updated
from ddvi_fast.posteriors.informed import MAX_NORM
from ddvi_fast.rng import Draws
from tests.posteriors import coordinates as small

F64 = torch.float64
COORDINATES = pytest.mark.parametrize("coordinates", ["encoder", "prior+encoder"])


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def some_frame(rows: int, dim: int) -> Frame:
    factor = 0.3 * normals(rows, dim, dim, seed=1).tril(-1) + torch.diag_embed(torch.exp(0.3 * normals(rows, dim, seed=2)))
    return Frame(normals(rows, dim, seed=3), factor)


def test_the_map_of_a_frame_against_its_jacobian() -> None:
    frame, v = some_frame(3, 4), normals(5, 3, 4, seed=4)
    for row, sample in itertools.product(range(3), range(5)):
        one = Frame(frame.mean[row : row + 1], frame.factor[row : row + 1])
        jacobian = torch.autograd.functional.jacobian(lambda value, one=one: one.place(value[None])[0], v[sample, row])
        torch.testing.assert_close(one.log_det()[0], jacobian.slogdet().logabsdet)
        force = normals(4, seed=5)
        torch.testing.assert_close(one.pull_back(force[None])[0], jacobian.mT @ force)
    for states in (v, v[0], v.unsqueeze(0)):
        torch.testing.assert_close(frame.undo(frame.place(states)), states)


@pytest.mark.parametrize("dim", [1, 20])
def test_one_update_finds_a_gaussian(dim: int) -> None:
    """From any frame whose precision is within the bounds."""
    mean, scale = normals(6, dim), torch.exp(0.3 * normals(6, dim, seed=1))
    turn = torch.linalg.qr(normals(6, dim, dim, seed=2)).Q
    within = turn @ (torch.linspace(0.3, 3.5, dim, dtype=F64).unsqueeze(1) * turn.mT) if dim > 1 else torch.full((6, 1, 1), 3.5, dtype=F64)
    precision, centre = within / scale.unsqueeze(1) / scale.unsqueeze(2), mean + 0.2 * scale * normals(6, dim, seed=3)
    frame = updated(mean, scale, lambda rows: lambda u: -torch.einsum("nij,knj->kni", precision[rows], u - centre[rows]), 1)
    torch.testing.assert_close(frame.mean, centre)
    torch.testing.assert_close(frame.factor @ frame.factor.mT, precision.inverse())
    assert torch.equal(frame.factor, frame.factor.tril()) and bool((frame.factor.diagonal(dim1=1, dim2=2) > 0).all())


def test_an_update_is_the_fixed_point_step_with_exact_expectations_for_a_cubic_density() -> None:
    """With log p = - z A z / 2 + b z + T(z, z, z), under N(m, S): E[grad] = - A m + b + 3 T:(m m + S), E[hessian] = - A + 6 T m."""
    third = 0.02 * normals(3, 3, 3)
    third = sum(third.permute(order) for order in itertools.permutations(range(3))) / 6
    linear, square = normals(3, seed=1), torch.eye(3, dtype=F64) + 0.1 * torch.ones(3, 3, dtype=F64)
    mean, scale = 0.3 * normals(1, 3, seed=2), torch.exp(0.2 * normals(1, 3, seed=3))

    def log_density(z: Tensor) -> Tensor:
        cubic = torch.einsum("ijk,...i,...j,...k->...", third, z, z, z)
        return -0.5 * torch.einsum("ij,...i,...j->...", square, z, z) + z @ linear + cubic

    def gradient(z: Tensor) -> Tensor:
        z = z.detach().requires_grad_()
        return torch.autograd.grad(log_density(z).sum(), z)[0]

    with torch.enable_grad():
        frame = updated(mean, scale, lambda rows: torch.enable_grad()(gradient), 1)
    moment = mean[0].outer(mean[0]) + torch.diag(scale[0] ** 2)
    force = -square @ mean[0] + linear + 3 * torch.einsum("ijk,jk->i", third, moment)
    precision = square - 6 * torch.einsum("ijk,k->ij", third, mean[0])
    torch.testing.assert_close(frame.factor[0] @ frame.factor[0].mT, precision.inverse())
    torch.testing.assert_close(frame.mean[0], mean[0] + torch.linalg.solve(precision, force))


def test_updates_end_near_the_best_gaussian() -> None:
    """A logistic regression in two dimensions: the bound by Gauss-Hermite quadrature, against the one that an optimizer finds."""
    points = 3 * normals(30, 2)
    labels = (normals(30, seed=1) < points[:, 0]).to(F64)
    nodes, weights = np.polynomial.hermite_e.hermegauss(30)
    grid = torch.cartesian_prod(torch.tensor(nodes), torch.tensor(nodes))
    share = torch.tensor(weights).outer(torch.tensor(weights)).flatten() / (2 * math.pi)

    def log_density(z: Tensor) -> Tensor:
        logits = z @ points.T
        return (labels * logits - torch.nn.functional.softplus(logits)).sum(-1) - 0.5 * z.square().sum(-1)

    def bound(mean: Tensor, factor: Tensor) -> Tensor:
        return share @ log_density(mean + grid @ factor.T) + factor.diagonal().abs().log().sum()

    def gradient(z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(log_density(z).sum(), z)[0]

    best = [torch.zeros(2, dtype=F64, requires_grad=True), (0.5 * torch.eye(2, dtype=F64)).requires_grad_()]
    optimizer = torch.optim.LBFGS(best, max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -bound(best[0], best[1].tril())
        loss.backward()
        return loss

    optimizer.step(closure)
    most = float(bound(best[0], best[1].tril()).detach())
    lost = []
    for number in (1, 2, 4, 8):
        frame = updated(torch.zeros(1, 2, dtype=F64), torch.ones(1, 2, dtype=F64), lambda rows: gradient, number)
        lost.append(most - float(bound(frame.mean[0], frame.factor[0])))
    assert lost[0] > lost[1] > lost[2] and 0 <= lost[3] < 0.03 and lost[0] > 0.3  # what is left is the error of the rule of points


def test_a_step_is_bounded_and_a_row_without_gradients_keeps_its_frame() -> None:
    mean, scale = normals(3, 4), torch.exp(0.2 * normals(3, 4, seed=1))
    precision, centre = torch.tensor([100.0, 0.01, 1.0], dtype=F64), mean + 50 * scale

    def gradient(u: Tensor) -> Tensor:
        force = -precision.unsqueeze(1) / scale**2 * (u - centre)
        force[3, 2, 1] = math.nan  # of one of the points of the last row
        return force

    frame = updated(mean, scale, lambda rows: gradient, 1)
    moved = ((frame.mean - mean) / scale).norm(dim=1)
    torch.testing.assert_close(moved, torch.tensor([2.0, 2.0, 0.0], dtype=F64))
    variance = torch.stack([1 / (NARROWER * torch.ones(4)), NARROWER * torch.ones(4), torch.ones(4)]).to(F64)
    torch.testing.assert_close(frame.factor @ frame.factor.mT, torch.diag_embed(variance * scale**2))


def test_rows_do_not_depend_on_the_block_they_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small.make_model("gaussian"), normals(9, small.DATA_DIM).float()
    posterior = small.make("diffusion", model, "encoder", informed_steps=2, frame_updates=2)
    whole = posterior.encode(x)
    monkeypatch.setattr(frames, "_POINTS", 8)  # two rows at a time
    for found in (posterior.encode(x), posterior.encode(x[:5])):
        torch.testing.assert_close(found.frame_mean, whole.frame_mean[: len(found.frame_mean)])
        torch.testing.assert_close(found.frame_factor, whole.frame_factor[: len(found.frame_mean)])


def test_autocast_changes_no_frame() -> None:
    weight, mean, scale = normals(4, 30).float(), normals(3, 4, seed=1).float(), torch.full((3, 4), 0.8)

    def found() -> tuple[Tensor, ...]:
        frame = updated(mean, scale, lambda rows: lambda u: -0.1 * (u @ weight) @ weight.T - u, 2)
        return *frame, frame.place(mean), frame.pull_back(mean), frame.undo(mean)

    expected = found()
    with torch.autocast("cpu", torch.bfloat16):
        for one, other in zip(found(), expected, strict=True):
            assert torch.equal(one, other)


def with_linear_decoder(dim: int, pixels: int) -> tuple[LatentVariableModel, Tensor, Tensor]:
    """A linear decoder with noise, data, and the exact evidence of each row."""
    decoder = networks.MLP(dim, [], pixels, draws=Draws(2))
    with torch.no_grad():
        decoder.output_layer.weight.mul_(2.0)
    model = LatentVariableModel(priors.make("gaussian", dim=dim), decoder, likelihoods.make("gaussian", scale=0.5)).requires_grad_(False)
    x, weight = model.simulate(8, Draws(4)).x, decoder.output_layer.weight.double()
    evidence = MultivariateNormal(decoder.output_layer.bias.double(), weight @ weight.T + 0.25 * torch.eye(pixels, dtype=F64)).log_prob(x.double())
    return model, x, evidence


@pytest.mark.parametrize("informed", [0, 4])
@torch.no_grad()
def test_a_conjugate_model_with_twenty_latents_is_recovered_without_training(informed: int) -> None:
    """Every weight of an untrained chain is the evidence; the Gaussian of its encoder is tens of nats short."""
    model, x, evidence = with_linear_decoder(20, 30)
    gaps = {}
    for updates in (0, 4):
        encoder = networks.MLP(30, [], 40, draws=Draws(1))
        denoiser = ResidualMLP(20, 20 if informed else 0, 4, 16, zero_output=True)
        posterior = Diffusion(
            encoder, denoiser, schedules.make("constant", 4, beta=0.25), coordinates="encoder", informed_steps=informed, frame_updates=updates,
            target=model if informed or updates else None,
        )  # fmt: skip
        assert not informed or bool((posterior.direction_gains == (1.0 if updates else 0.0)).all())
        gaps[updates] = evidence - posterior.log_weights(model, x, 10, Draws(3))
    assert float(gaps[4].abs().max()) < 1e-3 and float(gaps[0].mean()) > 10


def by_autograd(posterior: Diffusion, encoded, x: Tensor, v: Tensor, step: int) -> Tensor:
    """The direction: the gradient, at the state that `v` predicts, of the log-density less that of the frame's Gaussian, in the frame."""
    model, frame = posterior._target.model, Frame(encoded.frame_mean, encoded.frame_factor)
    predicted = torch.sqrt(torch.prod(1 - posterior.schedule.betas.detach().double()[: step + 1])) * v.detach()
    with torch.enable_grad():
        predicted.requires_grad_()
        u = frame.mean + (frame.factor @ predicted.unsqueeze(-1)).squeeze(-1)
        z = posterior.prior.push(u) if posterior.pushes else u
        standard = Independent(Normal(torch.zeros(2, dtype=F64), 1.0), 1)
        density = model.log_likelihood(x, z) + (standard.log_prob(u) if posterior.pushes else model.prior.log_prob(z))
        gradient = torch.autograd.grad((density - standard.log_prob(predicted)).sum(), predicted)[0]
    return gradient * (MAX_NORM * math.sqrt(2) / gradient.norm(dim=-1, keepdim=True).clamp(min=MAX_NORM * math.sqrt(2)))


@COORDINATES
def test_log_ratio_against_densities_in_the_updated_frame(coordinates: str) -> None:
    model, x = small.make_model("gaussian").double(), 2 * normals(4, small.DATA_DIM)
    posterior = small.make("diffusion", model, coordinates, informed_steps=2, frame_updates=1).double()
    encoded, table = posterior.encode(x), posterior.coefficients().double()
    path = posterior.latent_path(encoded, 3, Draws(2))
    ratio = -Independent(Normal(torch.zeros(2, dtype=F64), 1.0), 1).log_prob(path[0])
    for step in reversed(range(small.STEPS)):
        v, following = path[small.STEPS - 1 - step], path[small.STEPS - step]
        direction = by_autograd(posterior, encoded, x, v, step) if step < 2 else torch.zeros_like(v)
        betas = posterior.schedule.betas.detach()
        gain = posterior.direction_gains[step].double() * torch.sqrt(torch.prod(1 - betas[:step])) * betas[step]
        context = torch.cat((encoded.context.expand(3, 4, -1), direction), -1)
        mean = table[step, 0] * v + table[step, 1] * posterior.denoiser(v, context, torch.full((3, 4), step)) + gain * direction
        ratio = ratio + Independent(Normal(table[step, 3] * following, table[step, 4].sqrt()), 1).log_prob(v)
        ratio = ratio - Independent(Normal(mean, table[step, 2]), 1).log_prob(following)
    torch.testing.assert_close(posterior.log_ratio(encoded, path), ratio)
    v, along = posterior.draw(encoded, 3, Draws(2))
    torch.testing.assert_close(along, ratio)
    # In the coordinates outside the frame a density has the frame's determinant less.
    covariance = encoded.frame_factor @ encoded.frame_factor.mT
    torch.testing.assert_close(posterior.log_scale(encoded), 0.5 * covariance.logdet())
    torch.testing.assert_close(posterior.whitened(encoded, posterior.unwhitened(encoded, v)), v)


def test_gradients_are_those_of_a_reference_that_stops_frame_and_direction() -> None:
    model, x = small.make_model("gaussian").double(), 2 * normals(5, small.DATA_DIM)
    posterior = small.make("diffusion", model, "encoder", informed_steps=small.STEPS, frame_updates=2).double()
    trained = dict(posterior.named_parameters())
    posterior.log_weights(model, x, 3, Draws(3)).mean().backward()

    encoded, table, betas = posterior.encode(x), posterior.coefficients().double(), posterior.schedule.betas.detach()
    v, standard = rng.normal(Draws(3), (3, 5, 2), rng.START, dtype=F64), Independent(Normal(torch.zeros(2, dtype=F64), 1.0), 1)
    ratio = -standard.log_prob(v)
    for step in reversed(range(small.STEPS)):
        direction = by_autograd(posterior, encoded, x, v, step)
        context = torch.cat((encoded.context.expand(3, 5, -1), direction), -1)
        gain = posterior.direction_gains[step].double() * torch.sqrt(torch.prod(1 - betas[:step])) * betas[step]
        mean = table[step, 0] * v + table[step, 1] * posterior.denoiser(v, context, torch.full((3, 5), step)) + gain * direction
        following = mean + table[step, 2] * rng.normal(Draws(3), (3, 5, 2), rng.CHAIN + step, dtype=F64)
        ratio = ratio + Independent(Normal(table[step, 3] * following, table[step, 4].sqrt()), 1).log_prob(v)
        ratio = ratio - Independent(Normal(mean, table[step, 2]), 1).log_prob(following)
        v = following
    mean, log_var = posterior.encoder(x).chunk(2, -1)
    scale, frame = torch.exp(0.5 * log_var), Frame(encoded.frame_mean.detach(), encoded.frame_factor.detach())
    moved, turned = ((frame.mean - mean) / scale).detach(), frame.factor / scale.detach().unsqueeze(-1)
    z = mean + scale * (moved + (turned @ v.unsqueeze(-1)).squeeze(-1))
    ratio = ratio + turned.logdet() + scale.log().sum(-1)
    expected = torch.autograd.grad((model.log_joint(x, z) + ratio).mean(), list(trained.values()))
    assert len(trained) >= 10
    for (name, part), gradient in zip(trained.items(), expected, strict=True):
        torch.testing.assert_close(part.grad, gradient, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@COORDINATES
@pytest.mark.parametrize("informed", [0, small.STEPS])
@pytest.mark.parametrize(("name", "by_class"), [("diffusion", False), ("diffusion", True), ("class_diffusion", True)])
@torch.no_grad()
def test_bounds_stay_below_the_evidence_and_weights_average_to_it(coordinates: str, informed: int, name: str, by_class: bool) -> None:
    model = small.make_model("mixture")
    x = model.simulate(4, Draws(5)).x
    evidence = log_evidence_quadrature(model, x, resolution=100).double()
    posterior = small.make(name, model, coordinates, by_class, informed_steps=informed, frame_updates=2)
    # The best Gaussian is narrower than the tails of a mixture: half of the encoder's width is left to the frame.
    weights = posterior.log_weights(model, x, 4000, Draws(3)).double()
    for bounds in (weights, ops.log_mean_exp(weights.unflatten(0, (-1, 50)), 1)):
        assert ((bounds.mean(0) - evidence) < 4 * bounds.std(0) / len(bounds) ** 0.5).all()
    share = torch.exp(weights - evidence)
    error = share.std(0) / len(share) ** 0.5
    assert ((share.mean(0) - 1).abs() < 4 * error).all() and bool((error < 0.3).all())


@COORDINATES
@pytest.mark.parametrize("name", ["diffusion", "class_diffusion"])
def test_the_frame_of_a_class_is_that_of_the_density_given_the_class(coordinates: str, name: str) -> None:
    """For drawn classes, for one class of each row and for every class, against a posterior without classes of each class alone."""
    model, x = small.make_model("mixture"), normals(5, small.DATA_DIM).float()
    posterior = small.make(name, model, coordinates, by_class=True, frame_updates=2)
    encoded, every = posterior.encode(x), torch.arange(3).unsqueeze(1).expand(-1, 5)
    found = posterior.family_of_class(encoded, every)
    for label in range(3):

        def gradient(rows: slice, label: int = label):
            def at(u: Tensor) -> Tensor:
                with torch.enable_grad():
                    u = u.detach().requires_grad_()
                    given = torch.full(u.shape[:-1], label)
                    z = model.prior.push(u, given) if posterior.pushes else u
                    density = -0.5 * u.square().sum(-1) if posterior.pushes else model.prior.log_prob(z, given)
                    return torch.autograd.grad((model.log_likelihood(x[rows], z) + density).sum(), u)[0]

            return at

        mean, log_var = encoded.family.mean[label], encoded.family.log_var[label]
        frame = updated(mean.detach(), torch.exp(0.5 * log_var.detach()), gradient, 2)
        torch.testing.assert_close(found.frame_mean[label], frame.mean)
        torch.testing.assert_close(found.frame_factor[label], frame.factor)
    drawn = torch.tensor([[2, 0, 1, 1, 0], [0, 0, 2, 1, 2]])
    rows = torch.arange(5)
    for labels, of_class in ((drawn, posterior.encode_of_class(x, drawn)), (drawn[0], posterior.family_of_class(encoded, drawn[0]))):
        torch.testing.assert_close(of_class.frame_mean, found.frame_mean[labels, rows])
        torch.testing.assert_close(of_class.frame_factor, found.frame_factor[labels, rows])


def test_samples_in_inference_mode_are_the_same() -> None:
    model, x = small.make_model("gaussian"), normals(5, small.DATA_DIM).float()
    posterior = small.make("diffusion", model, "encoder", informed_steps=2, frame_updates=2)
    expected = posterior.sample(x, 3, Draws(1))
    with torch.inference_mode():
        found = posterior.sample(x, 3, Draws(1))
    assert torch.equal(found.z, expected.z) and torch.equal(found.log_ratio, expected.log_ratio)


def test_what_cannot_have_frame_updates_is_refused() -> None:
    model = small.make_model("mixture")
    for coordinates in ("latent", "prior"):
        with pytest.raises(InputError, match=f"^frame_updates: expected 0 with coordinates={coordinates}, got 1"):
            small.make("diffusion", model, coordinates, frame_updates=1)
    with pytest.raises(InputError, match=r"^frame_updates: expected an integer of at least 0, got -1"):
        small.make("diffusion", model, "encoder", frame_updates=-1)
    posterior = small.make("diffusion", model, "encoder", frame_updates=1)
    posterior._target = None
    with pytest.raises(InputError, match=r"^target: expected the model that the chain sees, got None"):
        posterior.sample(torch.zeros(2, small.DATA_DIM))
