"""The Hamiltonian posterior: its force, its leapfrog, the gradient through both, and what is saved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ddvi_fast import InputError, likelihoods, priors
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors import Hamiltonian
from ddvi_fast.rng import Draws
from tests.linear_gaussian import BIAS, SCALE, WEIGHT, make_model, observations


def make(model: LatentVariableModel, **options) -> Hamiltonian:
    return Hamiltonian(MLP(3, [], 4), MLP(3, [], 4, draws=Draws(1)), model, 2, context_dim=4, hidden_dim=8, draws=Draws(2), **options)


def curved_model() -> LatentVariableModel:
    decoder = MLP(2, [6], 3, activation="tanh", draws=Draws(5))
    return LatentVariableModel(priors.make("mixture"), decoder, likelihoods.make("bernoulli")).double()


def test_the_force_is_the_gradient_of_the_log_joint():
    posterior, x = make(make_model(torch.float64), blur=0.0, max_force=1e9).double(), observations(5).double()
    z = torch.randn(4, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight, bias = (torch.tensor(value, dtype=torch.float64) for value in (WEIGHT, BIAS))
    expected = (x - bias - z @ weight.mT) @ weight / SCALE**2 - z
    torch.testing.assert_close(posterior.force(posterior.encode(x), z), expected, rtol=1e-6, atol=1e-6)
    limited = make(make_model(torch.float64), blur=0.0, max_force=2.0).double()
    bounded = limited.force(limited.encode(x), z)
    assert bounded.norm(dim=-1).max() < 2
    torch.testing.assert_close(bounded / bounded.norm(dim=-1, keepdim=True), expected / expected.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("grad", [True, False])
def test_the_force_is_the_same_with_and_without_gradients(grad):
    posterior, x = make(curved_model()).double(), torch.ones(2, 3, dtype=torch.float64)
    z = torch.full((1, 2, 2), 0.3, dtype=torch.float64)
    encoded = posterior.encode(x)
    with torch.set_grad_enabled(grad):
        force = posterior.force(encoded, z)
    assert force.requires_grad == grad
    torch.testing.assert_close(force, posterior.force(encoded, z.clone().requires_grad_()))


def test_the_leapfrog_is_its_own_inverse_and_keeps_volumes():
    posterior, x = make(curved_model(), num_leapfrog=3, step_size=0.3, max_force=5.0).double(), torch.ones(1, 3, dtype=torch.float64)
    encoded = posterior.encode(x)

    def move(state):
        return torch.cat(posterior._leapfrog(encoded, 0, *state.view(1, 1, 4).split(2, -1)), -1).view(4)

    state = torch.tensor([0.4, -0.2, 0.7, 0.1], dtype=torch.float64)
    moved = move(state)
    assert (moved - state).norm() > 0.1
    turn = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(move(moved * turn) * turn, state)
    torch.testing.assert_close(torch.linalg.det(torch.autograd.functional.jacobian(move, state)), torch.ones((), dtype=torch.float64))


def test_the_model_is_trained_through_the_force_too():
    model, x = curved_model(), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    posterior, weight = make(model).double(), model.decoder.layers[0].weight

    def bound():
        return posterior.log_weights(model, x, 2, Draws(3)).mean()

    gradient = torch.autograd.grad(bound(), weight)[0]
    for place in ((0, 0), (3, 1), (5, 0)):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += step
            values.append(bound().item())
            with torch.no_grad():
                weight[place] -= step
        assert gradient[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-7)


def test_the_model_is_saved_in_its_own_place():
    model = curved_model()
    posterior = make(model).double()
    assert not [name for name in posterior.state_dict() if name.startswith("model.")]
    both = nn.ModuleDict({"model": model, "posterior": posterior})
    assert [name for name in both.state_dict() if name.startswith("model.decoder")]
    assert not [name for name in both.state_dict() if name.startswith("posterior.model.")]
    both.load_state_dict(both.state_dict())
    state = posterior.state_dict()
    del state["log_step_sizes"]
    with pytest.raises(RuntimeError, match="log_step_sizes"):
        posterior.load_state_dict(state)


@pytest.mark.parametrize(("argument", "value"), [("num_steps", 0), ("num_leapfrog", 0), ("step_size", 0.0), ("max_force", -1.0)])
def test_refuses_what_cannot_move(argument, value):
    with pytest.raises(InputError, match=rf"^{argument}: expected"):
        make(make_model(), **{argument: value})


def test_a_prior_without_density_gives_no_force():
    model = LatentVariableModel(priors.make("swiss_roll", noise=0.0), MLP(2, [], 3), likelihoods.make("bernoulli"))
    with pytest.raises(InputError, match=r"^prior: expected a density"):
        make(model)
