"""Classes of priors: densities, their mixture, learned centres, latents with a one-hot class."""

from __future__ import annotations

import math

import pytest
import torch

from ddvi_fast import InputError, priors
from ddvi_fast.priors.centres import REACH
from ddvi_fast.priors.partitions import class_log_probs, log_class_posterior, require_partitions
from ddvi_fast.rng import Draws

F64 = torch.float64


def make(name):
    if name == "centres":
        return priors.Centres(priors.make("square"), num_centres=4, scale=0.3)
    return priors.make(name, **({"noise": 0.3, "num_classes": 4} if name == "swiss_roll_noisy" else {}))


CLASSED = ["mixture", "pinwheel", "swiss_roll_noisy", "square", "centres"]


@pytest.mark.parametrize("name", CLASSED)
def test_every_partition_integrates_to_one(name):
    # By the nodes of the whole prior: the mean of p(z | c) / p(z) under p(z).
    prior = make(name)
    nodes, log_weights = prior.integration_nodes({"pinwheel": 100, "centres": 30}.get(name, 60))
    ratios = [
        torch.exp(class_log_probs(prior, part) - prior.log_prob(part) + weights).sum(1).detach()
        for part, weights in zip(nodes.split(20_000), log_weights.split(20_000), strict=True)
    ]
    torch.testing.assert_close(sum(ratios), torch.ones(prior.num_classes, dtype=F64), atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", CLASSED)
def test_partitions_mix_back_to_the_prior(name):
    prior = make(name)
    z = torch.cat([prior.sample(200, Draws(1), dtype=F64), torch.randn(200, 2, dtype=F64, generator=torch.Generator().manual_seed(0))])
    each = class_log_probs(prior, z)
    torch.testing.assert_close(torch.logsumexp(each, 0) - math.log(prior.num_classes), prior.log_prob(z), rtol=1e-9, atol=1e-6)
    posterior = torch.stack([log_class_posterior(prior, z, torch.tensor(label)) for label in range(prior.num_classes)])
    torch.testing.assert_close(posterior.exp().sum(0), torch.ones(400, dtype=F64), rtol=1e-6, atol=1e-6)


def test_a_prior_without_classes_is_refused():
    with pytest.raises(InputError, match=r"^prior: expected one with classes, got a Gaussian prior, which has none \(pinwheel[^\n]*\)$"):
        require_partitions(priors.make("gaussian"))


def test_gaussian_centres_are_the_mixture():
    prior = priors.Centres(priors.make("gaussian"), num_centres=5, scale=0.2)
    mixture = priors.Mixture(prior.centres.detach(), scale=0.2)
    z, labels = torch.randn(50, 2, generator=torch.Generator().manual_seed(1)), torch.arange(50) % 5
    torch.testing.assert_close(prior.log_prob(z), mixture.log_prob(z))
    torch.testing.assert_close(prior.log_prob(z, labels), mixture.log_prob(z, labels))
    torch.testing.assert_close(prior.blurred(0.3).log_prob(z), mixture.blurred(0.3).log_prob(z))


def test_centres_around_any_base_integrate_to_one():
    axis = torch.linspace(-4, 4, 321, dtype=F64)
    prior = make("centres")
    parts = torch.cartesian_prod(axis, axis).split(20_000)
    mass = sum(prior.log_prob(part).exp().sum().item() for part in parts) * float(axis[1] - axis[0]) ** 2
    assert abs(mass - 1) < 1e-2  # the grid's own error on edges 0.018 wide


def test_samples_of_a_centre_lie_around_it():
    prior, labels = priors.Centres(num_centres=20), torch.arange(20_000) % 20
    z = prior.sample(20_000, Draws(2), labels)
    offset = z - prior.centres[labels]
    assert abs(offset.std().item() - 0.125) < 4 * 0.125 / math.sqrt(80_000)
    assert (offset.mean(0).abs() < 4 * 0.125 / math.sqrt(20_000)).all()
    assert not offset.requires_grad or z.requires_grad


def test_crowding_against_a_loop():
    prior = priors.Centres(num_centres=7)
    centres = prior.centres.tolist()
    expected = [sum(max(0.0, 1.5 - math.dist(one, other)) for other in centres if other is not one) for one in centres]
    torch.testing.assert_close(prior.crowding(), torch.tensor(expected))


def test_the_hinge_spreads_centres_that_start_together_and_the_square_holds_them():
    prior = priors.Centres(num_centres=6)
    with torch.no_grad():
        prior.raw.mul_(0.05)
    optimiser = torch.optim.Adam(prior.parameters(), 0.05)
    for _ in range(300):
        optimiser.zero_grad()
        prior.crowding().sum().backward()
        optimiser.step()
    assert prior.crowding().max() < 1e-2 and prior.centres.abs().max() <= REACH
    with torch.no_grad():
        prior.raw[1] = prior.raw[0]
    (gradient,) = torch.autograd.grad(prior.crowding().sum(), prior.raw)
    assert bool(torch.isfinite(gradient).all())


def test_nearest_centre_by_brute_force():
    prior, z = priors.Centres(num_centres=9), torch.randn(4, 30, 2, generator=torch.Generator().manual_seed(3))
    expected = (z.unsqueeze(-2) - prior.centres).square().sum(-1).argmin(-1)
    assert torch.equal(prior.nearest(z), expected)


def test_a_one_hot_latent_belongs_to_its_class_alone():
    prior, labels = priors.OneHotGaussian(style_dim=3, num_classes=4), torch.tensor([2, 0, 3])
    z = prior.sample(3, Draws(0), labels)
    assert z[:, 3:].argmax(1).tolist() == labels.tolist() and z[:, 3:].sum(1).tolist() == [1.0] * 3
    style = priors.make("gaussian", dim=3).log_prob(z[:, :3])
    torch.testing.assert_close(prior.log_prob(z, labels), style)
    torch.testing.assert_close(prior.log_prob(z), style - math.log(4))
    each = class_log_probs(prior, z)
    assert torch.isfinite(each).sum(0).tolist() == [1, 1, 1]
    torch.testing.assert_close(log_class_posterior(prior, z, labels), torch.zeros(3))
