"""Fits of models whose posterior is known."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, MultivariateNormal, Normal, Poisson, constraints

from ddvi_fast import InputError, fit_posterior, likelihoods, models, networks, priors
from ddvi_fast.inference import Architecture, Model, Training
from ddvi_fast.rng import Draws

FAMILIES = [pytest.param("flow", marks=pytest.mark.skipif(find_spec("zuko") is None, reason="zuko is not installed")), "gaussian"]
SMALL = Architecture(num_steps=8, hidden=(32,), context_dim=8)
QUICK = Training(steps=300, batch_size=128)


class Regression:
    """Two weights ~ N(0, I), data their sums and differences with noise of deviation 0.5: the posterior is Gaussian."""

    design, noise = torch.tensor([[1.0, 0.5], [0.2, -1.0], [1.0, 1.0]]), 0.5

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        return Normal(0, 1).log_prob(z).sum(-1) + Normal(z @ self.design.T, self.noise).log_prob(x).sum(-1)

    def simulate(self, n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 2)
        return z, z @ self.design.T + self.noise * torch.randn(n, 3)

    def exact(self, x: Tensor) -> MultivariateNormal:
        precision = torch.eye(2) + self.design.T @ self.design / self.noise**2
        return MultivariateNormal(torch.linalg.solve(precision, self.design.T @ x / self.noise**2), precision_matrix=precision)

    def log_evidence(self, x: Tensor) -> float:
        return float(MultivariateNormal(torch.zeros(3), self.design @ self.design.T + self.noise**2 * torch.eye(3)).log_prob(x))


X = torch.tensor([1.0, -0.6, 0.3])


def test_a_density_alone_gives_the_posterior_of_one_data_set() -> None:
    model = Regression()
    posterior = fit_posterior(Model(log_joint=model.log_joint), X, dim=2, architecture=SMALL, training=QUICK)
    weighted, exact = posterior.importance_sample(5000), model.exact(X)
    assert abs(weighted.log_evidence - model.log_evidence(X)) < 0.02
    assert 0 <= weighted.log_evidence - weighted.elbo < 0.05 and weighted.effective_sample_size > 3500
    draws = posterior.sample(20_000)
    torch.testing.assert_close(draws.mean(0), exact.mean, rtol=0, atol=0.06)
    torch.testing.assert_close(draws.T.cov(), exact.covariance_matrix, rtol=0, atol=0.05)


@pytest.mark.parametrize("objective", ["simulations", "both"])
def test_simulations_give_the_posterior_of_any_data(objective: str) -> None:
    model = Regression()
    posterior = fit_posterior(model, objective=objective, architecture=SMALL, training=Training(steps=600, batch_size=128))
    for x in (X, torch.tensor([-0.5, 0.8, -1.0])):
        draws, exact = posterior.sample(20_000, x), model.exact(x)
        torch.testing.assert_close(draws.mean(0), exact.mean, rtol=0, atol=0.15)
        torch.testing.assert_close(draws.T.cov(), exact.covariance_matrix, rtol=0, atol=0.12)
    assert "bound" in objective or posterior.diagnostics(300, 99).calibrated(errors=6)
    assert abs(posterior.importance_sample(5000, X).log_evidence - model.log_evidence(X)) < 0.1


def test_a_constrained_parameter_follows_its_conjugate_posterior() -> None:
    counts = torch.tensor([3.0, 5.0, 1.0])
    model = Model(log_joint=lambda x, z: Gamma(2, 1).log_prob(z["rate"]) + Poisson(z["rate"].unsqueeze(-1)).log_prob(x).sum(-1))
    posterior = fit_posterior(model, counts, support={"rate": constraints.positive}, architecture=SMALL, training=QUICK)
    exact, draws = Gamma(2 + counts.sum(), torch.tensor(4.0)), posterior.sample(20_000)["rate"]
    assert draws.shape == (20_000,) and bool((draws > 0).all())
    assert abs(float(draws.mean() - exact.mean)) < 0.1 and abs(float(draws.std() / exact.stddev) - 1) < 0.1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = {"rate": exact.sample((300,))}
    assert posterior.diagnostics(num_samples=99, reference=reference).calibrated(errors=6)


def test_a_model_of_the_package_is_a_model_like_any_other() -> None:
    model = models.LatentVariableModel(priors.make("gaussian", dim=2), networks.MLP(2, [8], 4), likelihoods.make("gaussian", scale=0.5))
    x = model.simulate(5, Draws(1)).x
    posterior = fit_posterior(model, x, architecture=SMALL, training=Training(steps=20, batch_size=32))
    assert posterior.sample(3).shape == (3, 5, 2) and posterior.importance_sample(200, x[0]).log_ratios.shape == (200,)


def test_a_fit_is_a_function_of_its_seed_and_leaves_the_generators_alone() -> None:
    options = {"objective": "simulations", "architecture": SMALL, "training": Training(steps=5, batch_size=32)}
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        first = fit_posterior(Regression(), X, **options)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(1)
        again, other = fit_posterior(Regression(), X, **options), fit_posterior(Regression(), X, seed=3, **options)
    assert torch.equal(first.sample(4), again.sample(4)) and first.history == again.history
    assert not torch.equal(first.sample(4), other.sample(4))


def test_a_budget_of_simulations_is_kept() -> None:
    asked = []

    def simulate(n: int) -> tuple[Tensor, Tensor]:
        asked.append(n)
        return Regression().simulate(n)

    fit_posterior(Model(simulate=simulate), dim=2, num_simulations=500, architecture=SMALL, training=Training(steps=30, batch_size=64))
    assert asked == [500]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_to_compare_with_are_trained_alike(family: str) -> None:
    architecture, model = Architecture(family=family, width=16, hidden=(32,), context_dim=8), Regression()
    amortised = fit_posterior(model, X, objective="simulations", architecture=architecture, training=Training(steps=250, batch_size=128))
    torch.testing.assert_close(amortised.sample(5000).mean(0), model.exact(X).mean, rtol=0, atol=0.2)
    single = fit_posterior(Model(log_joint=model.log_joint), X, dim=2, architecture=architecture, training=Training(steps=100, batch_size=64))
    # Mean-field: the deviations of the conditionals, which are the inverse roots of the precision's diagonal.
    precision = model.exact(X).precision_matrix
    wanted = precision.diagonal().rsqrt() if family == "gaussian" else model.exact(X).stddev
    torch.testing.assert_close(single.sample(5000).std(0), wanted, rtol=0.15, atol=0)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (object(), {}, "model: expected an object with log_joint"),
        (Model(log_joint=lambda x, z: z.sum(-1)), {}, "dim: expected the length"),
        (Model(log_joint=lambda x, z: z.sum(-1)), {"dim": 1, "objective": "simulations"}, "model: expected simulate"),
        (Model(simulate=Regression().simulate), {"objective": "both"}, "model: expected log_joint"),
        (Model(log_joint=lambda x, z: z), {"dim": 2}, "log_joint: expected values of shape"),
        (Model(log_joint=lambda x, z: z[:, 0] * math.nan), {"dim": 2}, "log_joint: expected finite"),
        (Model(simulate=lambda n: torch.zeros(n, 2)), {"dim": 2}, "simulate: expected a pair"),
        (Model(simulate=lambda n: (torch.randn(n, 2), torch.zeros(3, 2))), {}, "simulate, x: expected"),
        (Model(simulate=lambda n: (torch.randn(n, 2), torch.full((n, 2), math.inf))), {}, "simulate, x: expected finite"),
        (Model(simulate=Regression().simulate), {"x": torch.zeros(4)}, r"x: expected data of shape \[3\]"),
        (Model(simulate=Regression().simulate), {"objective": "simulation"}, "did you mean simulations"),
    ],
)
def test_what_cannot_be_fitted_is_named(model, options, message) -> None:
    with pytest.raises(InputError, match=message):
        fit_posterior(model, architecture=SMALL, training=Training(steps=2, batch_size=8), **options)
