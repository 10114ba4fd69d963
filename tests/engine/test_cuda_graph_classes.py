"""Objectives over classes replay as they step, and nothing in a step waits for the host."""

from __future__ import annotations

import copy

import pytest
import torch

from ddvi_fast import denoisers, likelihoods, models, networks, posteriors, priors, schedules, use_backend
from ddvi_fast.data.dataset import from_arrays
from ddvi_fast.engine.cuda_graph import DeviceProgress
from ddvi_fast.engine.engine import Engine
from ddvi_fast.objectives.adversarial import make_discriminator
from ddvi_fast.objectives.adversarial_classes import AdversarialSemiSupervised
from ddvi_fast.objectives.annealing import PriorGuide
from ddvi_fast.objectives.clustering import Clustering
from ddvi_fast.objectives.elbo import ELBO
from ddvi_fast.objectives.semisupervised import ClassWeights, LabelledExamples, SemiSupervised
from ddvi_fast.objectives.wake_sleep import Sleep, WakeSleep
from ddvi_fast.posteriors.class_conditional import ClassConditional, ClassMLP, PerClass
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import DeviceDraws, Draws
from tests.engine import pretend
from tests.engine.recording import OperationRecording
from tests.engine.test_cuda_graph import run

pytestmark = pytest.mark.usefixtures("plain_layers")

PIXELS, ROWS, CLASSES = 6, 8, 2
WEIGHTS = ClassWeights(consistency=1.0, balance=0.5, batch_fraction=0.5)


def model_of(prior):
    return models.LatentVariableModel(prior, networks.MLP(prior.dim, [8], PIXELS, draws=Draws(1)), likelihoods.make("bernoulli"))


def heads(width, seed):
    return PerClass(networks.MLP(PIXELS, [8], CLASSES * width, dropout=0.2, draws=Draws(seed)), CLASSES)


def labelled():
    return LabelledExamples(torch.rand(10, PIXELS, generator=torch.Generator().manual_seed(1)), torch.arange(10) % CLASSES, CLASSES)


def classifier():
    return networks.NoisyInput(networks.MLP(PIXELS, [8], CLASSES, dropout=0.2, draws=Draws(5)), 0.1, 0.1)


def semi(prior):
    family = posteriors.Diffusion(
        heads(2 * prior.noise_dim, 2),
        denoisers.ResidualMLP(prior.noise_dim, 3, 4, 64, draws=Draws(3)),
        schedules.make("geometric", 4),
        context_encoder=networks.MLP(PIXELS, [8], 3, draws=Draws(4)),
        coordinates="prior+encoder",
        prior=prior,
    )
    bound = ELBO(model_of(prior), ClassConditional(classifier(), family, prior), num_samples=2)
    return SemiSupervised(WakeSleep(bound, Sleep(0.3, 0.2)), labelled(), WEIGHTS)


def m2():
    prior = priors.OneHotGaussian(3, CLASSES)
    style = posteriors.Gaussian(ClassMLP(PIXELS, [8], 6, CLASSES, draws=Draws(6)), 3, "prior", prior)
    bound = ELBO(model_of(prior), ClassConditional(classifier(), style, prior), num_samples=2)
    return SemiSupervised(WakeSleep(bound, Sleep(0.0, 0.0)), labelled(), WEIGHTS)


def adversarial():
    prior = priors.make("pinwheel", num_classes=CLASSES)
    whole = ClassConditional(classifier(), posteriors.Adversarial(heads(5, 2), 2, 3), prior)
    return AdversarialSemiSupervised(model_of(prior), whole, make_discriminator(2 + CLASSES, hidden_dim=8), labelled(), WEIGHTS)


def clustering():
    prior = priors.Centres(num_centres=5)
    posterior = posteriors.Gaussian(networks.MLP(PIXELS, [8], 4, draws=Draws(2)), 2)
    return Clustering(ELBO(model_of(prior), posterior, guide=PriorGuide(0.3, 0.5)), prior)


OBJECTIVES = {
    "pinwheel": lambda: semi(priors.make("pinwheel", num_classes=CLASSES)),
    "square": lambda: semi(priors.make("less_noisy_square", num_classes=CLASSES)),
    "swiss roll": lambda: semi(priors.make("swiss_roll_noisy", num_classes=CLASSES)),
    "M2": m2,
    "adversarial": adversarial,
    "clustering": clustering,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_replays_train_as_steps_do(name):
    dataset = from_arrays("random", torch.rand(40, PIXELS, generator=torch.Generator().manual_seed(0)).numpy(), test_size=8)
    objective = OBJECTIVES[name]()
    replayed = copy.deepcopy(objective)
    expected = run(objective, dataset)
    found = run(replayed, dataset, capture=True, make_recording=OperationRecording)
    for step, (here, there) in enumerate(zip(found, expected, strict=True)):
        assert here == pytest.approx(there, rel=1e-3, abs=1e-3), f"step {step}"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_passes_between_host_and_device(monkeypatch, name):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda optimiser: None)  # torch's own, which knows no device without memory
    engine = Engine(OBJECTIVES[name](), Optimisation(max_norm=1.0), pretend.DEVICE)
    x = torch.empty(ROWS, PIXELS, device=pretend.DEVICE)
    draws, progress = DeviceDraws(Draws(0).state(pretend.DEVICE)), DeviceProgress(10, 5, pretend.DEVICE)
    with use_backend("reference"):
        engine._run(x, progress, draws)  # what is made once and kept
        with pretend.NoHostTraffic():
            engine._run(x, progress, draws)
