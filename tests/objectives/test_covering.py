"""The covering term on latents of Langevin chains."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import InputError, denoisers, likelihoods, models, networks, priors, schedules
from ddvi_fast.objectives import Covering, Progress
from ddvi_fast.posteriors import Diffusion, FullGaussian, Gaussian, Posterior
from ddvi_fast.rng import Draws

DIM, DATA = 3, 6
END = Progress(1, 1)


def model() -> models.LatentVariableModel:
    """A linear decoder with noise: the posterior is a correlated Gaussian with one covariance."""
    decoder = networks.MLP(DIM, [], DATA, draws=Draws(2))
    with torch.no_grad():
        decoder.output_layer.weight.mul_(2.0)
    return models.LatentVariableModel(priors.make("gaussian", dim=DIM), decoder, likelihoods.make("gaussian", scale=0.5))


def exact(made: models.LatentVariableModel, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means [N, D] and covariance of the posterior."""
    layer = made.decoder.output_layer
    covariance = torch.linalg.inv(torch.eye(DIM) + layer.weight.T @ layer.weight / 0.25)
    return ((x - layer.bias) @ layer.weight / 0.25 @ covariance).detach(), covariance.detach()


def chain(informed: int = 0, target: models.LatentVariableModel | None = None) -> Diffusion:
    return Diffusion(
        networks.MLP(DATA, [8], 2 * DIM + 4, draws=Draws(1)),
        denoisers.ResidualMLP(DIM, 4 + (DIM if informed else 0), 4, 16, draws=Draws(3)),
        schedules.make("constant", 4, beta=0.3), coordinates="encoder", informed_steps=informed, target=target,
    )  # fmt: skip


def test_a_gaussian_fitted_by_covering_alone_has_the_exact_moments() -> None:
    """The forward KL of a full Gaussian fits both moments, the correlations included."""
    made = model().requires_grad_(False)
    x = made.simulate(64, Draws(4)).x
    found = FullGaussian(networks.MLP(DATA, [], 2 * DIM + DIM * (DIM - 1) // 2, draws=Draws(1)), None, DIM)
    objective = Covering(made, found, x, num_rows=64, num_steps=2)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.03)
    for step in range(500):
        optimizer.zero_grad()
        objective(x, END, Draws(0, 64 * step)).backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 500)
    mean, covariance = exact(made, x)
    sample = found.sample(x, 4000, Draws(9)).z
    assert float((sample.mean(0) - mean).square().mean().sqrt()) < 0.1  # the prior's deviation is 1
    torch.testing.assert_close(sample[:, 0].T.cov(), covariance, rtol=0.2, atol=0.02)


@pytest.mark.parametrize("informed", [0, 4])
def test_the_terms_of_a_chain_are_those_of_its_states(informed: int) -> None:
    made = model()
    x, trained = made.simulate(10, Draws(4)).x, [parameter.requires_grad for parameter in made.parameters()]
    found = chain(informed, made if informed else None)
    objective = Covering(made, found, x, num_rows=10, num_steps=1, weight=0.5)
    (update,) = objective.updates(x, END, Draws(6))
    terms = update.terms()
    assert dict(terms.weights) == {"covering": 0.5, "covering_frame": 0.5}
    encoded = found.encode(x)
    frame = torch.distributions.Normal(encoded.mean, torch.exp(encoded.log_var / 2)).log_prob(objective.memory.states).sum(-1)
    torch.testing.assert_close(terms.values["covering_frame"].sort().values, (-frame).sort().values, rtol=1e-4, atol=1e-4)
    terms.total().backward()
    assert all(parameter.grad is None for parameter in made.parameters())
    assert [parameter.requires_grad for parameter in made.parameters()] == trained
    assert found.denoiser.last.grad.abs().sum() > 0


def test_rows_are_visited_at_random_and_their_states_kept() -> None:
    made = model().requires_grad_(False)
    x = made.simulate(30, Draws(4)).x
    objective = Covering(made, Gaussian(networks.MLP(DATA, [], 2 * DIM), DIM, coordinates="encoder"), x, num_rows=5)
    objective(x, END, Draws(0))
    first = objective.memory.seen.clone()
    assert int(first.sum()) == 5
    states = objective.memory.states.clone()
    for step in range(1, 40):
        objective(x, END, Draws(0, 5 * step))
    assert bool(objective.memory.seen.all()) and not torch.equal(objective.memory.states, states)
    again = Covering(made, objective.posterior, x, num_rows=5)
    again(x, END, Draws(0))
    assert torch.equal(again.memory.states, states)  # a function of the draws


def test_what_cannot_be_covered_is_refused() -> None:
    made, x = model(), torch.zeros(2, DATA)
    pushed: Posterior = Gaussian(networks.MLP(DATA, [], 2 * DIM), DIM, coordinates="prior", prior=made.prior)
    with pytest.raises(InputError, match=r"^posterior: expected one in the coordinates latent or encoder"):
        Covering(made, pushed, x)
