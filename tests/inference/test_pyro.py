"""The guide in Pyro's SVI, on a model whose posterior is known by quadrature."""

from __future__ import annotations

import io
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
    assert {name.split("$$$")[0] for name in store.get_param_store()} == {"AutoDDVI.chain"}


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


def three():
    import pyro
    from pyro import distributions as dist

    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.LogNormal(0.0, 1.0))
    pyro.sample("z", dist.Dirichlet(torch.ones(3)))


@needs_pyro
def test_an_untrained_guide_has_the_initial_location_as_median_and_the_initial_scale(store) -> None:
    initial = {"x": torch.tensor(0.7), "y": torch.tensor(2.5), "z": torch.tensor([0.2, 0.5, 0.3])}
    for scale in (0.3, 1e-4, 1e-8):
        guide = ddvi_fast.pyro.AutoDDVI(three, init_loc_fn=lambda site: initial[site["name"]], init_scale=scale)
        guide()
        median = guide.median()
        assert all(torch.allclose(median[name], initial[name], atol=1e-6) for name in initial)
        assert 0.9 < float(guide._loc_scale()[1].square().mean().sqrt()) / scale < 1.1


@needs_pyro
def test_quantiles_are_those_of_the_samples(store) -> None:
    from pyro.infer import Predictive

    guide = ddvi_fast.pyro.AutoDDVI(three, init_scale=0.5)
    guide()
    with torch.no_grad():
        for change in guide.chain.changes.values():
            change.copy_(torch.randn_like(change))
    found, draws = guide.quantiles([0.1, 0.5, 0.9]), Predictive(guide, num_samples=20_000, parallel=True)()
    for name in ("x", "y"):
        expected = torch.quantile(draws[name].flatten(), torch.tensor([0.1, 0.5, 0.9]))
        assert torch.allclose(found[name].flatten(), expected, atol=0.03 * float(draws[name].std()) * 2)
        assert torch.equal(found[name][1], guide.median()[name])
    posterior = guide.get_posterior()
    with torch.no_grad():
        values = posterior.rsample((20_000,))
        assert posterior.variance.shape == (4,)
        assert torch.allclose(posterior.variance, values.var(0), rtol=0.06)
        assert ((posterior.mean - values.mean(0)).abs() < 4 * (values.var(0) / 10_000).sqrt()).all()


@needs_pyro
@pytest.mark.parametrize("traced", [False, True])
def test_a_gaussian_posterior_is_found_exactly(store, traced) -> None:
    from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO

    def correlated(data):
        from pyro import distributions as dist

        x = store.sample("x", dist.Normal(0.0, 1.0))
        y = store.sample("y", dist.Normal(x, 1.0))
        store.sample("data", dist.Normal(y, 1.0), obs=data)

    data, steps = torch.tensor(1.5), 40 if traced else 250
    options = {"num_particles": 50, "vectorize_particles": True, "max_plate_nesting": 0}
    elbo = JitTrace_ELBO(**options, ignore_jit_warnings=True) if traced else Trace_ELBO(**options)
    guide = ddvi_fast.pyro.AutoDDVI(correlated, architecture=Architecture(num_steps=4))
    optimizer = store.optim.ClippedAdam({"lr": 0.05, "lrd": 0.1 ** (1 / steps)})
    svi = SVI(correlated, guide, optimizer, elbo)
    losses = [svi.step(data) for _ in range(steps)]
    if traced:  # the trace draws new noise in each step, so that the loss of one step is not that of another
        assert len(set(losses)) == steps and losses[-1] < losses[0]
        return
    exact = -float(torch.distributions.Normal(0.0, math.sqrt(3)).log_prob(data))
    with torch.no_grad():
        final = torch.tensor([elbo.loss(correlated, guide, data) for _ in range(20)])
    assert -4 * float(final.std()) / math.sqrt(20) < float(final.mean()) - exact < 0.02
    deviations = guide._loc_scale()[1]
    assert torch.allclose(deviations, torch.tensor([2 / 3, 2 / 3]).sqrt(), rtol=0.06)


@needs_pyro
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_traced_guide_can_be_saved(store) -> None:
    guide = ddvi_fast.pyro.AutoDDVI(three, architecture=Architecture(num_steps=4))
    guide()
    traced = torch.jit.trace_module(guide, {"call": ()}, check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    store.set_rng_seed(5)
    expected = guide.call()
    store.set_rng_seed(5)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(loaded.call(), expected, strict=True))
    assert {name for name, _ in loaded.named_parameters()} == {name for name, _ in guide.named_parameters()}


@needs_pyro
@pytest.mark.parametrize("options, message", [
    ({"init_scale": 0.0}, "init_scale: expected"),
    ({"architecture": Architecture(family="gaussian")}, "architecture: expected family=diffusion without informed_steps"),
    ({"architecture": Architecture(informed_steps=4)}, "architecture: expected family=diffusion without informed_steps"),
])  # fmt: skip
def test_settings_that_a_guide_cannot_use_are_refused(store, options, message) -> None:
    with pytest.raises(InputError, match=message):
        ddvi_fast.pyro.AutoDDVI(three, **options)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="AutoDDVX"):
        ddvi_fast.pyro.AutoDDVX  # noqa: B018 - whether it is there
