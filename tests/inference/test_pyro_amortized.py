"""The guide that looks at the data: local latents of a hierarchical model with a known posterior, subsamples, new rows, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ddvi_fast import InputError, rng
from ddvi_fast.inference import Architecture
from ddvi_fast.inference.networks import build
from ddvi_fast.pyro.amortized import Features, LocalChain
from tests.inference.test_pyro import needs_pyro, store  # noqa: F401 - a fixture

SMALL = Architecture(num_steps=4, hidden=(16,), width=16)


def model(x: Tensor, size: int = 20):
    """mu ~ N(0, 2^2); z_i ~ N(mu, 1); x_i ~ N(z_i, 0.5^2)."""
    import pyro
    from pyro import distributions as dist

    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(x), subsample_size=min(size, len(x))) as index:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x[index])


def plate(x: Tensor, size: int = 20):
    import pyro

    return pyro.plate("rows", len(x), subsample_size=min(size, len(x)))


def test_the_gradient_for_features_is_that_of_the_density() -> None:
    """In the frame an untrained chain ignores the features: the log-density of a path depends on them through the frame's scale alone."""
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    posterior = build(SMALL, 2, Features(features.detach(), 0), 0)
    chain = LocalChain(posterior, torch.zeros(2))
    u, log_density = chain(features, rng.normal(rng.Draws(1), (5, 5, 2), rng.START))
    (found,) = torch.autograd.grad(log_density.sum(), features, retain_graph=True)
    (expected,) = torch.autograd.grad(-posterior.encode_top(features)[1].sum() / 2, features)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert u.requires_grad


def test_the_gradient_for_the_frame_is_exact_for_each_draw() -> None:
    """The chain lies in the frame, whatever its weights: the log-density of a path depends on the frame through its scale alone."""
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    posterior = build(SMALL, 2, Features(features, 0), 0)
    torch.nn.init.normal_(posterior.denoiser.last, generator=torch.Generator().manual_seed(1))
    chain = LocalChain(posterior, torch.zeros(2))
    u, log_density = chain(features, rng.normal(rng.Draws(1), (5, 5, 2), rng.START))
    bias, last = posterior.encoder.linear.layers[0].bias, posterior.denoiser.last
    of_frame, of_chain = torch.autograd.grad(log_density.sum(), (bias, last), retain_graph=True)
    torch.testing.assert_close(of_frame, torch.tensor([0.0, 0.0, -2.5, -2.5]))
    of_mean, _ = torch.autograd.grad(u.sum(), (bias, last), retain_graph=True)
    torch.testing.assert_close(of_mean[:2], torch.full((2,), 5.0))
    assert float(of_chain.abs().max()) > 0  # that of the path


@needs_pyro
def test_local_and_other_posteriors_of_a_hierarchical_model_are_found_with_subsamples(store) -> None:  # noqa: F811
    from pyro.infer import SVI, Trace_ELBO

    from ddvi_fast.pyro import AutoAmortizedDDVI

    generator = torch.Generator().manual_seed(3)
    x = 0.3 + math.sqrt(1.25) * torch.randn(40, generator=generator)
    guide = AutoAmortizedDDVI(model, lambda x, size=20: x, create_plates=plate, architecture=SMALL)
    steps = 300
    optimizer = store.optim.ClippedAdam({"lr": 0.03, "lrd": 0.05 ** (1 / steps)})
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=4, vectorize_particles=True))
    for _ in range(steps):
        svi.step(x)
    with torch.no_grad():
        draws = [guide(x, 40) for _ in range(300)]
    mu, z = torch.stack([draw["mu"] for draw in draws]), torch.stack([draw["z"] for draw in draws])
    precision = 40 / 1.25 + 1 / 4  # of mu given x: its posterior is Gaussian, as those of z are
    of_mu = precision**-0.5
    assert abs(float(mu.mean() - x.sum() / 1.25 / precision)) < 0.3 * of_mu
    assert abs(float(mu.std()) / of_mu - 1) < 0.25
    mean, deviation = (4 * x + x.sum() / 1.25 / precision) / 5, math.sqrt(1 / 5 + 1 / precision / 25)
    assert float((z.mean(0) - mean).abs().max()) < 0.1 * deviation + 4 * deviation / math.sqrt(300)
    assert abs(float((z - z.mean(0)).square().mean().sqrt()) / deviation - 1) < 0.1
    # z given mu and x is N((4 x + mu) / 5, 1 / 5): the local posteriors follow the other latents.
    slope = float(((z - z.mean(0)).mean(1) * (mu - mu.mean())).mean() / mu.var())
    assert abs(slope - 0.2) < 0.1
    new = torch.tensor([0.0, -1.0, 1.0])  # within the range of the data
    with torch.no_grad():
        found = torch.stack([guide(new, 3)["z"] for _ in range(300)])
    expected = (4 * new + mu.mean()) / 5
    assert float((found.mean(0) - expected).abs().max()) < 0.1 * math.sqrt(0.2) + 4 * math.sqrt(0.2 / 300)


@needs_pyro
def test_the_other_latents_have_the_guide_that_is_asked_for(store) -> None:  # noqa: F811
    from pyro.infer import SVI, Trace_ELBO
    from pyro.infer.autoguide import AutoNormal

    from ddvi_fast.pyro import AutoAmortizedDDVI

    guide = AutoAmortizedDDVI(model, lambda x, size=20: x, create_plates=plate, global_guide=AutoNormal, architecture=SMALL)
    svi = SVI(model, guide, store.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(torch.ones(40))
    before = float(guide.guide.locs.mu.detach())
    svi.step(torch.ones(40))
    assert isinstance(guide.guide, AutoNormal) and float(guide.guide.locs.mu.detach()) != before


@needs_pyro
def test_constrained_and_vector_latents_of_a_plate(store) -> None:  # noqa: F811
    from pyro import distributions as dist
    from pyro.infer import SVI, Trace_ELBO

    from ddvi_fast.pyro import AutoAmortizedDDVI

    def rates(x: Tensor):
        with store.plate("rows", len(x)):
            rate = store.sample("rate", dist.Gamma(2.0, 1.0))
            weights = store.sample("weights", dist.Dirichlet(torch.ones(3)))
            store.sample("x", dist.Normal(rate.unsqueeze(-1) * weights, 1.0).to_event(1), obs=x)

    embedding = torch.nn.utils.skip_init(torch.nn.Linear, 3, 2)
    torch.nn.init.constant_(embedding.weight, 0.1), torch.nn.init.zeros_(embedding.bias)
    guide = AutoAmortizedDDVI(rates, lambda x: x, embedding=embedding, architecture=SMALL)
    svi = SVI(rates, guide, store.optim.Adam({"lr": 1e-3}), Trace_ELBO(num_particles=3, vectorize_particles=True))
    before = embedding.weight.detach().clone()
    assert all(math.isfinite(svi.step(torch.ones(5, 3))) for _ in range(3)) and not torch.equal(before, embedding.weight)
    draw = guide(torch.ones(7, 3))
    assert draw["rate"].shape == (7,) and draw["weights"].shape == (7, 3) and bool((draw["rate"] > 0).all())
    torch.testing.assert_close(draw["weights"].sum(-1), torch.ones(7))


@needs_pyro
def test_models_and_settings_that_do_not_fit_are_named(store) -> None:  # noqa: F811
    from ddvi_fast.pyro import AutoAmortizedDDVI

    with pytest.raises(InputError, match="architecture: expected family=diffusion without informed_steps"):
        AutoAmortizedDDVI(model, lambda x: x, architecture=Architecture(family="gaussian"))
    with pytest.raises(InputError, match="model: expected latents in one plate of dimension -1, got 'none'"):
        AutoAmortizedDDVI(lambda x: store.sample("mu", store.distributions.Normal(0.0, 1.0)), lambda x: x)(torch.ones(3))
    with pytest.raises(InputError, match="inputs: expected 40 rows, or 20 of a subsample"):
        AutoAmortizedDDVI(model, lambda x: x[:7], create_plates=plate, architecture=SMALL)(torch.ones(40))
