"""The importance-weighted bound and its doubly reparametrised gradient, against formulas written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from ddvi_fast._checks import InputError
from ddvi_fast.objectives import IWAE, Progress
from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.posteriors import Posterior
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import make
from tests.linear_gaussian import EXACT_PRIOR, diffusion_posterior, gaussian_posterior, make_model, observations


def tame_diffusion() -> Posterior:
    """A short chain with little noise, whose weights have few outliers, so that mean gradients converge quickly."""
    schedule = make("constant", 2, beta=0.4)
    posterior = diffusion_posterior(schedule=schedule, hidden_dim=4, parametrisation="mean", final_variance=0.4, learn_variances=True)
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.mul_(0.5)
        posterior.log_variance_factors.fill_(0.5)
    return posterior


FAMILIES = pytest.mark.parametrize("make_posterior", [gaussian_posterior, tame_diffusion])


def objective(posterior: Posterior, k: int, doubly: bool = False, kl: float = 1.0, trained_model: bool = False) -> IWAE:
    model = make_model(next(posterior.parameters()).dtype).requires_grad_(trained_model)
    return IWAE(model, posterior, k, doubly, KLSchedule("constant", kl), EXACT_PRIOR)


def bound(iwae: IWAE, x: Tensor, draws: Draws) -> Tensor:
    return iwae.terms(x, Progress(0, 1), draws).values["bound"]


def gradient(loss: Tensor, parameters) -> Tensor:
    grads = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(grads, parameters, strict=True)])


def test_value_and_gradient_by_hand():
    posterior, x, draws = gaussian_posterior(), observations(4), Draws(3)
    iwae = objective(posterior, 5)
    mean, log_var = posterior.encoder(x).chunk(2, -1)
    scale = (0.5 * log_var).exp()
    z = mean + scale * ((posterior.sample(x, 5, draws).z - mean) / scale).detach()
    log_w = iwae.model.log_likelihood(x, z) + Normal(0.0, 1.0).log_prob(z).sum(-1) - Normal(mean, scale).log_prob(z).sum(-1)
    by_hand = -(log_w.exp().mean(0)).log()
    found = bound(iwae, x, draws)
    torch.testing.assert_close(found, by_hand)
    parameters = list(posterior.parameters())
    # The textbook form: normalised weights times the gradients of the log-weights.
    weighted = -(torch.softmax(log_w, 0).detach() * log_w).sum(0).mean()
    torch.testing.assert_close(gradient(found.mean(), parameters), gradient(weighted, parameters), rtol=1e-4, atol=1e-5)


@FAMILIES
@pytest.mark.parametrize("k", [1, 6])
@pytest.mark.parametrize("kl", [0.3, 1.0])
def test_doubly_reparametrised_value_and_generative_gradient_are_unchanged(make_posterior, k, kl):
    posterior, x, draws = make_posterior().double(), observations(4).double(), Draws(3)
    plain, doubly = (objective(posterior, k, flag, kl, trained_model=True) for flag in (False, True))
    values = bound(plain, x, draws), bound(doubly, x, draws)
    torch.testing.assert_close(*values)
    gradients = [gradient(value.mean(), list(iwae.model.decoder.parameters())) for value, iwae in zip(values, (plain, doubly), strict=True)]
    torch.testing.assert_close(*gradients)


@FAMILIES
def test_one_sample_gives_the_path_derivative(make_posterior):
    posterior, x, draws = make_posterior().double(), observations(4).double(), Draws(3)
    iwae, parameters = objective(posterior, 1, doubly=True), list(posterior.parameters())
    path = posterior.latent_path(posterior.encode(x), 1, draws)
    path_derivative = -(iwae.model.log_joint(x, path[-1]) + posterior.frozen_log_ratio(x, path)).mean()
    torch.testing.assert_close(gradient(bound(iwae, x, draws).mean(), parameters), gradient(path_derivative, parameters))


def test_squared_weights_by_hand():
    posterior, x, draws = gaussian_posterior().double(), observations(3).double(), Draws(3)
    iwae, kl = objective(posterior, 4, doubly=True, kl=0.3), 0.3
    mean, log_var = posterior.encoder(x).chunk(2, -1)
    z = posterior.sample(x, 4, draws).z
    fixed = Normal(mean.detach(), (0.5 * log_var).exp().detach())
    leaf = z.detach().requires_grad_()
    log_w = iwae.model.log_likelihood(x, leaf) + kl * (Normal(0.0, 1.0).log_prob(leaf) - fixed.log_prob(leaf)).sum(-1)
    (slope,) = torch.autograd.grad(log_w.sum(), leaf)
    weight = torch.softmax(log_w, 0).detach()
    # d log mean w / d phi, with the score's share kl of each log-weight reparametrised once more (w^2 at kl = 1).
    signal = ((1 - kl) * weight + kl * weight**2).unsqueeze(-1) * slope
    parameters = list(posterior.parameters())
    torch.testing.assert_close(gradient(bound(iwae, x, draws).sum(), parameters), gradient(-(signal * z).sum(), parameters))


@FAMILIES
@pytest.mark.parametrize("kl", [0.3, 1.0])
def test_same_expectation_as_the_plain_gradient(make_posterior, kl):
    posterior, x = make_posterior(), observations(1)
    parameters, rows, parts = list(posterior.parameters()), 400, 60
    plain, doubly = objective(posterior, 4, False, kl), objective(posterior, 4, True, kl)
    # Rows of one batch that hold the same example are independent draws of the estimator; the same draws for both make their difference quiet.
    differences = torch.stack(
        [
            gradient(bound(plain, x.expand(rows, -1), Draws(5, part * rows)).mean(), parameters)
            - gradient(bound(doubly, x.expand(rows, -1), Draws(5, part * rows)).mean(), parameters)
            for part in range(parts)
        ]
    ).double()
    error = differences.std(0) / parts**0.5
    moving = error > 1e-9
    assert moving.sum() >= 4
    scores = (differences.mean(0) / error)[moving]
    assert scores.abs().max() < 4
    # Summed over coordinates too, to detect a small bias in all of them.
    assert scores.square().mean() < 2


def test_less_noise_than_the_plain_gradient_near_the_optimum():
    posterior, x = gaussian_posterior(), observations(1).expand(64, -1)
    optimum = torch.optim.Adam(posterior.parameters(), lr=3e-2)
    for step in range(150):
        optimum.zero_grad()
        bound(objective(posterior, 8, True), x, Draws(1, step * 64)).mean().backward()
        optimum.step()
    parameters = list(posterior.parameters())
    spread = [
        torch.stack([gradient(bound(objective(posterior, 8, flag), x, Draws(2, part * 64)).mean(), parameters) for part in range(40)]).var(0).sum()
        for flag in (False, True)
    ]
    assert spread[1] < 0.7 * spread[0]


def test_refuses_a_learned_schedule():
    posterior = diffusion_posterior(learn_schedule=True)
    with pytest.raises(InputError, match=r"^learn_schedule: expected false with doubly reparametrised gradients[^\n]*$"):
        bound(objective(posterior, 2, doubly=True), observations(2), Draws(0))
    assert bound(objective(posterior, 2), observations(2), Draws(0)).isfinite().all()


def test_refuses_no_samples_and_no_density():
    with pytest.raises(InputError, match=r"^num_samples: expected at least 1, got 0"):
        objective(gaussian_posterior(), 0)
    with pytest.raises(InputError, match=r"^posterior: expected one with a density"):
        objective(diffusion_posterior(eta=0.0), 2)
