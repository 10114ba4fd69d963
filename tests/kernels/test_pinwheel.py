"""Samples of the pinwheel in Triton against the prior's own."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import priors, rng, testing
from ddvi_fast.kernels import noise, pinwheel
from ddvi_fast.rng import Draws


@pytest.mark.parametrize("options", [{}, {"num_classes": 3, "radial_std": 0.6, "tangential_std": 0.3}, {"rate": 2.0}])
def test_samples_are_those_of_the_prior(options):
    prior, draws = priors.make("pinwheel", **options), Draws(5, (1 << 33) - 3)
    constants = prior.radial_std, prior.tangential_std, prior.rate, prior.core_radius, 2.5
    got = pinwheel.sample(draws.state(), 0, (2, 3000), prior.num_classes, constants)
    normals = noise.fill("normal", draws.state(), 0, (2, 3000, 2), rng.PRIOR + 1)[0]
    labels = torch.stack([prior.sample_labels(3000, draws.importance(number)) for number in range(2)])
    testing.assert_close(got, prior.push(normals.double(), labels), rtol=1e-7, atol=1e-7)
    testing.assert_close(got, prior._sample_sets(3000, 2, draws), rtol=1e-5, atol=3e-6)
