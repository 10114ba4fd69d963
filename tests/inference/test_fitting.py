"""Fits of models whose posterior is known."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, MultivariateNormal, Normal, Poisson, biject_to, constraints

from ddvi_fast import InputError, fit_posterior, likelihoods, models, networks, priors
from ddvi_fast.inference import Architecture, Model, Support, Training, load
from ddvi_fast.rng import Draws

FAMILIES = [pytest.param("flow", marks=pytest.mark.skipif(find_spec("zuko") is None, reason="zuko is not installed")), "gaussian"]
SMALL = Architecture(num_steps=8, hidden=(32,), context_dim=8)
SINGLE = Architecture(num_steps=8)  # for one data set there is nothing to encode
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
    posterior = fit_posterior(Model(log_joint=model.log_joint), X, dim=2, architecture=SINGLE, training=QUICK)
    weighted, exact = posterior.importance_sample(5000), model.exact(X)
    assert abs(weighted.log_evidence - model.log_evidence(X)) < 0.02
    assert 0 <= weighted.log_evidence - weighted.elbo < 0.05 and weighted.effective_sample_size > 3500
    draws = posterior.sample(20_000)
    torch.testing.assert_close(draws.mean(0), exact.mean, rtol=0, atol=0.06)
    torch.testing.assert_close(draws.T.cov(), exact.covariance_matrix, rtol=0, atol=0.05)


@pytest.mark.parametrize("objective", ["simulations", "both"])
def test_simulations_give_the_posterior_of_any_data(objective: str) -> None:
    model = Regression()
    posterior = fit_posterior(model, objective=objective, architecture=SMALL, training=Training(steps=300, batch_size=128))
    for x in (X, torch.tensor([-0.5, 0.8, -1.0])):
        draws, exact = posterior.sample(20_000, x), model.exact(x)
        torch.testing.assert_close(draws.mean(0), exact.mean, rtol=0, atol=0.15)
        torch.testing.assert_close(draws.T.cov(), exact.covariance_matrix, rtol=0, atol=0.12)
    assert "bound" in objective or posterior.diagnostics(300, 99).calibrated(errors=6)
    assert abs(posterior.importance_sample(5000, X).log_evidence - model.log_evidence(X)) < 0.1


def test_a_constrained_parameter_follows_its_conjugate_posterior() -> None:
    counts = torch.tensor([3.0, 5.0, 1.0])
    model = Model(log_joint=lambda x, z: Gamma(2, 1).log_prob(z["rate"]) + Poisson(z["rate"].unsqueeze(-1)).log_prob(x).sum(-1))
    posterior = fit_posterior(model, counts, support={"rate": constraints.positive}, architecture=SINGLE, training=QUICK)
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


class Borrowing:
    """A simulator that draws from the global generators of NumPy and Python, whose density is a constant in a bounded parameter."""

    def simulate(self, n: int) -> tuple[Tensor, Tensor]:
        z = torch.tensor(np.random.rand(n, 1), dtype=torch.float32)
        return z, z + torch.tensor([[random.gauss(0.0, 1.0)] for _ in range(n)])


def test_the_seed_covers_generators_of_numpy_and_python() -> None:
    options = {"support": constraints.unit_interval, "architecture": SMALL, "training": Training(steps=4, batch_size=16)}
    before, of_python = np.random.get_state(), random.getstate()
    first = fit_posterior(Borrowing(), torch.zeros(1), **options)
    assert np.array_equal(np.random.get_state()[1], before[1]) and random.getstate() == of_python
    np.random.rand(3)
    random.random()
    again, other = fit_posterior(Borrowing(), torch.zeros(1), **options), fit_posterior(Borrowing(), torch.zeros(1), seed=1, **options)
    assert torch.equal(first.diagnostics(20, 9).ranks, again.diagnostics(20, 9).ranks)
    np.random.set_state(before)
    random.setstate(of_python)
    assert torch.equal(first.sample(9), again.sample(9)) and not torch.equal(first.sample(9), other.sample(9))


@pytest.mark.usefixtures("quick_start")
def test_a_parameter_of_which_only_its_bounds_are_known_is_uniform() -> None:
    support = {"a": constraints.real, "b": constraints.unit_interval}
    model = Model(log_joint=lambda x, z: -0.5 * z["a"].square())
    posterior = fit_posterior(model, support=support, architecture=SINGLE, training=Training(steps=20, batch_size=32))
    assert posterior.sample(5)["b"].shape == (5,)


@pytest.mark.parametrize("family", ["diffusion", "gaussian"])
def test_a_box_is_saved(family: str, tmp_path) -> None:
    low, high = torch.tensor([-1.0, 5.0]), torch.tensor([1.0, 1e3])

    def simulate(n: int) -> tuple[Tensor, Tensor]:
        z = low + (high - low) * torch.rand(n, 2)
        return z, z + torch.randn(n, 2)

    chain = {"num_steps": 4} if family == "diffusion" else {}
    options = {"architecture": Architecture(family=family, hidden=(8,), **chain), "training": Training(steps=3, batch_size=16)}
    posterior = fit_posterior(Model(simulate=simulate), torch.zeros(2), support=constraints.interval(low, high), **options)
    again = load(posterior.save(tmp_path / "kept"))
    assert torch.equal(again.sample(7), posterior.sample(7))
    assert bool(((posterior.sample(500) >= low) & (posterior.sample(500) <= high)).all())


@pytest.mark.usefixtures("quick_start")
def test_a_support_that_cannot_be_saved_is_told_before_the_training() -> None:
    class Odd(constraints.Constraint):
        def check(self, value):
            return value == value

    biject_to.register(Odd, lambda kind: biject_to(constraints.real))
    with pytest.warns(UserWarning, match="support, w: cannot be saved"):
        fit_posterior(
            Model(log_joint=lambda x, z: -0.5 * z["w"].square()), support={"w": Odd()}, architecture=SINGLE, training=Training(steps=1, batch_size=4)
        )


@contextmanager
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def meta_by_default() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.usefixtures("quick_start")
@pytest.mark.parametrize("state", [double_by_default, meta_by_default, torch.no_grad, torch.inference_mode, autocast])
@pytest.mark.parametrize("family", ["diffusion", "gaussian"])
def test_states_of_torch_change_nothing(state, family: str, tmp_path) -> None:
    chain, context = ({"num_steps": 4, "width": 8}, {"context_dim": 4}) if family == "diffusion" else ({}, {})
    options = {"architecture": Architecture(family=family, hidden=(8,), **chain, **context), "training": Training(steps=8, batch_size=32)}

    def simulate(n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 2, dtype=torch.float32, device="cpu")
        return z, z + torch.randn(n, 2, dtype=torch.float32, device="cpu")

    def density(x: Tensor, z: Tensor) -> Tensor:
        return -0.5 * z.square().sum(-1) - 0.5 * (x - z).square().sum(-1)

    single = {"dim": 2, "architecture": Architecture(family, **chain)}
    cases = [(Model(simulate=simulate), {}), (Model(simulate=simulate, log_joint=density), {}), (Model(log_joint=density), single)]
    x = torch.ones(2)
    for number, (model, more) in enumerate(cases):
        usual = fit_posterior(model, x, **options | more)
        with state():
            other = fit_posterior(model, torch.ones(2, dtype=torch.float32, device="cpu"), **options | more)
            draws, again = other.sample(5), load(other.save(tmp_path / str(number))).sample(5)
        assert torch.equal(usual.sample(5), other.sample(5)) and torch.equal(draws, usual.sample(5)) and torch.equal(again, draws)
        assert draws.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Training(steps=True), "steps: expected an integer"),
        (lambda: Training(batch_size=0), "batch_size: expected an integer of at least 1"),
        (lambda: Training(lr=-1.0), "lr: expected"),
        (lambda: Architecture(width=0), "width: expected an integer of at least 1"),
        (lambda: Architecture(hidden=8), "hidden: expected a sequence of integers"),
        (lambda: Architecture(activation="silo"), "did you mean silu"),
        (lambda: fit_posterior(Model(simulate=Regression().simulate), num_simulations=1e3), "num_simulations: expected an integer"),
        (lambda: fit_posterior(Model(simulate=Regression().simulate), device="gpu"), "device: expected a device"),
        (lambda: fit_posterior(Model(simulate=Regression().simulate), embedding=torch.sin), "embedding: expected None or a torch.nn.Module"),
        (lambda: fit_posterior(Model(simulate=Regression().simulate), training=100), "training: expected a Training"),
        (lambda: fit_posterior(Model(simulate=Regression().simulate), seed=0.5), "seed: expected an integer"),
        (lambda: fit_posterior(Model(simulate=lambda n: ({"a": torch.randn(n, 1)}, torch.randn(n, 2))), support={"a": constraints.real}),
         r"simulate, z, a: expected shape \[4096\], got a float32 tensor of shape \[4096, 1\]"),
    ],
)  # fmt: skip
def test_plain_mistakes_are_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_numbers_of_numpy_are_numbers() -> None:
    made = Architecture(width=np.int64(8), hidden=np.array([8, 8])), Training(steps=np.int32(3), lr=np.float32(0.5))
    assert made == (Architecture(width=8, hidden=(8, 8)), Training(steps=3, lr=0.5)) and type(made[0].hidden[0]) is int


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.uint8])
def test_data_of_any_type_have_a_density(dtype: torch.dtype) -> None:
    """The density gets whole numbers in single precision, as its parameters, and both in double where single precision would lose data."""
    types = set()

    def simulate(n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 1)
        return z, (1e9 + z.double() + torch.randn(n, 1).double() if dtype == torch.float64 else torch.poisson(z.exp())).to(dtype)

    def density(x: Tensor, z: Tensor) -> Tensor:
        types.add((x.dtype, z.dtype))
        return (Normal(0, 1).log_prob(z) + (Normal(z, 1).log_prob(x - 1e9) if dtype == torch.float64 else Poisson(z.exp()).log_prob(x))).sum(-1)

    x = torch.tensor([1e9 + 2.25 if dtype == torch.float64 else 3.0], dtype=torch.float64).to(dtype)
    posterior = fit_posterior(Model(density, simulate), x, architecture=SMALL, training=Training(steps=4, batch_size=16))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    sample = posterior.importance_sample(200)
    assert types == {(expected, expected)}
    if dtype == torch.float64:  # p(x) = N(2.25; 0, 2)
        assert sample.log_evidence == pytest.approx(float(Normal(0, math.sqrt(2)).log_prob(torch.tensor(2.25))), abs=0.5)


def test_a_budget_of_simulations_is_kept() -> None:
    asked = []

    def simulate(n: int) -> tuple[Tensor, Tensor]:
        asked.append(n)
        return Regression().simulate(n)

    fit_posterior(Model(simulate=simulate), dim=2, num_simulations=500, architecture=SMALL, training=Training(steps=30, batch_size=64))
    assert asked == [500]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_to_compare_with_are_trained_alike(family: str) -> None:
    model, width, context = Regression(), {} if family == "gaussian" else {"width": 16}, {} if family == "gaussian" else {"context_dim": 8}
    architecture = Architecture(family=family, hidden=(32,), **width, **context)
    amortised = fit_posterior(model, X, objective="simulations", architecture=architecture, training=Training(steps=120, batch_size=128))
    torch.testing.assert_close(amortised.sample(5000).mean(0), model.exact(X).mean, rtol=0, atol=0.2)
    architecture = Architecture(family=family, **width)
    single = fit_posterior(Model(log_joint=model.log_joint), X, dim=2, architecture=architecture, training=Training(steps=60, batch_size=64))
    # Mean-field: the deviations of the conditionals, which are the inverse roots of the precision's diagonal.
    precision = model.exact(X).precision_matrix
    wanted = precision.diagonal().rsqrt() if family == "gaussian" else model.exact(X).stddev
    torch.testing.assert_close(single.sample(5000).std(0), wanted, rtol=0.15, atol=0)


@pytest.mark.parametrize(
    ("family", "sizes", "single"),
    [
        ("gaussian", {"width": 32}, False), ("gaussian", {"num_steps": 5}, False), ("gaussian", {"end": 5.0}, True),
        ("gaussian", {"time_features": 4}, True), ("gaussian", {"context_dim": 3}, False), ("flow", {"num_steps": 5}, False),
        ("flow", {"start": 0.1}, True), ("flow", {"context_dim": 3}, True), ("diffusion", {"hidden": (8,)}, True),
        ("diffusion", {"activation": "relu"}, True), ("diffusion", {"context_dim": 3}, True), ("gaussian", {"hidden": (8,)}, True),
    ],
    ids=repr,
)  # fmt: skip
def test_sizes_without_effect_are_refused_by_name(family: str, sizes: dict, single: bool, one_line) -> None:
    model = Model(log_joint=Regression().log_joint) if single else Model(simulate=Regression().simulate)
    options = {"architecture": Architecture(family=family, **sizes), "dim": 2, "training": Training(steps=1, batch_size=4)}
    (name,) = sizes
    assert "it would have no effect" in one_line(lambda: fit_posterior(model, X, **options), rf"^architecture\.{name}: expected ")


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
        (
            Model(simulate=lambda n: (torch.randn(n), torch.randn(n, 2))),
            {},
            r"simulate, z: expected parameters \[2, D\].* float32 tensor of shape \[2\]",
        ),
        (Model(simulate=lambda n: (np.zeros((n, 2)), torch.randn(n, 2))), {}, "simulate, z: expected a tensor, got .*array"),
        (Model(simulate=lambda n: (torch.randn(n), torch.randn(n, 2))), {"dim": 1}, r"simulate, z: expected .* float32 tensor of shape"),
        (Model(simulate=lambda n: ({"a": torch.randn(n)}, torch.randn(n, 2))), {}, "support: expected a mapping with a"),
        (Model(simulate=lambda n: ({"a": torch.randn(n)}, torch.randn(n, 2))), {"support": {"b": constraints.real}}, "z: expected a dictionary of b"),
        (Model(simulate=lambda n: (torch.randn(n, 2), torch.randn(n))), {}, r"simulate, x: expected 4096 rows of one number or more"),
        (Model(simulate=lambda n: (torch.randn(n, 2), np.zeros((n, 2)))), {}, "simulate, x: expected a tensor"),
        (Model(simulate=lambda n: (torch.randn(n, 2), torch.randn(n, 2) * 1j)), {}, "simulate, x: expected real numbers"),
        (Model(simulate=lambda n: (torch.randint(3, (n, 2)), torch.randn(n, 2))), {}, "simulate, z: expected a floating-point tensor"),
        (Model(simulate=lambda n: (torch.full((n, 2), math.nan), torch.randn(n, 2))), {}, "simulate, z: expected finite values, got nan at index"),
        (
            Model(simulate=lambda n: (10 * torch.rand(n, 1), torch.randn(n, 2))),
            {"support": constraints.interval(0.0, 1.0)},
            r"simulate, z: expected values in Interval.*, got \d+ of 4096 rows outside",
        ),
        (
            Model(simulate=lambda n: (torch.rand(n, 3), torch.randn(n, 2))),
            {"support": constraints.simplex},
            "simulate, z: expected values in Simplex",
        ),
        (Model(log_joint=lambda x, z: -0.5 * z.detach().square().sum(-1)), {"dim": 2}, r"log_joint: expected a gradient with respect to z\[0\]"),
        (
            Model(log_joint=lambda x, z: -0.5 * z[:, 0].square() - 0.5 * z[:, 1].detach().square()),
            {"dim": 2},
            r"log_joint: .* z\[1\], got none: it is detached",
        ),
        (Model(log_joint=lambda x, z: -0.5 * z[:, 0].square()), {"dim": 2}, r"log_joint: .* z\[1\], got none: it does not depend on it"),
        (Model(log_joint=lambda x, z: torch.from_numpy(-0.5 * z.detach().numpy() ** 2).sum(-1)), {"dim": 2}, "log_joint: expected a gradient"),
        (Model(log_joint=lambda x, z: -0.5 * z.detach().numpy() ** 2), {"dim": 2}, "log_joint: expected a tensor"),
        (
            Model(log_joint=lambda x, z: -0.5 * (x[..., :2] - z.detach()).square().sum(-1), simulate=Regression().simulate),
            {"objective": "both", "x": X},
            "log_joint: expected",
        ),
        (
            Model(log_joint=lambda x, z: -0.5 * z.square().sum(-1) - (z.detach() - 1).square().sum(-1)),
            {"dim": 2},
            r"log_joint: expected the gradient of its values, got another one at \d+% of the samples",
        ),
        (
            Model(log_joint=lambda x, z: Normal(z, 1.0).log_prob(x[..., :2].detach() + z.detach().exp()).sum(-1), simulate=Regression().simulate),
            {},
            "log_joint: expected the gradient of its values",
        ),
        (Model(log_joint=lambda x, z: -0.5 * z.square().sum(-1).half()), {"dim": 2}, "log_joint: expected values in single or double precision"),
        (Model(log_joint=Regression().log_joint), {"dim": 2, "x": X, "embedding": torch.nn.Identity()}, "embedding: expected None"),
        (Model(log_joint=Regression().log_joint), {"dim": 2, "x": X, "num_simulations": 100}, "num_simulations: expected None"),
        (Model(log_joint=lambda z: z.sum(-1)), {"dim": 2}, r"model: expected log_joint\(x, z\), got too many positional"),
        (Model(simulate=lambda: None), {}, r"model: expected simulate\(n\), got too many positional"),
        (Regression, {}, "model: expected an object with log_joint"),
        (Regression(), {"support": Support(constraints.real, 2), "dim": 3}, "dim: expected 2"),
        (Regression(), {"support": {"a": constraints.real}, "dim": 1}, "dim: expected None, for named parameters"),
        (Model(simulate=lambda n: (torch.randn(n, 2),) * 3), {}, "simulate: expected a pair .* got a tuple of 3"),
        (Model(simulate=lambda n: (torch.randn(n, 2), torch.randn(n, 1 + n % 3))), {}, "simulate, x: expected data of shape .* as before"),
        (Model(simulate=lambda n: (torch.randn(n, 2), torch.randn(n, 2).to_sparse())), {}, "simulate, x: expected a dense tensor, got a sparse_coo"),
        (Model(simulate=lambda n: (torch.randn(n, 2), torch.empty(n, 2, device="meta"))), {}, "simulate, x: expected a tensor with values"),
        (Model(simulate=lambda n: (1e-200 * torch.randn(n, 2).double(), torch.randn(n, 2))), {}, r"simulate, z: .* z\[0\], z\[1\] beyond"),
        (Model(simulate=lambda n: (1e200 * torch.randn(n, 2).double(), torch.randn(n, 2))), {}, "parameters that single precision holds"),
        (Model(simulate=lambda n: (1e-40 * torch.rand(n, 2).double(), torch.randn(n, 2))), {"support": constraints.unit_interval}, "use other units"),
        (Regression(), {"x": torch.zeros(0, 3)}, "x: expected at least one row"),
        (Model(simulate=Regression().simulate), {"x": torch.zeros(4)}, r"x: expected data of shape \[3\]"),
        (Model(simulate=Regression().simulate), {"objective": "simulation"}, "did you mean simulations"),
    ],
)
def test_what_cannot_be_fitted_is_named(model, options, message) -> None:
    with pytest.raises(InputError, match=message):
        fit_posterior(model, architecture=SINGLE, training=Training(steps=2, batch_size=8), **options)
