"""Tests of the joint density and fantasies of a latent-variable model."""

import pytest
import torch

from ddvi_fast import likelihoods, priors
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.rng import Draws
from tests.linear_gaussian import BIAS, SCALE, WEIGHT, make_model


def test_log_joint_is_the_sum_of_two_normals():
    model, x, z = make_model(), torch.linspace(-1, 1, 12).view(4, 3), torch.linspace(-2, 2, 24).view(3, 4, 2)
    mean = z @ torch.tensor(WEIGHT).mT + torch.tensor(BIAS)
    expected = torch.distributions.Normal(mean, SCALE).log_prob(x).sum(-1) + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(model.log_joint(x, z), expected)
    assert expected.shape == (3, 4)


def test_a_decoder_without_forward_is_refused(one_line):
    decoder = torch.nn.ModuleList()
    one_line(lambda: LatentVariableModel(priors.make("gaussian", dim=2), decoder, likelihoods.make("bernoulli")), r"^decoder: expected a module with")


def test_images_are_flattened():
    model = LatentVariableModel(priors.make("gaussian", dim=2), MLP(2, [8], 6), likelihoods.make("bernoulli"))
    x, z = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 10).view(1, 5, 2)
    torch.testing.assert_close(model.log_likelihood(x.view(5, 2, 3), z), model.log_likelihood(x, z), rtol=0, atol=0)


def test_fantasies_follow_the_model():
    n = 20_000
    z, x = make_model().simulate(n, Draws(1))[:2]
    weight = torch.tensor(WEIGHT)
    covariance = weight @ weight.mT + SCALE**2 * torch.eye(3)
    for found, expected in ((z.T.cov(), torch.eye(2)), (x.T.cov(), covariance)):
        # The variance of an entry of a normal sample's covariance is (c_ii c_jj + c_ij^2) / n.
        error = ((expected.diagonal().outer(expected.diagonal()) + expected**2) / n).sqrt()
        assert ((found - expected).abs() < 4 * error).all()
    assert ((x.mean(0) - torch.tensor(BIAS)).abs() < 4 * (covariance.diagonal() / n).sqrt()).all()


def test_fantasies_depend_on_their_draws_alone():
    model, draws = make_model(), Draws(9, 100)
    whole, part = model.simulate(7, draws), model.simulate(3, draws.advance(4))
    assert torch.equal(whole.z[4:], part.z)
    torch.testing.assert_close(whole.x[4:], part.x)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_several_sets_of_fantasies_are_those_made_one_by_one(likelihood):
    model, draws = LatentVariableModel(priors.make("pinwheel"), MLP(2, [8], 6), likelihoods.make(likelihood)), Draws(9, 100)
    sets = model.simulate(4, draws, num_sets=3)
    assert sets.z.shape == (3, 4, 2) and sets.x.shape == (3, 4, 6)
    for number in range(3):
        alone = model.simulate(4, draws.importance(number))
        torch.testing.assert_close(tuple(sets.of(number)[:2]), tuple(alone[:2]), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="num_sets"):
        model.simulate(4, draws, num_sets=0)


def test_fantasies_take_no_gradient_and_the_dtype_asked_for():
    model = make_model().double().requires_grad_(True)
    z, x = model.simulate(3, Draws(0), like=torch.zeros(1, 3, dtype=torch.float64))[:2]
    assert not x.requires_grad and z.dtype == x.dtype == torch.float64


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("prior", ["gaussian", "pinwheel", "square"])
def test_fantasies_know_the_noise_of_their_latents(prior, joint):
    model, draws = LatentVariableModel(priors.make(prior), MLP(2, [8], 6), likelihoods.make("bernoulli")), Draws(9, 100)
    made = model.simulate(30, draws, joint=joint)
    torch.testing.assert_close(model.prior.push(made.noise, None if joint else made.labels), made.z, rtol=0, atol=1e-6)
    assert made.noise.shape[1] == (model.prior.joint_noise_dim if joint else model.prior.noise_dim)
    assert made.labels is None if prior == "gaussian" else torch.equal(made.labels, model.prior.sample_labels(30, draws))
    sets = model.simulate(30, draws, num_sets=2, joint=joint)
    assert sets.noise is None and sets.labels is None
