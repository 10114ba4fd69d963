"""Tests of likelihoods against torch.distributions: densities, all pairs, moments of samples, normalization."""

import pytest
import torch
from torch import distributions

from ddvi_fast import likelihoods, ops, rng
from ddvi_fast.rng import Draws
from ddvi_fast.testing import assert_close

# Name, options, the torch distribution of an output.
CASES = [
    ("bernoulli", {}, lambda output: distributions.Bernoulli(logits=output)),
    ("gaussian", {"scale": 0.7}, lambda output: distributions.Normal(output, 0.7)),
    ("gaussian", {"scale": 0.3, "value_range": (-1.0, 2.0)}, lambda output: distributions.Normal(3 * torch.sigmoid(output) - 1, 0.3)),
    ("binomial", {"total": 2}, lambda output: distributions.Binomial(2, logits=output)),
    ("binomial", {"total": 5}, lambda output: distributions.Binomial(5, logits=output)),
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, (case[0], *case[1].values()))))
def case(request):
    name, options, torch_distribution = request.param
    return likelihoods.make(name, **options).double(), torch_distribution


def normals(*shape, seed=0):
    return rng.normal(Draws(seed), shape, rng.START, dtype=torch.float64)


def test_log_prob_and_pairs(case):
    likelihood, torch_distribution = case
    outputs, x = normals(4, 6), likelihood.sample(normals(3, 6, seed=1), Draws(5))
    pairs = torch.stack([torch_distribution(output).log_prob(x).sum(-1) for output in outputs])
    # The scale is a float32 number before the module becomes float64.
    assert_close(likelihood.log_prob(outputs.unsqueeze(1), x), pairs, rtol=1e-6)
    assert_close(likelihood.pairwise(outputs, x), likelihood.log_prob(outputs.unsqueeze(1), x), rtol=1e-10)
    assert_close(likelihood.mean(outputs), torch_distribution(outputs).mean, rtol=1e-7)


def test_samples(case):
    likelihood, torch_distribution = case
    rows, output = 40_000, normals(1, 3)
    expected = torch_distribution(output)
    samples = likelihood.sample(output.expand(rows, 3), Draws(6))
    assert ((samples.mean(0) - expected.mean).abs() < 4 * (expected.variance / rows).sqrt()).all()
    fourth = (samples - samples.mean(0)).pow(4).mean(0)
    error = ((fourth - samples.var(0).square()) / rows).sqrt()
    assert ((samples.var(0) - expected.variance).abs() < 4 * error + 1e-3 / rows).all()
    assert torch.equal(samples[10:], likelihood.sample(output.expand(rows - 10, 3), Draws(6, 10))), "a row does not depend on its batch"
    correlation = torch.corrcoef(samples.T) - torch.eye(3)
    assert (correlation.abs() < 4 / rows**0.5).all()


def test_leading_axes(case):
    likelihood, _ = case
    output = normals(2, 5, 3)
    samples = likelihood.sample(output, Draws(6))
    assert torch.equal(samples[1], likelihood.sample(output[1], Draws(6).importance(1)))
    assert likelihood.log_prob(output, samples).shape == (2, 5)
    assert likelihood.log_prob(output[:, :0], samples[:, :0]).shape == (2, 0)


@pytest.mark.parametrize("name, options, support", [("bernoulli", {}, 2), ("binomial", {"total": 4}, 5)])
def test_discrete_densities_add_up_to_one(name, options, support):
    likelihood, values = likelihoods.make(name, **options), torch.arange(support, dtype=torch.float64).unsqueeze(1)
    total = likelihood.log_prob(torch.full((1, 1), 0.3, dtype=torch.float64), values).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_grey_bernoulli():
    """Grey data are targets of the cross-entropy, which is linear in x between 0 and 1."""
    likelihood, output, x = likelihoods.make("bernoulli"), normals(4, 1), rng.uniform(Draws(1), (4, 1), 0, dtype=torch.float64)
    black, white = (likelihood.log_prob(output, torch.full_like(x, value)) for value in (0.0, 1.0))
    expected = (1 - x.squeeze(1)) * black + x.squeeze(1) * white
    assert_close(likelihood.log_prob(output, x), expected, rtol=1e-12)
    assert_close(likelihood.pairwise(output, x).diagonal(), expected, rtol=1e-12)


def test_learned_scale():
    fixed, learned = likelihoods.make("gaussian", scale=0.5), likelihoods.make("gaussian", scale=0.5, learn_scale=True)
    assert not fixed.log_scale.requires_grad
    x = normals(50, 4).float()
    learned.log_prob(torch.zeros(50, 4), x).sum().backward()
    # The derivative of -x^2 / 2 s^2 - log s with respect to log s.
    assert_close(learned.log_scale.grad, (x.square() / 0.25 - 1).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("bernouli", {}, "likelihood: .*did you mean bernoulli"),
        ("gaussian", {"scale": 0.0}, "scale: expected a number in"),
        ("gaussian", {"value_range": (1.0, 0.0)}, "value_range: expected None or \\(low, high\\)"),
        ("binomial", {"total": 0}, "total: expected an integer of at least 1"),
        ("gaussian", {"scal": 1.0}, "did you mean scale"),
        ("bernoulli", {"scale": 1.0}, "option of the bernoulli likelihood"),
    ],
)
def test_bad_input(name, options, message, one_line):
    one_line(lambda: likelihoods.make(name, **options), message)


def test_pairs_of_many_dimensions_keep_their_digits():
    """A matrix product over thousands of pixels in float32 against sums of squares in float64."""
    likelihood = likelihoods.make("gaussian", scale=0.1, value_range=(0.0, 1.0))
    outputs, x = normals(5, 3072).float(), rng.uniform(Draws(2), (4, 3072), 0)
    exact = likelihoods.make("gaussian", scale=0.1, value_range=(0.0, 1.0)).double().log_prob(outputs.double().unsqueeze(1), x.double())
    assert (likelihood.pairwise(outputs, x) - exact).abs().max() < 0.05  # nats, of ten thousands


def test_a_scale_of_each_dimension_is_learned_from_its_own_errors():
    """At the best scales of a Gaussian each is the root mean square of its dimension's errors: there the gradient is zero."""
    wide, x = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64), normals(500, 3)
    likelihood = likelihoods.make("gaussian", scale=0.5, learn_scale=True, width=3).double()
    with torch.no_grad():
        likelihood.log_scale.copy_(((wide * x).square().mean(0)).sqrt().log())
    outputs = torch.zeros(1, 3, dtype=torch.float64)
    total = likelihood.log_prob(outputs, wide * x)
    assert_close(total, distributions.Normal(outputs, likelihood.log_scale.exp()).log_prob(wide * x).sum(-1), rtol=1e-12)
    assert_close(likelihood.pairwise(normals(4, 3, seed=2), wide * x), likelihood.log_prob(normals(4, 3, seed=2).unsqueeze(1), wide * x), rtol=1e-8)
    (gradient,) = torch.autograd.grad(total.mean(), likelihood.log_scale)
    assert gradient.abs().max() < 1e-10
    spread = likelihood.sample(outputs.expand(40_000, 3), Draws(3)).std(0) / likelihood.log_scale.exp()
    assert ((spread - 1).abs() < 4 / (2 * 40_000) ** 0.5).all()


@pytest.mark.parametrize("scale", [-1.0, 0.0, float("nan"), float("inf"), "1", None, True, 1e-46, 1e39])
def test_a_scale_that_is_no_positive_number_is_refused(scale, one_line):
    x = torch.zeros(2, 3)
    one_line(lambda: likelihoods.Gaussian(scale), "scale: expected a (finite number|number in)")
    one_line(lambda: likelihoods.make("gaussian", scale=scale, width=3), "scale")
    one_line(lambda: ops.gaussian_log_likelihood(x, x, scale), "scale")


def test_negative_scales_of_a_tensor_are_refused(one_line):
    x = torch.zeros(2, 3)
    for scale in (torch.tensor(-1.0), torch.tensor([1.0, 1.0, -1e-3])):
        one_line(lambda scale=scale: ops.gaussian_log_likelihood(x, x, scale), "scale: expected positive numbers")
    assert ops.gaussian_log_likelihood(x, x, torch.tensor(float("nan"))).isnan().all()


@pytest.mark.parametrize("options", [{"width": 0}, {"width": 2.0}, {"value_range": (1, 0)}, {"value_range": 3}, {"value_range": (0, float("nan"))}])
def test_impossible_options_of_a_gaussian_are_refused(options, one_line):
    one_line(lambda: likelihoods.Gaussian(**options), next(iter(options)))


@pytest.mark.parametrize("total", [0, -1, 1.5, True, "2"])
def test_impossible_totals_are_refused(total, one_line):
    one_line(lambda: likelihoods.Binomial(total), "total")
