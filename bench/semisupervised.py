"""A semi-supervised DDVI step at MNIST shape as a problem: ours against the baseline with the same work."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bench.baselines.semisupervised import (
    CROSS_ENTROPY,
    RADIUS,
    SAMPLES,
    SCALE,
    SLEEP,
    SLEEP_CLASS,
    SLEEP_TOP,
    Networks,
    SemiSupervisedStep,
    Sizes,
)
from bench.problem import Work
from bench.steps import GRADIENT_FLOOR, SEED, Step, images, perceptron
from bench.weights import network_flops
from ddvi_fast import likelihoods, models, priors, rng, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.objectives import ELBO, Progress, Sleep, WakeSleep
from ddvi_fast.objectives.pairs import uniform_timesteps
from ddvi_fast.objectives.semisupervised import ClassWeights, LabelledExamples, SemiSupervised
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.posteriors.class_conditional import ClassConditional, PerClass, draw_classes
from ddvi_fast.rng import Draws

PROGRESS = Progress(0.9, 1, 1000)  # late enough that the classifier follows the whole bound
SMALL = Sizes(pixels=64, hidden=64, classes=3, chain_hidden=64)  # for tests
SHARE = 0.25  # labelled examples for each row
_KINKS = 0.05  # tolerance for hidden units near zero, whose sign may differ between two computations; with few rows each of them counts


def build_objective(sizes: Sizes, rows: int, device: torch.device) -> SemiSupervised:
    """The bound and its sleep term at these sizes."""
    prior = priors.make("mixture", num_classes=sizes.classes, radius=RADIUS, scale=SCALE)
    model = models.LatentVariableModel(prior, perceptron(0, sizes.latent, sizes.hidden, sizes.pixels), likelihoods.make("bernoulli"))
    family = Diffusion(
        PerClass(perceptron(1, sizes.pixels, sizes.hidden, sizes.classes * 2 * sizes.latent), sizes.classes),
        ResidualMLP(sizes.latent, sizes.context, sizes.num_steps, sizes.chain_hidden, draws=Draws(SEED).importance(3)),
        schedules.make("linear", sizes.num_steps),
        context_encoder=perceptron(2, sizes.pixels, sizes.hidden, sizes.context),
        parametrisation="eps",
        learn_variances=False,
    )
    posterior = ClassConditional(perceptron(4, sizes.pixels, sizes.hidden, sizes.classes), family, prior)
    labels = torch.arange(sizes.classes).repeat_interleave(per_class(rows, sizes))
    known = LabelledExamples(images(len(labels), sizes.pixels, torch.device("cpu")), labels, sizes.classes)
    weights = ClassWeights(CROSS_ENTROPY, unlabelled=1.0, consistency=0.0, batch_fraction=SHARE)
    sleep = Sleep(SLEEP, SLEEP_TOP, "huber", data=False, classes=SLEEP_CLASS)
    return SemiSupervised(WakeSleep(ELBO(model, posterior, num_samples=SAMPLES), sleep), known, weights).to(device)


def per_class(rows: int, sizes: Sizes) -> int:
    """Labelled examples of each class."""
    return round(rows * SHARE) // sizes.classes


class SemiSupervisedTraining(Step):
    """The step as a case."""

    progress, gradient_floors = PROGRESS, (GRADIENT_FLOOR, _KINKS)

    def __init__(self, device: torch.device, N: int, T: int, classes: int = 10, small: bool = False) -> None:
        super().__init__(device)
        self.sizes = replace(SMALL if small else Sizes(classes=classes), num_steps=T)
        self.rows, self.x = N, images(N, self.sizes.pixels, device)
        self.work = Work(flops=step_flops(self.sizes, N))

    def objective(self):
        return build_objective(self.sizes, self.rows, self.device)

    def perceptrons(self, objective):
        posterior, family = objective.posterior, objective.posterior.family
        named = {"classifier": posterior.classifier, "encoder": family.encoder.network, "context_encoder": family.context_encoder}
        return {**named, "decoder": objective.model.decoder}

    def denoiser(self, objective):
        return objective.posterior.family.denoiser

    def plain(self, objective):
        """The baseline, with the labelled examples that ours draws."""
        many = per_class(self.rows, self.sizes)
        known = objective.labelled.draw(many, self._draws_of_labelled())[0]
        return SemiSupervisedStep(Networks(self.sizes).to(self.device), self.sizes, known, many)

    def _draws_of_labelled(self) -> Draws:
        return Draws(SEED).lane("labelled")

    def given(self, objective):
        sizes, draws, own = self.sizes, Draws(SEED), self._draws_of_labelled()
        many = per_class(self.rows, sizes) * sizes.classes
        z, imagined, _, kinds = objective.model.simulate(self.rows, draws, self.x)

        def normals(at: Draws, samples: int, rows: int, stream: int, planes: int | None = None) -> Tensor:
            made = rng.normal(at, (samples, rows, sizes.latent), stream, planes=planes, device=self.device)
            return made.flatten(-3, -2)

        noise = {
            "start": normals(draws, SAMPLES, self.rows, rng.START),
            "chain": normals(draws, SAMPLES, self.rows, rng.CHAIN, sizes.num_steps),
            "labelled_start": normals(own, 1, many, rng.START),
            "labelled_chain": normals(own, 1, many, rng.CHAIN, sizes.num_steps),
            "sleep": normals(draws, 1, self.rows, rng.NOISE),
            "top": normals(draws.lane("top"), 1, self.rows, rng.NOISE),
        }
        with torch.no_grad():
            drawn = draw_classes(objective.posterior.log_class_probs(self.x), SAMPLES, draws)
        t = uniform_timesteps(draws, self.rows, sizes.num_steps, self.device)
        return {"x": self.x, "z": z, "imagined": imagined, "kinds": kinds, "drawn": drawn, "noise": noise, "t": t}

    def plain_losses(self, step, given):
        return [("step", lambda: sum(step.losses(**given).values()))]

    def our_losses(self, objective):
        return [("step", lambda: objective.terms(self.x, PROGRESS, Draws(SEED)).total())]


def step_flops(sizes: Sizes, rows: int) -> float:
    """Floating-point operations of the step's matrix products, forward and backward.

    A backward pass takes twice as many as a forward pass, without the gradient to the data in a network's first layer. Fantasies are only decoded
    forward.
    """

    def encoder(outputs: int) -> float:
        return 2.0 * (2 * sizes.pixels * sizes.hidden + 3 * sizes.hidden * (sizes.hidden + outputs))

    decoder = 2.0 * sizes.hidden * (sizes.latent + sizes.hidden + sizes.pixels)
    chain = network_flops(sizes.latent, sizes.context, sizes.chain_hidden)
    labelled = per_class(rows, sizes) * sizes.classes
    encoders = encoder(sizes.classes) + encoder(2 * sizes.classes * sizes.latent) + encoder(sizes.context)
    samples = SAMPLES * rows + labelled
    return (2 * rows + labelled) * encoders + 3 * samples * (decoder + sizes.num_steps * chain) + rows * (decoder + 3 * chain)
