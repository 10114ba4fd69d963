"""The loop: phases, frozen modules, steps an epoch, and repeatability."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from ddvi_fast import likelihoods, models, networks, posteriors, priors
from ddvi_fast.data.dataset import from_arrays
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.loop import Callback, train
from ddvi_fast.objectives import ELBO
from ddvi_fast.recipes.phases import Optimisation, Phase
from ddvi_fast.rng import Draws


class Record(Callback):
    def __init__(self):
        self.steps, self.epochs = [], []

    def step(self, step, phase, epoch, terms):
        self.steps.append((step, phase, epoch, {name: float(value) for name, value in terms.items()}))

    def epoch(self, step, phase, epoch, engine):
        self.epochs.append((step, phase, epoch))


@pytest.fixture
def dataset():
    x = torch.rand(40, 6, generator=torch.Generator().manual_seed(0)).numpy()
    return from_arrays("random", x, test_size=8)


def make_objective():
    model = models.LatentVariableModel(priors.make("gaussian", dim=2), networks.MLP(2, [8], 6, draws=Draws(1)), likelihoods.make("bernoulli"))
    return ELBO(model, posteriors.Gaussian(networks.MLP(6, [8], 4, draws=Draws(2)), 2))


def run(phases, dataset, seed=0, augment=None):
    record = Record()
    train(phases, dataset, 8, seed, lambda objective, optimisation: Engine(objective, optimisation), [record], augment)
    return record


def test_steps_epochs_and_phases_are_counted_through(dataset):
    objective = make_objective()
    record = run([Phase("first", objective, 2), Phase("second", objective, 1, steps_per_epoch=9)], dataset)
    assert [step for step, *_ in record.steps] == list(range(1, 18))
    assert record.epochs == [(4, "first", 1), (8, "first", 2), (17, "second", 1)]
    assert record.steps[0][3].keys() == {"reconstruction", "kl"}


def test_a_frozen_module_stands_still_until_it_is_thawed(dataset):
    objective = make_objective()
    decoder = objective.model.decoder
    before, seen = parameters_to_vector(decoder.parameters()), []

    class Weights(Callback):
        def epoch(self, step, phase, epoch, engine):
            seen.append(parameters_to_vector(decoder.parameters()))

    train([Phase("train", objective, 3, frozen=[decoder], frozen_epochs=2)], dataset, 8, 0, Engine, [Weights()])
    assert torch.equal(seen[0], before) and torch.equal(seen[1], before)
    assert not torch.equal(seen[2], before)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(dataset):
    weights = []
    for seed in (0, 0, 1):
        objective = make_objective()
        run([Phase("train", objective, 2, Optimisation(lr=1e-2))], dataset, seed)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in objective.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_training_data_are_augmented_at_the_draws_of_their_batch(dataset):
    firsts = []

    def augment(x, draws):
        firsts.append(draws.first_index)
        return x

    run([Phase("train", make_objective(), 2)], dataset, augment=augment)
    assert firsts == [0, 8, 16, 24, 32, 40, 48, 56]
