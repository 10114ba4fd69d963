"""The loss that a called objective returns, and settings of objectives as configuration nodes."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from ddvi_fast import InputError, likelihoods
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.objectives import ELBO, IWAE, WAE, Adversarial, KLSchedule, PriorGuide, Progress, Sleep, WakeSleep
from ddvi_fast.objectives.adversarial import make_discriminator
from ddvi_fast.objectives.annealing import KINDS
from ddvi_fast.objectives.base import END_OF_TRAINING
from ddvi_fast.objectives.semisupervised import ClassWeights
from ddvi_fast.priors import Prior
from ddvi_fast.rng import Draws
from tests.linear_gaussian import diffusion_posterior, gaussian_posterior, make_model, observations

JOINT = {
    "elbo": lambda: ELBO(make_model(), gaussian_posterior()),
    "iwae": lambda: IWAE(make_model(), gaussian_posterior(), 3),
    "wae": lambda: WAE(make_model(), gaussian_posterior()),
    "wake_sleep": lambda: WakeSleep(ELBO(make_model(), diffusion_posterior(learn_variances=True))),
}


@pytest.mark.parametrize("name", JOINT)
def test_the_loss_is_the_total_of_the_update(name):
    objective, x, progress, draws = JOINT[name](), observations(5), Progress(1, 10), Draws(3, 20)
    (update,) = objective.updates(x, progress, draws)
    losses = objective(x, progress, draws), update.terms().total()
    gradients = [torch.autograd.grad(loss, objective.parameter_groups()["wake"], allow_unused=True) for loss in losses]
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_the_defaults_are_the_end_of_training_and_the_first_draws():
    objective, x = JOINT["wake_sleep"](), observations(5)
    assert torch.equal(objective(x), objective(x, Progress(9, 10), Draws(0)))
    assert not torch.equal(objective(x), objective(x, draws=Draws(0, 5)))
    assert [KLSchedule(kind, 0.7).at(END_OF_TRAINING) for kind in KINDS] == [0.7] * len(KINDS)


def test_the_sum_of_disjoint_updates_gives_each_group_its_own_gradient():
    model = make_model().requires_grad_(True)
    objective = Adversarial(model, gaussian_posterior(), make_discriminator(2, hidden_dim=8))
    x, groups = observations(6), objective.parameter_groups()
    parameters = [parameter for group in groups.values() for parameter in group]
    found = torch.autograd.grad(objective(x), parameters)
    expected = [torch.autograd.grad(update.terms().total(), groups[update.group]) for update in objective.updates(x, END_OF_TRAINING, Draws(0))]
    torch.testing.assert_close(found, tuple(gradient for group in expected for gradient in group))


def test_alternating_updates_are_refused():
    objective = WakeSleep(ELBO(make_model(), diffusion_posterior()), Sleep(alternating=True))
    with pytest.raises(InputError, match=r"^objective: expected parameter groups that do not overlap, got wake, sleep [^\n]*updates[^\n]*$"):
        objective(observations(3))


def test_a_prior_of_ones_own_needs_no_blur_unless_it_is_annealed():
    class Laplace(Prior):
        dim = 2

        def _log_prob(self, z, labels):
            return -z.abs().sum(-1) - 2 * math.log(2)

    model = LatentVariableModel(Laplace(), make_model().decoder, likelihoods.make("gaussian"))
    objective = ELBO(model, gaussian_posterior())
    assert objective(observations(3)).isfinite()
    with pytest.raises(InputError, match=r"^prior: expected one that can be blurred, got a Laplace prior [^\n]*PriorGuide\(blur=0\)[^\n]*$"):
        objective(observations(3), Progress(0, 10))


@pytest.mark.parametrize("settings", [Sleep, KLSchedule, PriorGuide, ClassWeights])
def test_settings_are_configuration_nodes(settings):
    omegaconf = pytest.importorskip("omegaconf")
    node = omegaconf.OmegaConf.structured(settings)
    assert dict(node) == dataclasses.asdict(settings()) and omegaconf.OmegaConf.to_object(node) == settings()
