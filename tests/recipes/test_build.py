"""Tests of the assembly of experiments: parts, annealing, refused options."""

from __future__ import annotations

import math

import pytest
import torch

from ddvi_fast import InputError
from ddvi_fast.config.compose import compose
from ddvi_fast.config.names import choices
from ddvi_fast.objectives import DDVI, ELBO, IWAE, Progress
from ddvi_fast.recipes.build import build
from ddvi_fast.rng import Draws
from ddvi_fast.training.run import load_dataset


def built(*overrides):
    config = compose([*overrides])
    return build(config, load_dataset(config))


@pytest.mark.parametrize(("method", "objective"), [("ddvi", DDVI), ("vae", ELBO), ("iwae", IWAE), ("iaf", ELBO)])
@pytest.mark.parametrize("prior", choices("prior"))
def test_every_method_takes_every_prior(method, objective, prior):
    experiment = built(f"method={method}", f"prior={prior}")
    (phase,) = experiment.phases
    assert isinstance(phase.objective, objective)
    updates = phase.objective.updates(torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0)), Progress(1, 2), Draws(0))
    assert all(math.isfinite(float(update.terms().total().detach())) for update in updates)


@pytest.mark.parametrize(
    ("overrides", "reweighted"),
    [
        (["method.num_samples=3"], True),
        (["method.num_samples=3", "method.reweighted=false"], False),
        ([], False),
        (["method=vae", "method.num_samples=3"], False),
        (["method=vae", "method.num_samples=3", "method.reweighted=true"], True),
    ],
)
def test_several_samples_of_a_chain_are_reweighted_unless_told_otherwise(overrides, reweighted):
    objective = built(*overrides).phases[0].objective
    assert getattr(objective, "wake", objective).reweighted is reweighted


def test_the_encoder_starts_with_the_priors_centre_and_spread():
    config = compose(["prior=square"])
    dataset = load_dataset(config)
    experiment = build(config, dataset)
    means = experiment.posterior.encode(dataset.inputs()).mean
    target = experiment.model.prior.sample(4096)
    torch.testing.assert_close(means.mean(0), target.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(means.std(0), target.std(0), atol=0.05, rtol=0)


@pytest.mark.parametrize("prior", ["pinwheel", "swiss_roll_noisy", "square", "gaussian"])
def test_a_kernel_width_makes_the_models_prior_that_much_wider(prior):
    thin, wide = (built(f"prior={prior}", f"prior.kernel_width={width}").model.prior for width in (0, 0.3))
    noise = 0.3 * torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    there = thin.sample(20_000, Draws(1)) + noise
    torch.testing.assert_close(wide.sample(20_000, Draws(2)).std(0), there.std(0), atol=0.04, rtol=0)
    # The density belongs to the samples: no other one finds them likelier.
    others = (built(f"prior={prior}", f"prior.kernel_width={width}").model.prior for width in (0.2, 0.45))
    assert all(wide.log_prob(there).mean() > other.log_prob(there).mean() for other in others)


def test_annealing_doubles_the_steps_until_all_are_used():
    experiment = built("method.chain.num_steps=20", "method.chain.first_num_steps=3")
    numbers = []
    for epoch in range(100):
        experiment.phases[0].before_epoch(Progress(epoch, 100))
        numbers.append(experiment.posterior.schedule.num_steps)
    assert numbers[0] == 3 and sorted(set(numbers)) == [3, 6, 12, 20] and numbers == sorted(numbers) and numbers[50] == 20
    experiment.posterior.use_steps(5)
    sample = experiment.posterior.sample(torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0)), 2)
    assert sample.z.shape == (2, 4, 2) and bool(torch.isfinite(sample.log_ratio).all())


def test_a_coarser_schedule_has_the_noise_of_the_whole_one_where_it_stops():
    experiment = built("method.chain.num_steps=12")
    whole = experiment.posterior.schedule.noise_variances
    experiment.posterior.use_steps(4)
    torch.testing.assert_close(experiment.posterior.schedule.noise_variances, whole[[2, 5, 8, 11]])


def test_networks_of_one_run_start_apart_and_follow_the_seed():
    first, again, other = (built(f"seed={seed}").posterior for seed in (0, 0, 1))
    assert torch.equal(first.encoder.layers[0].weight, again.encoder.layers[0].weight)
    assert not torch.equal(first.encoder.layers[0].weight, other.encoder.layers[0].weight)
    assert not torch.equal(first.encoder.layers[0].weight, first.context_encoder.layers[0].weight)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method.doubly_reparametrised=true"], "doubly_reparametrised"),
        (["latent_dim=3"], "latent_dim"),
        (["method.sleep.num_updates=2"], "num_updates"),
        (["method=diff_vae"], "recipe"),
        (["method.chain.first_num_steps=1"], "first_num_steps"),
        (["recipe.lr=-1"], "lr"),
        (["method.reweighted=true"], "num_samples"),
        (["method=iwae", "method.reweighted=true"], "reweighted"),
        (["dataset.encoder.activation=gelu"], "activation"),
        (
            ["method=aae", "method.objective=elbo"],
            "method.objective: expected adversarial or wae, for the adversarial posterior, which has no density",
        ),
        (["method=vae", "method.objective=ddvi"], "method.objective: expected elbo, iwae, adversarial or wae, for a posterior other than diffusion"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(overrides, words):
    with pytest.raises(InputError, match=words):
        built(*overrides)
