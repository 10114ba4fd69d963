"""Samples of the pinwheel in Triton against the prior's own."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import priors, rng, testing
from ddvi_fast.kernels import noise, pinwheel
from ddvi_fast.parity import normals
from ddvi_fast.rng import Draws

OPTIONS = [{}, {"num_classes": 3, "radial_std": 0.6, "tangential_std": 0.3}, {"rate": 2.0}]


@pytest.mark.parametrize("options", OPTIONS)
def test_samples_are_those_of_the_prior(options):
    prior, draws = priors.make("pinwheel", **options), Draws(5, (1 << 33) - 3)
    constants = prior.radial_std, prior.tangential_std, prior.rate, prior.core_radius, 2.5
    got, *parts = pinwheel.sample(draws.state(), 0, (2, 3000), prior.num_classes, constants, True)
    drawn = noise.fill("normal", draws.state(), 0, (2, 3000, 2), rng.PRIOR + 1)[0]
    labels = torch.stack([prior.sample_labels(3000, draws.importance(number)) for number in range(2)])
    testing.assert_close(got, prior.push(drawn.double(), labels), rtol=1e-7, atol=1e-7)
    assert torch.equal(parts[0], drawn) and torch.equal(parts[1], labels)
    assert pinwheel.sample(draws.state(), 0, (2, 3000), prior.num_classes, constants)[1:] == (None, None)
    testing.assert_close(got, prior._sample_sets(3000, 2, draws), rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_map_and_its_gradient(options):
    """Also far from the core, where the winding is that of the radius or constant."""
    prior = priors.make("pinwheel", **options)
    u = (3 * normals(0, 4, 700, 2)).requires_grad_()
    labels = torch.arange(2800).view(4, 700) % prior.num_classes
    radius = torch.hypot(1 + prior.radial_std * u[..., 0], prior.tangential_std * u[..., 1])
    assert (radius < prior.core_radius).any() and (radius > prior.core_radius).any()
    constants = prior.num_classes, prior._constants
    expected = prior._pushed(u.double(), labels)
    testing.assert_close(pinwheel.forward(u.detach(), labels, *constants), expected.detach(), rtol=1e-7, atol=1e-7)
    upstream = normals(1, 4, 700, 2)
    (wanted,) = torch.autograd.grad(expected, u, upstream.double())
    testing.assert_close(pinwheel.backward(upstream, u.detach(), labels, *constants), wanted, rtol=1e-6, atol=1e-6)


def test_no_rows():
    empty, labels = torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)
    constants = 10, priors.make("pinwheel")._constants
    assert pinwheel.forward(empty, labels, *constants).shape == pinwheel.backward(empty, empty, labels, *constants).shape == (0, 2)
    assert [part.shape[1] for part in pinwheel.sample(Draws(0).state(), 0, (1, 0), *constants, True)] == [0, 0, 0]
