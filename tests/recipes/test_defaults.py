"""Tests of defaults: an experiment put together in Python trains as the command line's does."""

from __future__ import annotations

import dataclasses

import torch

from ddvi_fast import data, denoisers, likelihoods, models, networks, objectives, posteriors, priors, schedules
from ddvi_fast.config.compose import compose
from ddvi_fast.engine.engine import Engine
from ddvi_fast.objectives import Progress
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.options import Options
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws


def python_example() -> objectives.Objective:
    """The objective of the README, with the layer widths and initial weights of the command line."""
    weights, prior = Draws(0).importance, priors.make("square")
    model = models.LatentVariableModel(prior, networks.MLP(2, [256, 256], 64, draws=weights(0)), likelihoods.make("bernoulli"))
    posterior = posteriors.Diffusion(
        encoder=networks.MLP(64, [256, 256], 2 * 3 + 32, draws=weights(1)),
        denoiser=denoisers.ResidualMLP(latent_dim=3, context_dim=32, num_steps=5, draws=weights(3)),
        schedule=schedules.make("constant", 5, beta=0.3),
        coordinates="prior+encoder",
        prior=prior,
    )
    return objectives.WakeSleep(objectives.ELBO(model, posterior, objectives.KLSchedule("constant")))


def trained(objective: objectives.Objective, optimisation: Optimisation, x: torch.Tensor) -> list[dict[str, float]]:
    """Terms of three training steps."""
    engine = Engine(objective.train(), optimisation)
    steps = [engine.run(x, Progress(step, 10), Draws(0, step * len(x))) for step in range(3)]
    return [{name: float(value) for name, value in terms.items()} for terms in steps]


def test_the_python_example_trains_what_the_command_line_trains() -> None:
    digits = data.load("digits")
    x = digits.inputs(slice(0, 64))
    # Initialization by the data, a network for the class and the learning rates are the recipe's own.
    (phase,) = build(compose(["prior=square", "method.discrete_class=false", "recipe.match_prior=false"]), digits).phases
    assert trained(python_example(), phase.optimisation, x) == trained(phase.objective, phase.optimisation, x)


def test_the_default_configuration_is_the_default_of_the_library() -> None:
    config, options = compose([]), Options()
    for field in dataclasses.fields(Options):
        assert getattr(config, field.name) == getattr(options, field.name), field.name
