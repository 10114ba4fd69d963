"""Tests of every posterior family: shapes, gradients, bounds, recovery of a known posterior, saving and loading."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ddvi_fast import evidence, likelihoods, ops, priors
from ddvi_fast._checks import InputError
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.engine import Engine
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.objectives import DDVI, ELBO, IWAE, Progress
from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.objectives.wake_sleep import Sleep
from ddvi_fast.posteriors import Diffusion, Posterior
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws
from tests.linear_gaussian import DATA_DIM, EXACT_PRIOR, UNCORRELATED, WEIGHT, make_model
from tests.posteriors import families

EVERY = pytest.mark.parametrize("make", families.ALL, ids=lambda make: make.__name__)
WITH_DENSITY = pytest.mark.parametrize("make", families.WITH_DENSITY, ids=lambda make: make.__name__)
CONSTANT = KLSchedule("constant")

# Training steps and learning rate. A diagonal Gaussian can recover only a diagonal posterior, so it gets a model that has one.
TRAINING = {"diffusion": (450, 3e-2), "planar": (300, 3e-2), "path_integral": (450, 3e-2), "hamiltonian": (150, 3e-2), "gaussian": (300, 2e-2)}
USUAL_TRAINING = (300, 1e-2)
WEIGHTS = {"gaussian": UNCORRELATED}
BATCH = 128


class Trained(NamedTuple):
    """A trained posterior, its model, and test data."""

    posterior: Posterior
    model: LatentVariableModel
    x: Tensor


def model_of_size(latent_dim: int) -> LatentVariableModel:
    return LatentVariableModel(priors.make("gaussian", dim=latent_dim), MLP(latent_dim, [4], DATA_DIM), likelihoods.make("gaussian"))


@pytest.fixture(scope="module", params=families.WITH_DENSITY, ids=lambda make: make.__name__)
def trained(request) -> Trained:
    name = request.param.__name__
    model = make_model(weight=WEIGHTS.get(name, WEIGHT))
    posterior, (steps, lr) = request.param(model), TRAINING.get(name, USUAL_TRAINING)
    objective = ELBO(model, posterior, CONSTANT, guide=EXACT_PRIOR)
    if isinstance(posterior, Diffusion):
        objective = DDVI(objective, Sleep(0.1, 0.1, "squared"))
    engine = Engine(objective, Optimisation(lr=lr, max_norm=10.0, factors={}))
    for step in range(steps):
        x = model.simulate(BATCH, Draws(77, step * BATCH)).x
        engine.run(x, Progress(step, steps), Draws(3, step * BATCH))
    return Trained(posterior, model, model.simulate(200, Draws(99)).x)


def log_weights(trained: Trained, num_samples: int, seed: int) -> Tensor:
    """Float64 [K, N]."""
    with torch.no_grad():
        return trained.posterior.log_weights(trained.model, trained.x, num_samples, Draws(seed)).double()


def quadrature(model: LatentVariableModel, x: Tensor) -> Tensor:
    return evidence.log_evidence_quadrature(model, x, resolution=60).double()


@EVERY
@pytest.mark.parametrize("latent_dim", [1, 2, 3])
@pytest.mark.parametrize(("samples", "rows"), [(1, 1), (1, 5), (4, 1), (3, 5)])
def test_shapes(make, latent_dim, samples, rows):
    posterior = make(model_of_size(latent_dim))
    z, log_ratio, _ = posterior.sample(torch.linspace(-1, 1, rows * DATA_DIM).view(rows, DATA_DIM), samples, Draws(2))
    assert z.shape == (samples, rows, latent_dim) and bool(z.isfinite().all())
    assert (log_ratio is not None) == posterior.has_density
    assert log_ratio is None or (log_ratio.shape == (samples, rows) and bool(log_ratio.isfinite().all()))


@EVERY
@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_gradients_reach_every_parameter(make, latent_dim):
    model = model_of_size(latent_dim)
    posterior, x = make(model), torch.linspace(-1, 1, 16 * DATA_DIM).view(16, DATA_DIM)
    if posterior.has_density:
        posterior.log_weights(model, x, 2, Draws(4)).mean().backward()
    else:
        model.log_joint(x, posterior.sample(x, 2, Draws(4)).z).mean().backward()
    # In one dimension all inputs of a masked network are masked, so the weights of its first layer have no gradient.
    masked = {name for name, _ in posterior.named_parameters() if latent_dim == 1 and name.endswith("layers.0.weight") and "steps." in name}
    parts = {name: parameter for name, parameter in posterior.named_parameters() if name not in masked and parameter.requires_grad}
    dead = [name for name, part in parts.items() if part.grad is None or not part.grad.isfinite().all() or part.grad.abs().sum() == 0]
    assert not dead


@WITH_DENSITY
def test_untrained_bounds_rise_with_the_number_of_samples_and_stay_below_the_evidence(make):
    model = make_model()
    untrained = Trained(make(model), model, model.simulate(100, Draws(98)).x)
    # Twenty bounds of each row for every K, from draws of their own.
    bounds = [ops.log_mean_exp(log_weights(untrained, 20 * number, seed=number).unflatten(0, (20, number)), 1).mean(0) for number in (1, 5, 25)]
    truth = quadrature(model, untrained.x)
    for few, many in zip(bounds, [*bounds[1:], truth], strict=True):
        # A sign test, four standard errors away from a coin: some rows' bounds have too heavy tails for a mean.
        assert (many > few).double().mean() > 0.5 + 4 * 0.5 / 100**0.5
    for bound in bounds:
        excess = bound - truth
        assert excess.mean() < 4 * excess.std() / 100**0.5


def test_recovery_within_a_twentieth_of_a_nat(trained):
    truth = quadrature(trained.model, trained.x)
    # Standard errors over independent draws of all rows; the evidence is exact.
    bounds = torch.stack([log_weights(trained, 20, seed).mean() for seed in range(10)])
    gap, error = truth.mean() - bounds.mean(), bounds.std() / 10**0.5
    assert -4 * error < gap < 0.05
    many = torch.stack([ops.log_mean_exp(log_weights(trained, 50, 20 + seed), 0).mean() for seed in range(4)])
    left, its_error = truth.mean() - many.mean(), many.std() / 2
    assert -4 * its_error < left < 0.5 * gap + 4 * (error + its_error)


def test_importance_weights_are_unbiased_for_the_evidence(trained):
    few = trained._replace(x=trained.x[:10])
    ratio = (log_weights(few, 2000, seed=50) - quadrature(few.model, few.x)).exp()
    assert ratio.std(0).max() < 5
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / 2000**0.5).all()


@WITH_DENSITY
@pytest.mark.parametrize("doubly_reparametrised", [False, True])
def test_the_importance_weighted_objective_takes_every_family(make, doubly_reparametrised):
    if doubly_reparametrised and make is families.diffusion:
        pytest.skip("a learned schedule has no doubly reparametrised gradient")
    model = make_model()
    posterior, x = make(model), model.simulate(6, Draws(1)).x
    (update,) = IWAE(model, posterior, 5, doubly_reparametrised, CONSTANT, EXACT_PRIOR).updates(x, Progress(0, 1), Draws(2))
    loss = update.terms().total()
    expected = -ops.log_mean_exp(posterior.log_weights(model, x, 5, Draws(2)), 0).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    loss.backward()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in posterior.parameters() if part.requires_grad)


@pytest.mark.parametrize("make", [families.hierarchical_iaf, families.hamiltonian, families.path_integral], ids=lambda make: make.__name__)
def test_a_doubly_reparametrised_gradient_keeps_what_belongs_to_the_target(make):
    model = make_model()
    posterior, x = make(model), model.simulate(1, Draws(1)).x.expand(500, -1)
    names = [name for name, part in posterior.named_parameters() if part.requires_grad]
    along = []
    for batch in range(21):
        gradients = []
        for doubly in (False, True):
            (update,) = IWAE(model, posterior, 3, doubly, CONSTANT, EXACT_PRIOR).updates(x, Progress(0, 1), Draws(2, 500 * batch))
            parts = [part for part in posterior.parameters() if part.requires_grad]
            gradients.append(torch.autograd.grad(update.terms().total(), parts))
        if batch == 0:
            directions = [gradient / gradient.norm() for gradient in gradients[0]]
            continue
        along.append([((second - first) * direction).sum() for first, second, direction in zip(*gradients, directions, strict=True)])
    # Both are unbiased for one gradient: they agree along the direction that it takes, parameter by parameter.
    for name, differences in zip(names, torch.tensor(along).double().T, strict=True):
        assert abs(differences.mean()) < 4 * differences.std() / 20**0.5 + 1e-6, name
        if name.startswith("reverse."):  # part of the target only, where both are the same
            assert differences.abs().max() < 1e-4


@EVERY
def test_saved_and_loaded_it_is_the_same(make, tmp_path):
    model = make_model()
    posterior, other, x = make(model), make(model), model.simulate(5, Draws(1)).x
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    other.load_state_dict(posterior.state_dict())
    checkpoint.save(tmp_path / "saved", checkpoint.module_tensors({"posterior": posterior}), {})
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.sub_(0.1)
    fresh = make(model)
    checkpoint.load_modules(checkpoint.load(tmp_path / "saved")[0], {"posterior": fresh})
    first, second, changed = (each.sample(x, 3, Draws(5)) for each in (fresh, make(model), posterior))
    assert torch.equal(first.z, second.z) and not torch.equal(first.z, changed.z)
    assert first.log_ratio is None or torch.equal(first.log_ratio, second.log_ratio)


@EVERY
def test_initial_weights_come_from_the_draws_alone(make):
    generator = torch.get_rng_state()
    first, second = make(make_model()).state_dict(), make(make_model()).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert torch.equal(generator, torch.get_rng_state())


def test_an_implicit_family_refuses_every_bound():
    model = make_model()
    posterior, x = families.adversarial(model), model.simulate(3, Draws(1)).x
    path = posterior.latent_path(posterior.encode(x), 2, Draws(0))
    for bound in (
        lambda: posterior.log_weights(model, x),
        lambda: posterior(x, path),
        lambda: ELBO(model, posterior),
        lambda: IWAE(model, posterior),
    ):
        with pytest.raises(
            InputError, match=r"^posterior: expected one with a density[^\n]*Adversarial: [^\n]*objectives adversarial and wae train it[^\n]*$"
        ):
            bound()
