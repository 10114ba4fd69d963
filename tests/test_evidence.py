"""Tests of evidence by quadrature against closed forms, and of its errors."""

import math

import pytest
import torch
from scipy.stats import binom, norm

from ddvi_fast import likelihoods, priors
from ddvi_fast.evidence import log_evidence_quadrature
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.rng import Draws
from tests.linear_gaussian import exact_evidence, make_model, observations

BOUNDS = [(-6.0, 6.0), (-6.0, 6.0)]


@pytest.mark.parametrize("bounds", [BOUNDS, None], ids=["grid", "prior nodes"])
def test_agrees_with_closed_form(bounds):
    x = observations(50)
    found = log_evidence_quadrature(make_model(), x, bounds, resolution=100)
    assert found.shape == (50,)
    assert (found - exact_evidence(x)).abs().max() < 1e-3


def test_float64_is_exact_to_rounding():
    x = observations(20).double()
    found = log_evidence_quadrature(make_model(torch.float64), x, [(-9.0, 9.0)] * 2, resolution=150)
    # W and s of the model went through float32, which leaves about 1e-7.
    assert (found - exact_evidence(x)).abs().max() < 1e-6


def test_error_falls_with_resolution():
    x = observations(20).double()
    model, exact = make_model(torch.float64), exact_evidence(x)
    errors = [float((log_evidence_quadrature(model, x, BOUNDS, n) - exact).abs().max()) for n in (6, 12, 24)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


def test_blocks_change_nothing(monkeypatch):
    x = observations(7)
    whole = log_evidence_quadrature(make_model(), x, resolution=40)
    monkeypatch.setattr("ddvi_fast.evidence._PAIRS", 7 * 13)
    torch.testing.assert_close(log_evidence_quadrature(make_model(), x, resolution=40), whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["bernoulli", "binomial", "gaussian"])
def test_all_pairs_equal_one_by_one(name):
    outputs, likelihood = torch.linspace(-2, 2, 15, dtype=torch.float64).view(5, 3), likelihoods.make(name)
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    one_by_one = torch.tensor([[likelihood.log_prob(output, row) for row in x] for output in outputs], dtype=torch.float64)
    # The Gaussian's scale is a float32 parameter.
    torch.testing.assert_close(likelihood.pairwise(outputs, x), one_by_one, rtol=1e-6, atol=1e-9)


def test_a_decoder_that_ignores_its_latent_gives_the_likelihood():
    model = LatentVariableModel(priors.make("gaussian", dim=1), MLP(1, [4], 2, zero_output=True), likelihoods.make("binomial", total=2))
    found = log_evidence_quadrature(model, torch.tensor([[0.0, 1.0], [2.0, 2.0]]))
    expected = torch.tensor([math.log(binom.pmf(0, 2, 0.5) * binom.pmf(1, 2, 0.5)), 2 * math.log(binom.pmf(2, 2, 0.5))])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_bounds_cut_the_integral():
    model = LatentVariableModel(priors.make("gaussian", dim=1), MLP(1, [4], 1, zero_output=True), likelihoods.make("bernoulli")).double()
    found = log_evidence_quadrature(model, torch.ones(1, 1, dtype=torch.float64), [(0.0, 1.0)], resolution=100)
    # The integrand does not vanish at its ends; only midpoints are this accurate there.
    assert found.exp().item() == pytest.approx(0.5 * (norm.cdf(1) - norm.cdf(0)), abs=1e-5)


def test_evidence_of_a_discrete_model_sums_to_one():
    model = LatentVariableModel(priors.make("gaussian", dim=2), MLP(2, [8], 4, draws=Draws(3)), likelihoods.make("bernoulli"))
    every_x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)
    assert log_evidence_quadrature(model, every_x, resolution=80).exp().sum().item() == pytest.approx(1, abs=1e-5)


BAD_BOUNDS = (
    (-4, 4), [(-4, 4)], [(-4, 4)] * 3, [(-4, 4), (4, -4)], [(-4, 4), (1, 1)], [(-4, 4, 5)] * 2, [(-math.inf, math.inf)] * 2, [("a", "b")] * 2,
    [(0, math.nan)] * 2,
)  # fmt: skip
BAD_DATA = (torch.zeros(0, 3), torch.zeros(3), torch.zeros(2, 3, dtype=torch.int64), [[0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"bounds": bounds}, "bounds: expected one finite pair .* got") for bounds in BAD_BOUNDS),
        *(({"x": x}, "x: expected") for x in BAD_DATA),
        ({"resolution": 1}, "resolution: expected at least 2, got 1"),
        ({"model": LatentVariableModel(priors.make("gaussian", dim=3), MLP(3, [4], 3), likelihoods.make("bernoulli"))}, "model: .*at most 2.*D = 3"),
    ],
)
def test_bad_input_is_named(options, message, one_line):
    one_line(lambda: log_evidence_quadrature(**({"model": make_model(), "x": observations(2)} | options)), rf"^{message}[^\n]*$")


@pytest.mark.parametrize(
    ("prior", "x", "bounds"),
    [
        (priors.make("pinwheel", tangential_std=0.02), [[1.3, 0.9], [0.0, 0.0], [-0.2, 1.9]], [(-2.0, 2.5), (-2.0, 2.5)]),
        (priors.make("swiss_roll_noisy"), [[0.6, 3.3], [0.1, 0.2]], [(-4.0, 4.5), (-4.0, 4.5)]),
        (priors.make("square"), [[1.3, 1.2], [0.6, 0.2]], [(-1.5, 2.0), (-1.5, 2.0)]),
        (priors.make("mixture"), [[4.0, 1.0], [0.0, 0.0]], [(-4.0, 6.0), (-4.0, 6.0)]),
        (priors.make("gaussian"), [[6.0, 0.0], [0.5, -7.0]], [(-10.0, 10.0), (-10.0, 10.0)]),
    ],
)
def test_the_priors_nodes_reach_where_data_outweigh_the_prior(prior, x, bounds):
    """Observations of z itself with noise 0.15, many deviations off the prior: a fine grid over the plane agrees."""
    model = LatentVariableModel(prior.double(), torch.nn.Identity(), likelihoods.make("gaussian", scale=0.15).double())
    x = torch.tensor(x, dtype=torch.float64)
    grid = log_evidence_quadrature(model, x, bounds, resolution=200)
    torch.testing.assert_close(log_evidence_quadrature(model, x, resolution=300), grid, rtol=0, atol=5e-3)


class Observed(torch.nn.Module):
    """A decoder that returns its latents and counts them."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, z):
        self.count += len(z)
        return z


@pytest.mark.parametrize("name", ["pinwheel", "swiss_roll_noisy", "square", "mixture", "gaussian"])
@pytest.mark.parametrize(("scale", "share"), [(0.5, 1.0), (0.1, 1.3), (0.004, 2.0)], ids=["wide", "narrow", "needle"])
def test_adaptive_resolution_keeps_its_error_and_saves_nodes(name, scale, share):
    """Observations of z itself with noise of this scale, of the prior's samples and off the prior."""
    prior = priors.make(name).double()
    model = LatentVariableModel(prior, Observed(), likelihoods.make("gaussian", scale=scale).double())
    x = torch.cat((prior.sample(30, Draws(4), dtype=torch.float64), torch.tensor([[0.3, 0.1], [1.4, 1.3]], dtype=torch.float64)))
    found, nodes = log_evidence_quadrature(model, x), model.decoder.count
    latents, log_weights = prior.integration_nodes(200)
    expected = torch.logsumexp(model.likelihood.pairwise(latents, x) + log_weights.unsqueeze(1), 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert nodes < share * len(latents)


def test_a_row_without_a_finite_likelihood_takes_all_nodes():
    model = LatentVariableModel(priors.make("gaussian").double(), Observed(), likelihoods.make("bernoulli"))
    x = torch.tensor([[0.0, 1.0], [math.nan, 0.0]], dtype=torch.float64)
    found = log_evidence_quadrature(model, x)
    assert found[0].isfinite() and found[1].isnan() and model.decoder.count > 200**2
