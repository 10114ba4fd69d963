"""Importance samples of a posterior times a factor, against closed forms of Gaussians."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, constraints

from ddvi_fast import InputError
from ddvi_fast.inference import Model, Support
from tests.inference.test_posterior import conditional, untrained

COUNT, MEAN, SCALE = 40_000, 0.4, 0.7  # the posterior of `untrained` is N(0.4, 0.7^2)


def updated(mean: Tensor, variance: Tensor, seen: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of a Gaussian after an observation `seen` with noise."""
    gain = variance / (variance + noise**2)
    return mean + gain * (seen - mean), variance * (1 - gain)


def test_the_likelihood_of_an_observation_gives_the_posterior_with_it() -> None:
    """Without a density of the model the posterior is taken as exact; the evidence is the predictive density of the observation."""
    posterior = untrained(Support(constraints.real, 1))
    sample = posterior.importance_sample(COUNT, log_factor=lambda z: Normal(z[:, 0], 0.5).log_prob(torch.tensor(1.3)))
    mean, variance = updated(torch.tensor(MEAN), torch.tensor(SCALE**2), torch.tensor(1.3), 0.5)
    error = math.sqrt(float(variance) / sample.effective_sample_size)
    assert abs(float(sample.mean(sample.z)[0] - mean)) < 4 * error
    assert abs(float(sample.mean((sample.z - mean).square())[0] / variance) - 1) < 4 * math.sqrt(2 / sample.effective_sample_size)
    predictive = float(Normal(MEAN, math.sqrt(SCALE**2 + 0.5**2)).log_prob(torch.tensor(1.3)))
    assert abs(sample.log_evidence - predictive) < 4 * math.sqrt((COUNT / sample.effective_sample_size - 1) / COUNT)
    # E w^2 / (E w)^2 by the product of two Gaussian likelihoods, which is one of half the variance.
    square = float(Normal(MEAN, math.sqrt(SCALE**2 + 0.5**2 / 2)).log_prob(torch.tensor(1.3))) - math.log(2 * 0.5 * math.sqrt(math.pi))
    assert sample.effective_sample_size / COUNT == pytest.approx(math.exp(2 * predictive - square), rel=0.03)
    assert sample.pareto_k < 0.5 and abs(float(sample.resample(5000).mean() - mean)) < 4 * error + 4 * math.sqrt(float(variance) / 5000)


def test_with_a_density_the_weights_are_those_of_the_model_times_the_factor() -> None:
    """Correlated parameters, of which the posterior knows nothing, and a factor on their difference."""
    posterior, covariance = untrained(Support(constraints.real, 2)), torch.tensor([[0.4, 0.2], [0.2, 0.3]])
    posterior.model = Model(log_joint=lambda x, z: 2 + MultivariateNormal(torch.tensor([0.2, 0.5]), covariance).log_prob(z))
    sample = posterior.importance_sample(COUNT, log_factor=lambda z: Normal(z[:, 0] - z[:, 1], 0.6).log_prob(torch.tensor(0.5)))
    row = torch.tensor([1.0, -1.0])
    gain, spread = covariance @ row / (row @ covariance @ row + 0.36), row @ covariance @ row + 0.36
    mean, exact = torch.tensor([0.2, 0.5]) + gain * (0.5 + 0.3), covariance - torch.outer(gain, gain) * spread
    error = 4 / math.sqrt(sample.effective_sample_size)
    assert float(((sample.mean(sample.z) - mean) / exact.diagonal().sqrt()).abs().max()) < error
    found = sample.mean((sample.z - mean).unsqueeze(2) * (sample.z - mean).unsqueeze(1))
    torch.testing.assert_close(found, exact, rtol=0, atol=2 * error * float(exact.max()))
    assert abs(sample.log_evidence - 2 - float(Normal(-0.3, spread.sqrt()).log_prob(torch.tensor(0.5)))) < error


def test_rows_of_data_have_their_own_factor() -> None:
    posterior, rows = conditional(), torch.randn(3, 1, 3, generator=torch.Generator().manual_seed(2))
    seen = torch.tensor([-1.0, 0.0, 0.8])
    with torch.no_grad():  # three steps of training have moved the chain: back to the Gaussian of its frame
        posterior.posterior.denoiser.last.zero_(), posterior.posterior.denoiser.last_bias.zero_()
    encoded_mean, log_variance = posterior.posterior.encode_top(rows)
    mean = posterior.whitening(encoded_mean.detach())[:, 0]
    variance = (0.5 * log_variance.detach()).exp()[:, 0].mul(posterior.whitening.factor[0, 0]).square()
    sample = posterior.importance_sample(COUNT, rows, log_factor=lambda z: Normal(z[..., 0], 0.7).log_prob(seen))
    mean, variance = updated(mean, variance, seen, 0.7)
    assert sample.z.shape == (COUNT, 3, 1) and sample.pareto_k.shape == sample.effective_sample_size.shape == (3,)
    assert ((sample.mean(sample.z)[:, 0] - mean).abs() < 5 * (variance / sample.effective_sample_size).sqrt()).all()
    alone = posterior.importance_sample(200, rows[0], log_factor=lambda z: Normal(z[:, 0], 0.7).log_prob(seen[0]))
    several = posterior.importance_sample(200, rows, log_factor=lambda z: Normal(z[..., 0], 0.7).log_prob(seen))
    torch.testing.assert_close(several.log_ratios[:, 0], alone.log_ratios, rtol=1e-4, atol=1e-4)


def test_a_factor_can_exclude_parameters() -> None:
    """A normal distribution cut at 0: its mean is that of the half beyond."""
    posterior = untrained(Support({"level": constraints.real}))
    sample = posterior.importance_sample(COUNT, log_factor=lambda z: torch.where(z["level"] > 0, 0.0, -math.inf))
    start, normal = -MEAN / SCALE, Normal(0.0, 1.0)
    share = 1 - float(normal.cdf(torch.tensor(start)))
    exact = MEAN + SCALE * float(normal.log_prob(torch.tensor(start)).exp()) / share
    assert abs(float(sample.mean(sample.z["level"])) - exact) < 4 * SCALE / math.sqrt(COUNT)
    assert abs(sample.effective_sample_size / COUNT - share) < 4 * 0.5 / math.sqrt(COUNT)
    assert bool((sample.resample(500)["level"] > 0).all())


BAD = {
    "a function of parameters": 3.0,
    "a tensor": lambda z: 0.0,
    "a floating-point tensor": lambda z: torch.zeros(len(z), dtype=torch.int64),
    r"values of shape \[200\]": lambda z: z,
    "numbers below infinity": lambda z: torch.full((len(z),), math.nan),
    "numbers below infinity, ": lambda z: torch.full((len(z),), math.inf),
    "numbers below infinity, some": lambda z: torch.full((len(z),), -math.inf),
}


@pytest.mark.parametrize("words", BAD)
def test_factors_that_do_not_fit_are_named(words: str) -> None:
    with pytest.raises(InputError, match=rf"^log_factor: expected {words}[^\n]*$"):
        untrained(Support(constraints.real, 1)).importance_sample(200, log_factor=BAD[words])


def test_weights_need_a_density_or_a_factor() -> None:
    with pytest.raises(InputError, match="model: expected one with log_joint, for weights without log_factor"):
        untrained(Support(constraints.real, 1)).importance_sample(200)
