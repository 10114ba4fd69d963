"""The diagonal Gaussian posterior."""

from __future__ import annotations

import torch

from tests.linear_gaussian import gaussian_posterior, observations


def test_density_is_the_normal_of_the_encoders_output():
    posterior, x = gaussian_posterior(), observations(5)
    z, log_ratio, _ = posterior.sample(x, 3)
    mean, log_var = posterior.encoder(x).chunk(2, -1)
    expected = -torch.distributions.Normal(mean, (0.5 * log_var).exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(log_ratio, expected)


def test_log_variance_is_kept_in_range():
    posterior = gaussian_posterior()
    posterior.encoder.forward = lambda x, draws: torch.tensor([[0.0, 50.0], [0.0, -50.0]])
    posterior.latent_dim = 1
    _, log_var = posterior.encode(torch.zeros(2, 1))
    assert log_var.squeeze(1).tolist() == [10.0, -20.0]


def test_samples_have_the_moments_they_claim():
    posterior, x, n = gaussian_posterior(), observations(2), 20_000
    mean, log_var = posterior.encode(x)
    z = posterior.sample(x, n).z
    assert ((z.mean(0) - mean).abs() < 4 * (0.5 * log_var).exp() / n**0.5).all()
    assert ((z.var(0) / log_var.exp() - 1).abs() < 4 * (2 / n) ** 0.5).all()
