"""The Gaussian with a full covariance against torch's density and an exact posterior."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

from ddvi_fast import networks
from ddvi_fast.posteriors import FullGaussian
from ddvi_fast.rng import Draws

DIM, DATA = 4, 5


def posterior(coordinates: str = "encoder") -> FullGaussian:
    encoder = networks.MLP(DATA, [7], 2 * DIM + DIM * (DIM - 1) // 2, draws=Draws(3))
    return FullGaussian(encoder, None, DIM, coordinates=coordinates)


def exact(found: FullGaussian, x: torch.Tensor) -> MultivariateNormal:
    """The density by its definition, entry by entry."""
    mean, log_var, below = found.encoder(x).split((DIM, DIM, DIM * (DIM - 1) // 2), -1)
    factor = torch.eye(DIM).repeat(len(x), 1, 1)
    places = [(row, column) for row in range(DIM) for column in range(row)]
    for place, (row, column) in enumerate(places):
        factor[:, row, column] = below[:, place]
    scale = torch.diag_embed(torch.exp(log_var / 2))
    # In the latents' coordinates the factor acts on the whole variable, its mean included.
    if found.coordinates == "encoder":
        return MultivariateNormal(mean, scale_tril=scale @ factor)
    return MultivariateNormal((factor @ mean.unsqueeze(-1)).squeeze(-1), scale_tril=factor @ scale)


@pytest.mark.parametrize("coordinates", ["encoder", "latent"])
def test_samples_have_the_density_of_a_full_gaussian(coordinates: str) -> None:
    found, x = posterior(coordinates), torch.randn(6, DATA, generator=torch.Generator().manual_seed(0))
    sample = found.sample(x, 2000, Draws(1))
    density = exact(found, x).log_prob(sample.z)
    torch.testing.assert_close(-sample.log_ratio, density, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.log_density(found.encode(x), sample.z[0]), density[0], rtol=1e-4, atol=1e-4)
    moments = exact(found, x)
    torch.testing.assert_close(sample.z.mean(0), moments.mean, rtol=0, atol=0.1)
    torch.testing.assert_close(torch.stack([rows.T.cov() for rows in sample.z.unbind(1)]), moments.covariance_matrix, rtol=0.15, atol=0.1)


def test_without_context_it_is_the_diagonal_gaussian() -> None:
    encoder = networks.MLP(DATA, [7], 2 * DIM, draws=Draws(3))
    context = networks.MLP(DATA, [], DIM * (DIM - 1) // 2, zero_output=True)
    found, x = FullGaussian(encoder, context, DIM), torch.ones(2, DATA)
    mean, log_var = encoder(x).chunk(2, -1)
    sample = found.sample(x, 3, Draws(1))
    density = torch.distributions.Normal(mean, torch.exp(log_var / 2)).log_prob(sample.z).sum(-1)
    torch.testing.assert_close(-sample.log_ratio, density, rtol=1e-4, atol=1e-4)


def test_one_dimension_has_no_context() -> None:
    assert FullGaussian(networks.MLP(DATA, [7], 2), None, 1).sample(torch.ones(2, DATA), 3).z.shape == (3, 2, 1)
