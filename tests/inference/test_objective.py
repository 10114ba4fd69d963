"""Objectives of `fit_posterior`: the evidence bound, its mass-covering term, timesteps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, constraints

from ddvi_fast import fit_posterior, rng
from ddvi_fast.inference import Architecture, Model, Support, Training
from ddvi_fast.inference.model import Simulator
from ddvi_fast.inference.networks import Observation, build
from ddvi_fast.inference.objective import COVERING, EvidenceBound, FrameFit, Simulated, even_timesteps
from ddvi_fast.inference.whitening import Whitening
from ddvi_fast.objectives import Progress
from ddvi_fast.posteriors import Gaussian
from ddvi_fast.rng import Draws

CORRELATED = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))


class Free(nn.Module):
    """Encoder with free mean and log-variance, without data as input."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([0.3, -0.2, -0.5, 0.1]))

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return self.values.expand(len(x), 4)


class Density:
    """A model of two correlated coordinates."""

    def log_joint(self, x: None, y: Tensor) -> Tensor:
        return CORRELATED.log_prob(y)


def terms(fraction: float) -> tuple[Gaussian, object]:
    posterior = Gaussian(Free(), 2)
    (update,) = EvidenceBound(posterior, Density(), None, 50).updates(torch.zeros(1, 1), Progress(fraction, 1), Draws(4))
    return posterior, update.terms()


def test_the_bound_alone_comes_first():
    assert list(terms(0.4)[1].values) == ["bound"] and list(terms(0.5)[1].values) == ["bound", COVERING]


def test_the_covering_term_is_the_weighted_fit_to_ones_own_samples():
    posterior, found = terms(0.7)
    found.values[COVERING].mean().backward()
    mean, log_var = posterior.encoder.values.detach().double().split(2)
    noise = rng.normal(Draws(4), (50, 1, 2), rng.START)[:, 0].double()
    y = mean + torch.exp(log_var / 2) * noise
    log_q = -0.5 * (noise.square() + log_var + math.log(2 * math.pi)).sum(1)
    weights = torch.exp(CORRELATED.log_prob(y.float()).double() - log_q)
    shares = weights / weights.sum() - 1 / 50  # equal weights carry nothing
    # d(-log N) by mean and log-variance, by hand.
    by_mean = -(shares[:, None] * (y - mean) / log_var.exp()).sum(0)
    by_log_var = (shares[:, None] * 0.5 * (1 - noise.square())).sum(0)
    torch.testing.assert_close(posterior.encoder.values.grad.double(), torch.cat((by_mean, by_log_var)), rtol=1e-4, atol=1e-5)
    effective = float(weights.sum() ** 2 / weights.square().sum() / 50)
    assert abs(float(found.weights[COVERING]) - effective) < 1e-4


def test_the_covering_term_of_an_exact_posterior_has_no_gradient():
    class Own:
        """The density of the posterior's own Gaussian."""

        def log_joint(self, x: None, y: Tensor) -> Tensor:
            mean, log_var = Free().values.detach().split(2)
            return Normal(mean, torch.exp(0.5 * log_var)).log_prob(y).sum(-1)

    posterior = Gaussian(Free(), 2)
    (update,) = EvidenceBound(posterior, Own(), None, 50).updates(torch.zeros(1, 1), Progress(0.7, 1), Draws(4))
    update.terms().values[COVERING].mean().backward()
    assert float(posterior.encoder.values.grad.abs().max()) < 1e-5


def test_the_covering_term_widens_the_posterior():
    """Mean field of a correlated density: the bound alone gives 0.64 of the variance, a forward KL all of it."""
    target = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.6], [0.6, 1.0]]))
    model = Model(log_joint=lambda x, z: target.log_prob(z))
    fitted = fit_posterior(model, dim=2, architecture=Architecture(family="gaussian"), training=Training(steps=250, batch_size=128, lr=0.02))
    assert 0.68 < float(fitted.sample(5000).var(0).mean()) < 1.0


def simulate(n: int) -> tuple[Tensor, Tensor]:
    z = torch.randn(n, 2)
    return z, z + 0.5 * torch.randn(n, 2)


def simulated(objective: type, family: str = "diffusion", seed: int = 5, bent: bool = True) -> tuple:
    """A posterior, the terms of an objective on simulations, and their standardized parameters and data. `bent`: with random weights."""
    simulator, draws = Simulator(Model(simulate=simulate), Support(constraints.real, 2)), Draws(seed)
    u, x = simulator.take(40, draws)
    posterior = build(Architecture(family=family, num_steps=4), 2, Observation.of(x, None), 0)
    if family == "diffusion" and bent:
        with torch.no_grad():
            posterior.denoiser.last.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    whitening = Whitening.of(u)
    made = objective(posterior, whitening, simulator, 40)
    (update,) = made.updates(torch.zeros(1, 1), Progress(0, 1), draws)
    return posterior, update.terms(), whitening.inverse(u), x


def test_the_frame_is_the_gaussian_of_the_encoder() -> None:
    posterior, found, u, x = simulated(FrameFit)
    mean, log_var = posterior.encoder(x).chunk(2, -1)
    torch.testing.assert_close(found.values["frame"], -Normal(mean, torch.exp(log_var / 2)).log_prob(u).sum(-1))


def test_the_chain_is_fitted_in_the_frame_and_does_not_move_it() -> None:
    posterior, found, u, x = simulated(Simulated)
    assert list(found.values) == ["chain", "start"]
    encoded = posterior.encode(x)
    scale = torch.exp(encoded.log_var / 2)
    v, t = (u - encoded.mean) / scale, even_timesteps(Draws(5), 40, 4, u.device)
    torch.testing.assert_close(found.values["chain"], posterior.step_divergence(encoded.context, v, t, Draws(5)))
    found.total().backward()
    assert all(parameter.grad is None for parameter in posterior.encoder.parameters())
    assert all(parameter.grad is not None for parameter in posterior.context_encoder.parameters())


def test_the_loss_of_an_untrained_chain_is_that_of_the_frame() -> None:
    """With zero output the chain reverses a stationary process, and the terms are minus the log-density of the frame plus the noising's entropy."""
    losses = []
    for seed in range(60):
        posterior, found, u, x = simulated(Simulated, seed=seed, bent=False)
        mean, log_var = posterior.encoder(x).chunk(2, -1)
        schedule = posterior.schedule
        variances = torch.cat((schedule.posterior_variances[1:], schedule.noise_variances[-1:]))
        # Of r(y_T | y_0), and of r(y_{t-1} | y_t, y_0) for t >= 2, in 2 dimensions.
        entropy = float(torch.log(2 * math.pi * math.e * variances).sum())
        exact = entropy - Normal(mean, torch.exp(log_var / 2)).log_prob(u).sum(-1)
        losses.append(float((found.total() - exact.mean()).detach()))
    losses = torch.tensor(losses)
    assert abs(float(losses.mean())) < 4 * float(losses.std()) / math.sqrt(60)


def test_the_other_families_are_fitted_by_their_density() -> None:
    posterior, found, u, x = simulated(Simulated, "gaussian")
    mean, log_var = posterior.encoder(x).chunk(2, -1)
    assert list(found.values) == ["density"]
    torch.testing.assert_close(found.values["density"], -Normal(mean, torch.exp(log_var / 2)).log_prob(u).sum(-1))


def test_timesteps_are_even_over_the_chain_and_uniform():
    t = torch.stack([even_timesteps(Draws(seed), 30, 7, torch.device("cpu")) for seed in range(2000)])
    counts = torch.stack([(t == step).sum(1) for step in range(7)], 1)
    assert counts.sum() == 30 * 2000 and int(counts.min()) >= 3 and int(counts.max()) <= 6  # 30 / 7 is 4.3: never off by more than two
    assert ((counts.double().mean(0) - 30 / 7).abs() < 4 * counts.double().std(0) / 2000**0.5).all()
