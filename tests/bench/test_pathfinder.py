"""The multi-start Gaussian: its inverse Hessians against the formula of the paper, and its draws against a known posterior."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.studies import pathfinder
from ddvi_fast.inference import ImportanceSample

pytest.importorskip("scipy")
CENTER = torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[4.0, 1.2, 0.0], [1.2, 1.0, 0.03], [0.0, 0.03, 0.01]], dtype=torch.float64)


def normal(u: Tensor) -> Tensor:
    """The log-density of a normal distribution times exp(7)."""
    return torch.distributions.MultivariateNormal(CENTER, COVARIANCE).log_prob(u) + 7


def bent(u: Tensor) -> Tensor:
    """The log-density of a normal variable and of one around a quarter of its square."""
    return torch.distributions.Normal(0, 1).log_prob(u[:, 0]) + torch.distributions.Normal(u[:, 0].square() / 4, 1).log_prob(u[:, 1])


def compact(scale: Tensor, moved: Tensor, change: Tensor) -> Tensor:
    """The inverse Hessian as Zhang et al. (2022) have it, from columns of steps and changes [D, J]."""
    inner = moved.T @ change
    inverse = torch.linalg.inv(inner.triu())
    zero, diagonal = torch.zeros_like(inner), torch.diag(scale)
    corner = inverse.T @ (torch.diag(inner.diagonal()) + change.T @ diagonal @ change) @ inverse
    sides = torch.cat((diagonal @ change, moved), 1)
    return diagonal + sides @ torch.cat((torch.cat((zero, -inverse), 1), torch.cat((-inverse.T, corner), 1))) @ sides.T


def test_the_inverse_hessian_is_that_of_the_compact_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    moved = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    hessian = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    change = (hessian @ hessian.T + torch.eye(5)) @ moved
    scale = 0.5 + torch.rand(5, generator=generator, dtype=torch.float64)
    found = pathfinder.inverse_hessian(scale, list(zip(moved.T, change.T, strict=True)))
    torch.testing.assert_close(found, compact(scale, moved, change))
    torch.testing.assert_close(found @ change[:, -1], moved[:, -1])  # the secant equation of the last step


def test_the_diagonal_learns_the_curvature_along_an_axis_and_shrinks_all_others_as_much() -> None:
    scale = torch.tensor([0.3, 2.0], dtype=torch.float64)
    step = torch.tensor([0.7, 0.0], dtype=torch.float64)
    torch.testing.assert_close(pathfinder.rescaled(scale, step, 5 * step), torch.tensor([1 / 5, 2.0 / (5 * 0.3)], dtype=torch.float64))


def test_a_path_ends_at_the_mode_and_has_the_gradients_of_its_places() -> None:
    places, gradients = pathfinder.trajectory(normal, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(places[0], torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(places[-1], CENTER, atol=1e-4, rtol=0)
    torch.testing.assert_close(gradients, (CENTER - places) @ torch.linalg.inv(COVARIANCE))


def test_samples_have_their_densities() -> None:
    gaussian = pathfinder.Gaussian(CENTER, torch.linalg.cholesky(COVARIANCE))
    u, log_q = gaussian.at(torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    torch.testing.assert_close(log_q, normal(u) - 7)


@pytest.mark.parametrize(("density", "moments"), [(normal, (CENTER, COVARIANCE)), (bent, ([0.0, 0.25], [[1.0, 0.0], [0.0, 1.125]]))])
def test_weighted_draws_have_the_moments_and_the_evidence(density, moments) -> None:
    mean, covariance = (torch.as_tensor(part, dtype=torch.float64) for part in moments)
    sample = ImportanceSample.of(*pathfinder.draw(density, len(mean), 10_000, seed=1))
    assert abs(sample.log_evidence - (7 if density is normal else 0)) < 0.1
    deviation = covariance.diagonal().sqrt()
    error = 4 / sample.effective_sample_size**0.5
    assert float(((sample.mean(sample.z) - mean) / deviation).abs().max()) < error
    centered = (sample.z - mean) / deviation
    products = sample.mean(centered.unsqueeze(-1) * centered.unsqueeze(-2))
    assert float((products - covariance / torch.outer(deviation, deviation)).abs().max()) < 3 * error


def test_paths_without_a_finite_density_are_named() -> None:
    with pytest.raises(ValueError, match="no path"):
        pathfinder.draw(lambda u: u.sum(-1) * torch.nan, 2, 100, seed=0)
