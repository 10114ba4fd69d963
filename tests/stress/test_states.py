"""Unusual states of torch: results are those of the usual state, on the CPU, in their type, and what was made in them can be trained."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ddvi_fast import (
    denoisers,
    evidence,
    gap,
    likelihoods,
    metrics,
    models,
    networks,
    objectives,
    ops,
    posteriors,
    priors,
    schedules,
)
from ddvi_fast.parity import normals
from ddvi_fast.rng import Draws
from tests.linear_gaussian import make_model, observations
from tests.posteriors.families import ALL
from tests.stress.settings import AUTOCAST, STATES

X = normals(3, 6, 5).sigmoid()


def _model() -> models.LatentVariableModel:
    return models.LatentVariableModel(priors.make("pinwheel"), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))


def _gaussian() -> posteriors.Posterior:
    return posteriors.Gaussian(networks.MLP(5, [8], 4), latent_dim=2)


def _chain() -> posteriors.Posterior:
    return posteriors.Diffusion(networks.MLP(5, [8], 7), denoisers.ResidualMLP(2, 3, 4, 8), schedules.make("cosine", 4))


def _prior(prior: priors.Prior) -> list[Tensor]:
    z = prior.sample(4)
    densities = [prior.log_prob(z), prior.blurred(0.1).log_prob(z), prior.log_prob_kde(z, 30)] if prior.has_density else []
    pushed = [prior.push(X[:, : prior.noise_dim], None if prior.num_classes is None else torch.arange(6, device="cpu") % 2)]
    return [z, prior.integration_nodes(4)[0], *pushed, *densities]


def _operations() -> list[Tensor]:
    rows, t, schedule = X[:, :2], torch.arange(6, device="cpu") % 4, schedules.make("cosine", 4)
    reductions = [ops.gaussian_kl(rows, rows), ops.gaussian_log_likelihood(rows, rows, 0.5), ops.binomial_log_likelihood(rows, rows, 2)]
    return [ops.mmd(rows, rows + 1, [1.0]), ops.kde_log_density(rows, rows, [0.5]), ops.add_noise(rows, t, schedule, draws=Draws(0))[0], *reductions]


def _metrics() -> list[Tensor]:
    model, posterior = _model(), _gaussian()
    return [
        metric(model, posterior, X) for metric in (metrics.elbo_released, lambda *of: metrics.elbo(*of, 3), lambda *of: metrics.iwae_bound(*of, 3))
    ]


def _objective(family: Callable[..., objectives.Objective]) -> list[Tensor]:
    return [family(_model(), _gaussian())(X, objectives.Progress(0, 1), Draws(0))]


def _family(make: Callable[..., posteriors.Posterior]) -> list[Tensor]:
    """Latents and weights; none of the weights where there is no density."""
    with networks.usual_defaults():
        model, x = make_model(), observations(5)
    with torch.inference_mode(False):  # copies of modules within it are the caller's
        posterior = make(model)
    sample = posterior.sample(x, 2)
    return [part for part in (sample.z, sample.log_ratio) if part is not None]


USES: dict[str, Callable[[], list[Tensor]]] = {
    **{f"posterior {make.__name__}": lambda make=make: _family(make) for make in ALL},
    **{f"prior {name}": lambda name=name: _prior(priors.make(name)) for name in ("gaussian", "mixture", "pinwheel", "square", "swiss_roll_noisy")},
    "prior centres": lambda: _prior(priors.Centres(num_centres=3, learnable=False)),
    "chain": lambda: [_chain().sample(X).z, _chain().log_weights(_model(), X)],
    "ELBO": lambda: _objective(objectives.ELBO),
    "IWAE": lambda: _objective(objectives.IWAE),
    "WAE": lambda: _objective(objectives.WAE),
    "metrics": _metrics,
    "operations": _operations,
}


@pytest.fixture(scope="module")
def usual() -> Callable[[str], list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    return lambda name: found[name] if name in found else found.setdefault(name, USES[name]())


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", USES)
def test_results_are_those_of_the_usual_state(name, state, usual):
    expected = usual(name)
    with STATES[state]():
        got = USES[name]()
    for value, wanted in zip(got, expected, strict=True):
        assert value.dtype == wanted.dtype and value.device == wanted.device
        torch.testing.assert_close(value.clone(), wanted, rtol=1e-3, atol=1e-4, equal_nan=True)


def _parts_and_evidence() -> list[Tensor]:
    """Parts of the gap and annealed evidence, with a model and a posterior made in the state."""
    parts = gap.split_gap(_model(), _gaussian(), X, resolution=40, num_samples=3)
    return [parts.evidence, parts.elbo, parts.refined, evidence.log_evidence_annealed(_model(), X, 3, 6, 2).log_evidence]


@pytest.mark.parametrize("state", STATES | AUTOCAST)
def test_the_gap_and_annealed_evidence_are_those_of_the_usual_state(state, monkeypatch):
    monkeypatch.setattr(gap, "_UPDATES", 6)
    expected = _parts_and_evidence()
    with (STATES | AUTOCAST)[state]():
        got = _parts_and_evidence()
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True)), state


def _train(objective: nn.Module, x: Tensor) -> None:
    loss = objective(x, objectives.Progress(0, 1), Draws(0))
    loss.backward()
    assert loss.isfinite() and any(parameter.grad is not None for parameter in objective.parameters())


@pytest.mark.parametrize("state", ["no_grad", "inference"])
@pytest.mark.parametrize("posterior", [_gaussian, _chain], ids=["gaussian", "chain"])
def test_what_was_made_or_used_in_a_state_can_be_trained(posterior, state):
    with STATES[state]():
        model, family = _model(), posterior()
        family.log_weights(model, X)
        model.prior.log_prob_kde(model.prior.sample(3), 30)
        model.prior.blurred(0.3)
    _train(objectives.ELBO(model, family), X)
    z = model.prior.sample(3).requires_grad_()
    model.prior.log_prob_kde(z, 30).sum().backward()
    model.prior.blurred(0.3).log_prob(z).sum().backward()
    assert z.grad.isfinite().all()


def test_threads_leave_the_default_type_as_it_was():
    """Whatever the order in which they leave, and even if the default is another one."""
    first, second = networks.usual_defaults(), networks.usual_defaults()
    with STATES["float64"]():
        first.__enter__()
        second.__enter__()
        assert torch.get_default_dtype() == torch.float32
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float64


def test_a_cached_density_follows_its_prior(forked_generator):
    prior, other = priors.Mixture(torch.zeros(1, 2)), priors.Mixture(torch.full((1, 2), 5.0))
    z = torch.zeros(1, 2)
    prior.log_prob_kde(z, 100)
    prior.load_state_dict(other.state_dict())
    assert torch.equal(prior.log_prob_kde(z, 100), other.log_prob_kde(z, 100))
    learned = priors.Mixture(torch.zeros(1, 2), learnable=True)
    learned.log_prob_kde(z, 100)
    copy.deepcopy(learned)
