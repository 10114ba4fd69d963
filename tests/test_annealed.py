"""Tests of annealed importance sampling against closed forms and quadrature."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from ddvi_fast import likelihoods, priors
from ddvi_fast.evidence import log_evidence_annealed, log_evidence_quadrature
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.rng import Draws
from tests.linear_gaussian import exact_evidence, make_model, observations

SCALE = 0.5


def wide_model(dim: int = 20, data_dim: int = 30) -> LatentVariableModel:
    """A linear Gaussian model with many latents."""
    model = LatentVariableModel(priors.make("gaussian", dim=dim), MLP(dim, [], data_dim, draws=Draws(3)), likelihoods.make("gaussian", scale=SCALE))
    return model.requires_grad_(False)


def wide_evidence(model: LatentVariableModel, x: torch.Tensor) -> torch.Tensor:
    layer = model.decoder.layers[0]
    weight = layer.weight.double()
    return MultivariateNormal(layer.bias.double(), weight @ weight.mT + SCALE**2 * torch.eye(len(weight), dtype=torch.float64)).log_prob(x.double())


def test_agrees_with_a_closed_form_at_two_dimensions():
    x = observations(20)
    found = log_evidence_annealed(make_model(), x, num_samples=100, num_temperatures=60, num_leapfrog=3)
    assert (found.log_evidence - exact_evidence(x)).abs().max() < 0.25
    assert (found.log_evidence - exact_evidence(x)).abs().mean() < 0.05
    assert ((found.acceptance > 0.4) & (found.acceptance < 1)).all()


def test_agrees_with_a_closed_form_at_twenty_dimensions():
    model = wide_model()
    x = model.simulate(8, Draws(5)).x
    found = log_evidence_annealed(model, x, num_samples=16, num_temperatures=150, num_leapfrog=4)
    error = found.log_evidence - wide_evidence(model, x)
    assert error.abs().max() < 0.6 and error.abs().mean() < 0.25
    assert (found.effective_samples > 3).all()


def test_the_mean_weight_is_unbiased_with_few_temperatures():
    """Three temperatures leave a large error in each logarithm, and none in the mean weight."""
    x = observations(1).expand(400, -1).contiguous()
    found = log_evidence_annealed(make_model(), x, num_samples=8, num_temperatures=4, num_leapfrog=2)
    weights = (found.log_evidence - exact_evidence(x)).double().exp()
    error = float(weights.std()) / math.sqrt(len(weights))
    assert error < 0.1 and abs(float(weights.mean()) - 1) < 4 * error


@pytest.mark.parametrize("prior", ["pinwheel", "square", "swiss_roll_noisy"])
def test_agrees_with_quadrature_under_priors_with_classes(prior):
    model = LatentVariableModel(priors.make(prior), MLP(2, [16], 6, draws=Draws(4)), likelihoods.make("bernoulli")).requires_grad_(False)
    x = model.simulate(10, Draws(6)).x
    found = log_evidence_annealed(model, x, num_samples=40, num_temperatures=30, num_leapfrog=2).log_evidence
    torch.testing.assert_close(found, log_evidence_quadrature(model, x), rtol=0, atol=0.15)


def test_a_prior_known_by_its_density_runs_in_the_latents():
    class Density(priors.Prior):
        dim = 2

        def _sample(self, n, draws, labels, device):
            return priors.make("gaussian", dim=2).sample(n, draws, device=device)

        def _log_prob(self, z, labels):
            return -0.5 * z.square().sum(-1) - math.log(2 * math.pi)

    model, x = make_model(), observations(6)
    model.prior = Density()
    found = log_evidence_annealed(model, x, num_samples=16, num_temperatures=60, num_leapfrog=3).log_evidence
    torch.testing.assert_close(found, exact_evidence(x).to(found), rtol=0, atol=0.3)


def test_rows_do_not_depend_on_each_other_and_repeat():
    x = observations(6)
    options = {"num_samples": 3, "num_temperatures": 12, "num_leapfrog": 2}
    whole = log_evidence_annealed(make_model(), x, **options).log_evidence
    part = log_evidence_annealed(make_model(), x[2:], draws=Draws(0, 2), **options).log_evidence
    torch.testing.assert_close(whole[2:], part, rtol=1e-5, atol=1e-5)
    assert torch.equal(whole, log_evidence_annealed(make_model(), x, **options).log_evidence)


def test_nan_in_a_row_stays_in_that_row():
    x = observations(3)
    x[1, 0] = math.nan
    found = log_evidence_annealed(make_model(), x, num_samples=2, num_temperatures=5, num_leapfrog=1).log_evidence
    assert found.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("argument", ["num_samples", "num_temperatures", "num_leapfrog"])
def test_sizes_are_checked(argument):
    with pytest.raises(ValueError, match=argument):
        log_evidence_annealed(make_model(), observations(2), **{argument: 0})
