"""Tests of the released code's mistakes: each changes the bound by its formula, and nothing else."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from ddvi_fast import rng
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.likelihoods import Bernoulli
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.objectives import ELBO, Progress
from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.paper.defects import DefectiveELBO
from ddvi_fast.paper.objectives import PixelMean, ReleasedELBO
from ddvi_fast.posteriors import Diffusion, Gaussian
from ddvi_fast.released_scale import decoded, pixel_mean
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import make
from tests.linear_gaussian import make_model, observations


def gaussian():
    return Gaussian(MLP(3, [8], 4, dropout=0.3), 2)


def diffusion():
    return Diffusion(MLP(3, [8], 4), ResidualMLP(2, 3, 6, 8), make("linear", 6), context_encoder=MLP(3, [8], 3, draws=Draws(1)))


def terms(objective, x, draws=Draws(4)):
    return next(iter(objective.updates(x, Progress(1, 1), draws))).terms()


def test_log_var_counted_twice():
    model, posterior, x = make_model(), gaussian(), observations(50)
    right, wrong = (terms(objective, x) for objective in (ELBO(model, posterior), DefectiveELBO(model, posterior, log_var_twice=True)))
    # The same dropout as the sample: the same draws.
    log_var = posterior.encode(x, Draws(4))[1]
    torch.testing.assert_close(wrong.values["kl"], right.values["kl"] - 0.5 * log_var.sum(1))
    torch.testing.assert_close(wrong.values["reconstruction"], right.values["reconstruction"])


def test_top_against_a_standard_normal():
    model, posterior, x = make_model(), diffusion(), observations(50)
    right, wrong = (terms(objective, x) for objective in (ELBO(model, posterior), DefectiveELBO(model, posterior, standard_normal_top=True)))
    path = posterior.latent_path(posterior.encode(x), 1, Draws(4))[:, 0]
    signal = posterior.schedule.alpha_bars[-1].float()
    noising = Independent(Normal(signal.sqrt() * path[-1], (1 - signal).sqrt()), 1)
    standard = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    expected = right.values["kl"] - standard.log_prob(path[0]) + noising.log_prob(path[0])
    torch.testing.assert_close(wrong.values["kl"], expected, rtol=1e-4, atol=1e-4)


def test_defects_that_a_posterior_cannot_have(one_line):
    one_line(lambda: DefectiveELBO(make_model(), diffusion(), log_var_twice=True), "log_var_twice")
    one_line(lambda: DefectiveELBO(make_model(), gaussian(), standard_normal_top=True), "standard_normal_top")


@pytest.mark.parametrize("twice", [False, True])
def test_the_released_loss(twice):
    model, posterior, x = make_model(), gaussian(), observations(20)
    found = terms(ReleasedELBO(model, posterior, KLSchedule("constant", 0.01), prior_weight=5.0, log_var_twice=twice), x)
    sample = posterior.sample(x, 1, Draws(4))
    mean, log_var = posterior.encode(x, Draws(4))
    log_q = Independent(Normal(mean, (0.5 * log_var).exp()), 1).log_prob(sample.z[0]) - (0.5 * log_var.sum(1) if twice else 0)
    expected = (pixel_mean(model, x, sample.z[0]) + 0.01 * (log_q - 5 * model.prior.log_prob_kde(sample.z[0]))).mean()
    torch.testing.assert_close(found.total(), expected)


def test_units_of_the_released_decoder_drop_out_while_the_model_trains_and_at_no_other_time():
    model, z = LatentVariableModel(make_model().prior, MLP(2, [400], 3, dropout=0.25), Bernoulli()), rng.normal(Draws(1), (5, 2), 0)
    plain = model.decoder(z)
    assert torch.equal(decoded(model.eval(), z, Draws(4)), plain) and torch.equal(decoded(model.train(), z, None), plain)
    dropped = decoded(model, z, Draws(4))
    assert torch.equal(decoded(model, z, Draws(4)), dropped) and not torch.equal(decoded(model, z, Draws(5)), dropped)
    assert torch.equal(decoded(model, z[2:], Draws(4, 2)), dropped[2:])  # a row's own draws, whoever computes it
    many = torch.stack([decoded(model, z, Draws(0, 5 * step)) for step in range(400)])
    error = many.std(0) / 20  # of the mean: kept units are scaled up, so that the mean is the output without dropout
    assert ((many.mean(0) - plain).abs() < 5 * error).all() and (error > 0).all()
    x = observations(5).sigmoid()
    torch.testing.assert_close(pixel_mean(model, x, z, Draws(4)), -model.likelihood.log_prob(dropped, x) / 3)
    assert torch.equal(decoded(make_model().train(), z, Draws(4)), make_model().decoder(z))  # a decoder without


def test_several_samples_of_the_released_loss_are_a_soft_minimum():
    model, posterior, x = make_model(), gaussian(), observations(20)
    one, three = (ReleasedELBO(model, posterior, KLSchedule("constant", 0.01), num_samples=k) for k in (1, 3))
    posterior.eval()
    single = []
    for k in range(3):
        found = terms(one, x, Draws(4).importance(k))
        single.append(sum(found.weights[name] * value for name, value in found.values.items()))
    torch.testing.assert_close(terms(three, x).values["bound"], math.log(3) - torch.logsumexp(-torch.stack(single), 0))


def test_reconstruction_averaged_over_pixels():
    inner, x = ELBO(make_model(), gaussian(), KLSchedule("constant", 0.3)), observations(20)
    averaged, plain = PixelMean(inner, 3), terms(inner, x).values
    torch.testing.assert_close(terms(averaged, x).total(), plain["reconstruction"].mean() / 3 + 0.3 * plain["kl"].mean())
    assert averaged.parameter_groups() == inner.parameter_groups()
