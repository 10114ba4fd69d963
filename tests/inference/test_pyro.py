"""The guide in Pyro's SVI, on a model whose posterior is known by quadrature."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch

import ddvi_fast.pyro
from ddvi_fast import InputError
from ddvi_fast.inference import Architecture

needs_pyro = pytest.mark.skipif(find_spec("pyro") is None, reason="Pyro is not installed (pip install 'ddvi-fast[pyro]')")
X = torch.tensor([1.2, 0.4, 2.0, 1.1])


def exact() -> tuple[float, float, float]:
    """Minus the log evidence, and the posterior means of `mu` and `scale`."""
    from torch.distributions import Gamma, Normal

    mu, scale = torch.linspace(-6, 8, 701).double(), torch.linspace(0.005, 15, 3000).double()
    prior = Normal(0, 2).log_prob(mu).unsqueeze(1) + Gamma(torch.tensor(2.0), torch.tensor(2.0)).log_prob(scale)
    joint = prior + Normal(mu[:, None, None], scale[None, :, None]).log_prob(X.double()).sum(-1)
    weights = joint.flatten().softmax(0).view_as(joint)
    log_cell = math.log(float((mu[1] - mu[0]) * (scale[1] - scale[0])))
    return -float(joint.flatten().logsumexp(0)) - log_cell, float((weights.sum(1) * mu).sum()), float((weights.sum(0) * scale).sum())


def model(x):
    import pyro
    from pyro import distributions as dist

    mu, scale = pyro.sample("mu", dist.Normal(0.0, 2.0)), pyro.sample("scale", dist.Gamma(2.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)


@pytest.fixture
def store():
    """Pyro's parameters and seeds are global."""
    import random

    import numpy as np
    import pyro

    states = random.getstate(), np.random.get_state()
    validates = torch.distributions.Distribution._validate_args
    with torch.random.fork_rng():
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        yield pyro
        pyro.clear_param_store()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.distributions.Distribution.set_default_validate_args(validates)


@needs_pyro
def test_the_loss_comes_near_the_evidence_and_draws_near_the_posterior(store) -> None:
    from pyro.infer import SVI, Predictive, Trace_ELBO

    guide = ddvi_fast.pyro.AutoDDVI(model, architecture=Architecture(num_steps=8))
    svi = SVI(model, guide, store.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.995}), Trace_ELBO(num_particles=32, vectorize_particles=True))
    losses = [svi.step(X) for _ in range(500)]
    evidence, mu, scale = exact()
    assert -0.05 < sum(losses[-100:]) / 100 - evidence < 0.5
    draws = Predictive(guide, num_samples=4000, parallel=True)(X)
    assert abs(float(draws["mu"].mean()) - mu) < 0.2 and abs(float(draws["scale"].mean()) - scale) < 0.2
    assert {name.split("$$$")[0] for name in store.get_param_store()} == {"AutoDDVI.chain", "AutoDDVI.ellipsoid"}


@needs_pyro
def test_one_particle_and_many_estimate_the_same_loss(store) -> None:
    from pyro.infer import Trace_ELBO

    guide = ddvi_fast.pyro.AutoDDVI(model, architecture=Architecture(num_steps=4))
    guide(X)
    many = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1).loss(model, guide, X)
    single = torch.tensor([Trace_ELBO().loss(model, guide, X) for _ in range(300)])
    assert abs(float(single.mean()) - many) < 4 * float(single.std()) * (1 / math.sqrt(300) + 1 / math.sqrt(2000))


@needs_pyro
def test_draws_follow_the_seed_of_pyro(store) -> None:
    guide = ddvi_fast.pyro.AutoDDVI(model, architecture=Architecture(num_steps=4))
    guide(X)
    store.set_rng_seed(3)
    one = guide(X)["mu"]
    other = guide(X)["mu"]
    store.set_rng_seed(3)
    assert torch.equal(guide(X)["mu"], one) and not torch.equal(one, other)


@needs_pyro
def test_the_density_of_a_foreign_value_is_refused(store) -> None:
    guide = ddvi_fast.pyro.AutoDDVI(model, architecture=Architecture(num_steps=4))
    guide(X)
    posterior = guide.get_posterior()
    value = posterior.rsample((5,))
    assert posterior.log_prob(value).shape == (5,)
    with pytest.raises(InputError, match="value: expected the last sample"):
        posterior.log_prob(value + 1)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="AutoDDVX"):
        ddvi_fast.pyro.AutoDDVX  # noqa: B018 - whether it is there
