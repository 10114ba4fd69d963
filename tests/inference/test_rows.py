"""Fits to rows of data: a fixed decoder, informed steps by default, rows that no simulation resembles."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, constraints

from ddvi_fast import InputError, evidence, fit_posterior, likelihoods, models, networks, priors, rng
from ddvi_fast.inference import Architecture, ImportanceSample, Model, Support, Training, load
from ddvi_fast.inference import posterior as fitted_posterior
from ddvi_fast.inference.model import FlatModel, RowTarget, Simulator, for_coordinates
from ddvi_fast.inference.networks import build
from ddvi_fast.inference.objective import FrameFit, Rows, Simulated
from ddvi_fast.inference.observation import Observation
from ddvi_fast.inference.whitening import Whitening
from ddvi_fast.objectives import Progress
from ddvi_fast.rng import Draws

DIM, WIDTH, NOISE = 6, 10, 0.7
SMALL = Architecture(hidden=(32,), width=32, context_dim=8)


class Linear(nn.Module):
    """A decoder `x = A z + noise` with a Gaussian prior, whose posterior is a correlated Gaussian."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, DIM, generator=torch.Generator().manual_seed(0)) / 2)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        return Normal(0, 1).log_prob(z).sum(-1) + Normal(z @ self.weight.T, NOISE).log_prob(x).sum(-1)

    @torch.no_grad()
    def simulate(self, n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, DIM)
        return z, z @ self.weight.T + NOISE * torch.randn(n, WIDTH)

    def log_evidence(self, x: Tensor) -> Tensor:
        return MultivariateNormal(torch.zeros(WIDTH), self.weight.detach() @ self.weight.detach().T + NOISE**2 * torch.eye(WIDTH)).log_prob(x)


@pytest.fixture(scope="module")
def fitted() -> fitted_posterior.FittedPosterior:
    model = Linear()
    x = 1.5 * torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(1))  # from another distribution than the model's
    return fit_posterior(model, x, architecture=SMALL, training=Training(steps=100, batch_size=128))


def test_rows_get_informed_steps_and_the_evidence_of_each(fitted: fitted_posterior.FittedPosterior) -> None:
    assert (fitted.architecture.num_steps, fitted.architecture.informed_steps) == (8, 8)
    rows = 1.5 * torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(2))
    exact, weighted = fitted.model.log_evidence(rows), fitted.importance_sample(1000, rows)
    assert weighted.z.shape == (1000, 50, DIM) and weighted.log_evidence.shape == weighted.effective_sample_size.shape == (50,)
    assert float((weighted.log_evidence - exact).abs().median()) < 0.02 and float((weighted.log_evidence - exact).mean().abs()) < 0.05
    assert float(weighted.effective_sample_size.median()) > 600
    assert float((exact - fitted.elbo(rows, 400)).median().abs()) < 0.05  # the updated frame finds these Gaussians


def test_the_model_takes_no_gradients_and_keeps_its_parameters(fitted: fitted_posterior.FittedPosterior) -> None:
    assert fitted.model.weight.grad is None and fitted.model.weight.requires_grad and fitted.model.training
    torch.testing.assert_close(fitted.model.weight, Linear().weight)


def test_a_row_does_not_depend_on_those_beside_it(fitted: fitted_posterior.FittedPosterior, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3))
    whole = fitted.importance_sample(100, rows)
    single = fitted.importance_sample(100, rows[0])
    torch.testing.assert_close(whole.log_ratios[:, 0], single.log_ratios, rtol=1e-4, atol=1e-3)
    assert float(whole.log_evidence[0]) == pytest.approx(single.log_evidence, abs=1e-3)
    monkeypatch.setattr(fitted_posterior, "_BLOCK", 2)
    monkeypatch.setattr(fitted_posterior, "_ROWS", 64)
    torch.testing.assert_close(fitted.importance_sample(100, rows).log_ratios, whole.log_ratios, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(fitted.elbo(rows, 100), whole.elbo, rtol=1e-4, atol=1e-3)
    assert fitted.importance_sample(100, rows[:0]).log_evidence.shape == (0,)


def test_saved_with_informed_steps_and_loaded_with_the_model(fitted: fitted_posterior.FittedPosterior, tmp_path: Path) -> None:
    path, row = fitted.save(tmp_path / "posterior"), torch.ones(WIDTH)
    again = load(path, fitted.model)
    torch.testing.assert_close(again.sample(5, row), fitted.sample(5, row))
    assert again.architecture == fitted.architecture
    with pytest.raises(InputError, match=r"^model: expected one with log_joint, for steps that see its gradient, got 'None'$"):
        load(path)


def test_images_that_the_decoder_never_draws_do_not_break_the_bound() -> None:
    """Border pixels that are off in all simulations but a few, and often on in the rows."""
    model = models.LatentVariableModel(priors.make("gaussian", dim=2), networks.MLP(2, [16], 24), likelihoods.make("bernoulli"))
    with torch.no_grad():
        model.decoder.output_layer.weight.mul_(3.0)
        model.decoder.output_layer.bias[12:] = -7.0
    x = model.simulate(600, Draws(4)).x
    x[:, 12:] = (rng.uniform(Draws(5), (600, 12), rng.ORDER) < 0.2).float()
    fitted = fit_posterior(model, x[:400], architecture=SMALL, training=Training(steps=100, batch_size=128))
    exact, bound = evidence.log_evidence_quadrature(model, x[400:]), fitted.elbo(x[400:], 200)
    assert float((exact - bound).mean()) < 0.5 and float((exact - bound).max()) < 5
    assert fitted.notices == []


def test_binary_columns_have_one_unit() -> None:
    simulated = (torch.rand(1000, 4, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.5, 0.001, 0.0, 0.2])).float()
    rows = torch.rand(50, 4, generator=torch.Generator().manual_seed(1))
    found = Observation.of(simulated, None, rows)
    assert found.width == 4 and len(found.heavy) == 0 and len(found.scale.unique()) == 1
    assert float(found(torch.ones(1, 4)).abs().max()) < 5
    torch.testing.assert_close(found.shift, torch.cat((simulated, rows)).double().mean(0))
    other_unit = Observation.of(7 * simulated - 2, None, 7 * rows - 2)
    torch.testing.assert_close(other_unit(7 * rows - 2), found(rows), rtol=1e-5, atol=1e-5)
    own_units = Observation.of(simulated, None, 100 * rows)  # beyond the two values
    assert len(own_units.scale.unique()) > 1


def test_a_step_sees_all_rows_or_a_random_part_of_them() -> None:
    x = torch.arange(10.0).unsqueeze(1)
    few = Rows(x, 25)
    assert few.num_samples == 2 and few.take(Draws(0)) is x
    several = Rows(x, 16, each=4)
    assert several.num_samples == 4 and several.take(Draws(0)).shape == (4, 1)
    assert Rows(x, 2, each=4).take(Draws(0)).shape == (1, 1) and Rows(x, 400, each=4).num_samples == 40
    many = Rows(x, 4)
    taken = torch.cat([many.take(Draws(0, 4 * step)) for step in range(200)])
    assert many.num_samples == 1 and taken.shape == (800, 1)
    counts = taken.flatten().long().bincount(minlength=10)
    assert counts.min() > 50 and counts.max() < 110
    assert torch.equal(many.take(Draws(0)), many.take(Draws(0)))


def test_a_density_for_coordinates_has_their_gradient_only() -> None:
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    y = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def density(y: Tensor) -> Tensor:
        return -(y * weight).sum(-1).square() + y[..., 0].sin()

    value, plain = for_coordinates(density, y), density(y)
    torch.testing.assert_close(value, plain)
    shares = torch.arange(12.0).view(3, 4)
    (found,) = torch.autograd.grad((shares * value).sum(), y)
    (expected,) = torch.autograd.grad((shares * plain).sum(), y)
    torch.testing.assert_close(found, expected)
    for_coordinates(density, y).sum().backward()
    assert weight.grad is None
    with torch.no_grad():
        torch.testing.assert_close(for_coordinates(density, y), plain)


def objective(kind: type, informed: int, updates: int = 0) -> tuple:
    """An untrained objective on rows, its posterior and the rows."""
    model, support = Linear(), Support(constraints.real, DIM)
    simulator = Simulator(model, support)
    first = simulator.take(64, Draws(1))
    whitening, x = Whitening.of(first.u), torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(4))
    density = FlatModel(model, support, whitening)
    posterior = build(dataclasses.replace(SMALL, informed_steps=informed, frame_updates=updates), DIM, Observation.of(first.x, None, x), 0)
    if informed:
        posterior.inform(RowTarget(density))
    made = kind(posterior, whitening, simulator, 32, density, Rows(x, 16), *([Rows(x, 16)] if updates else []))
    (update,) = made.updates(torch.zeros(1, 1), Progress(0, 1), Draws(2))
    return update.terms(), posterior, whitening, x, model


def bound_of_the_encoder(posterior, whitening: Whitening, x: Tensor, model: Linear, lane: str) -> Tensor:
    """Minus the bound [N] of the encoder's Gaussian, written out."""
    mean, log_var = posterior.encoder(x).chunk(2, -1)
    y = mean + torch.exp(log_var / 2) * rng.normal(Draws(2).lane(lane), (2, 8, DIM), rng.START)
    density = model.log_joint(x, whitening(y)) + whitening.log_det() - Normal(mean, torch.exp(log_var / 2)).log_prob(y).sum(-1)
    return -density.mean(0)


def test_the_bound_of_the_frame_is_that_of_its_gaussian() -> None:
    found, *rest = objective(FrameFit, 0)
    assert list(found.values) == ["frame", "bound"]
    torch.testing.assert_close(found.values["bound"], bound_of_the_encoder(*rest, "bound"), rtol=1e-4, atol=1e-4)


def test_the_encoder_of_an_updated_frame_is_trained_by_its_own_bound() -> None:
    found, posterior, *rest = objective(Simulated, 8, updates=1)
    assert list(found.values) == ["chain", "start", "frame", "bound", "frame_bound"]
    expected = bound_of_the_encoder(posterior, *rest, "levels")
    torch.testing.assert_close(found.values["frame_bound"], expected, rtol=1e-4, atol=1e-4)
    found.total().backward()
    reached = [part.grad for part in posterior.encoder.parameters()]
    assert all(part is not None for part in reached)


def test_an_informed_chain_trains_its_frame_and_starts_as_its_gaussian() -> None:
    found, posterior, _, _, _ = objective(Simulated, 8)
    assert list(found.values) == ["chain", "start", "frame", "bound"]
    found.total().backward()
    assert all(parameter.grad is not None for parameter in posterior.encoder.parameters())


@pytest.mark.parametrize(
    ("given", "for_rows", "steps", "informed", "hidden"),
    [
        ({}, False, 20, 0, (64, 64)),
        ({}, True, 8, 8, (400,)),
        ({"num_steps": 5, "hidden": (7,)}, True, 5, 5, (7,)),
        ({"informed_steps": 0}, True, 20, 0, (400,)),
        ({"informed_steps": 3}, False, 8, 3, (64, 64)),
        ({"informed_steps": 10}, True, 10, 10, (400,)),
        ({"family": "gaussian"}, True, 20, 0, (400,)),
    ],
)
def test_defaults_of_an_architecture(given: dict, for_rows: bool, steps: int, informed: int, hidden: tuple) -> None:
    found = Architecture(**given).settled(for_rows)
    assert (found.num_steps, found.informed_steps, found.hidden) == (steps, informed, hidden)
    assert found.frame_updates == (2 if for_rows and informed else 0)
    assert found.settled() == found.settled(True) == found


def test_many_parameters_have_no_frame_updates_unless_asked_for() -> None:
    assert [Architecture().settled(True, dim).frame_updates for dim in (32, 33)] == [2, 0]
    assert Architecture(frame_updates=1).settled(True, 100).frame_updates == Architecture(frame_updates=1).settled().frame_updates == 1


def test_informed_steps_where_nothing_informs_them_are_refused() -> None:
    with pytest.raises(InputError, match=r"^informed_steps: expected from 0 to num_steps, 4, got 5$"):
        Architecture(num_steps=4, informed_steps=5)
    for name in ("informed_steps", "frame_updates"):
        with pytest.raises(InputError, match=rf"^{name}: expected 0 with family=flow, got 2$"):
            Architecture(family="flow", **{name: 2})
    model, options = Linear(), {"architecture": Architecture(informed_steps=2), "training": Training(steps=1, batch_size=8)}
    with pytest.raises(InputError, match=r"^architecture: expected informed_steps=0 for a fit without log_joint, got 2$"):
        fit_posterior(Model(simulate=model.simulate), torch.zeros(3, WIDTH), **options)
    updating = {**options, "architecture": Architecture(frame_updates=2)}
    with pytest.raises(InputError, match=r"^architecture: expected frame_updates=0 for a fit without log_joint, got 2$"):
        fit_posterior(Model(simulate=model.simulate), torch.zeros(3, WIDTH), **updating)
    with pytest.raises(InputError, match=r"^architecture: expected informed_steps=0 for a fit without log_joint of any data, got 2$"):
        fit_posterior(Model(log_joint=model.log_joint), torch.zeros(WIDTH), dim=DIM, **options)


def test_importance_samples_of_rows_are_those_of_each() -> None:
    z = 1.5 * torch.randn(4000, 2, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mass = torch.tensor([3.0, -1.0])
    log_ratios = mass + math.log(1.5) - 0.5 * z[..., 0] ** 2 * (1 - 1 / 1.5**2)  # the target of row m is e^mass[m] N(0, 1)
    both, alone = ImportanceSample.of(z, log_ratios), ImportanceSample.of(z[:, 1], log_ratios[:, 1])
    torch.testing.assert_close(both.log_evidence, mass.double(), rtol=0, atol=0.05)
    for name in ("log_evidence", "elbo", "effective_sample_size", "pareto_k"):
        assert float(getattr(both, name)[1]) == pytest.approx(getattr(alone, name))
    torch.testing.assert_close(both.mean(z)[1], alone.mean(z[:, 1]))
    torch.testing.assert_close(both.mean(z).shape, torch.Size([2, 1]))
    torch.testing.assert_close(both.resample(50, seed=2)[:, 1], alone.resample(50, seed=2))
    assert "each of 2 rows" in repr(both)
    with pytest.raises(InputError, match=r"^values: expected shape \[4000, 2, ...\]"):
        both.mean(torch.zeros(4000, 1))
