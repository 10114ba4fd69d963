"""A semi-supervised DDVI step at MNIST shape: ours, made of public parts, against the baseline with the same work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bench.baselines.semisupervised import (
    CROSS_ENTROPY,
    LEARNING_RATE,
    RADIUS,
    SCALE,
    SLEEP,
    SLEEP_CLASS,
    SLEEP_TOP,
    Networks,
    SemiSupervisedStep,
    Sizes,
)
from bench.diffusion import copy_denoiser, denoiser_gradients, network_flops
from bench.problem import Work
from bench.steps import GRADIENT_FLOOR, Step
from bench.training import copy_perceptron, images, linear_parameters, named_gradients, precision
from ddvi_fast import likelihoods, models, networks, priors, rng, schedules
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.engine.local import LocalEngine
from ddvi_fast.objectives import Progress
from ddvi_fast.objectives.semisupervised import ClassWeights, LabelledExamples, SemiSupervised
from ddvi_fast.objectives.wake_sleep import Sleep, uniform_timesteps
from ddvi_fast.posteriors.class_conditional import ClassConditional, ClassDiffusion, PerClass
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws

SEED = 3
PROGRESS = Progress(0.9, 1, 1000)  # where the classifier follows the whole bound
SMALL = Sizes(pixels=64, hidden=64, classes=3, chain_hidden=64)  # for trying things out
SHARE = 0.25  # labelled examples for each row
_KINKS = 0.05  # a hidden unit near zero may round to the other side, in the one computation as in the other; where rows are few, each counts
_NETWORKS = ("classifier", "encoder", "context_encoder", "decoder")


def build_objective(sizes: Sizes, rows: int, device: torch.device) -> SemiSupervised:
    """The bound and its sleep term at these sizes."""

    def mlp(number: int, inputs: int, outputs: int) -> networks.MLP:
        return networks.MLP(inputs, [sizes.hidden] * 2, outputs, activation="leaky_relu", draws=Draws(SEED).importance(number))

    prior = priors.make("mixture", num_classes=sizes.classes, radius=RADIUS, scale=SCALE)
    model = models.LatentVariableModel(prior, mlp(0, sizes.latent, sizes.pixels), likelihoods.make("bernoulli"))
    family = ClassDiffusion(
        PerClass(mlp(1, sizes.pixels, sizes.classes * 2 * sizes.latent), sizes.classes),
        ResidualMLP(sizes.latent, sizes.context, sizes.num_steps, sizes.chain_hidden, groups=sizes.classes, draws=Draws(SEED).importance(3)),
        schedules.make("linear", sizes.num_steps),
        context_encoder=mlp(2, sizes.pixels, sizes.context),
        parametrisation="eps",
        learn_variances=False,
    )
    posterior = ClassConditional(mlp(4, sizes.pixels, sizes.classes), family, prior)
    labels = torch.arange(sizes.classes).repeat_interleave(per_class(rows, sizes))
    known = LabelledExamples(images(len(labels), sizes.pixels, torch.device("cpu")), labels, sizes.classes)
    weights = ClassWeights(CROSS_ENTROPY, fantasies=SLEEP_CLASS, unlabelled=1.0, consistency=0.0, batch_fraction=SHARE)
    sleep = Sleep(SLEEP, SLEEP_TOP, "huber")
    return SemiSupervised(model, posterior, known, weights=weights, sleep=sleep).to(device)


def per_class(rows: int, sizes: Sizes) -> int:
    """Labelled examples of each class."""
    return round(rows * SHARE) // sizes.classes


class SemiSupervisedTraining(Step):
    """The step as a case."""

    gradient_floors = (GRADIENT_FLOOR, _KINKS)

    def __init__(self, device: torch.device, N: int, T: int, classes: int = 10, small: bool = False) -> None:
        super().__init__(device)
        self.sizes = replace(SMALL if small else Sizes(classes=classes), num_steps=T)
        self.rows, self.x = N, images(N, self.sizes.pixels, device)
        self.work = Work(flops=step_flops(self.sizes, N))

    def provider(self, name: str) -> Callable[[], object]:
        objective = self.objective().train()
        if not name.startswith("ours"):
            step = self.baseline(objective, compiled=name == "compiled")
            return lambda: step(self.x)
        kind = "bf16" if name.endswith("bf16") else "float32"
        engine = LocalEngine(objective, Optimisation(LEARNING_RATE, "constant"), self.device, precision=kind)
        return lambda: engine.run(self.x, PROGRESS, Draws(SEED))

    def objective(self) -> SemiSupervised:
        return build_objective(self.sizes, self.rows, self.device)

    def baseline(self, objective: SemiSupervised, compiled: bool = False) -> SemiSupervisedStep:
        """Our weights in the baseline, which sees the labelled examples that ours draws."""
        theirs, family = Networks(self.sizes), objective.posterior.family
        for name, module in _modules(objective).items():
            copy_perceptron(module, getattr(theirs, name))
        for label, denoiser in enumerate(theirs.denoisers):
            copy_denoiser(family.denoiser, denoiser, label)
        many = per_class(self.rows, self.sizes)
        known = objective.labelled.draw(many, self._draws_of_labelled())[0]
        step = SemiSupervisedStep(theirs.to(self.device), self.sizes, known, many)
        return step.compiled() if compiled else step

    def _draws_of_labelled(self) -> Draws:
        return Draws(SEED).importance(self.sizes.classes)

    def given(self, objective: SemiSupervised) -> dict:
        """What our step draws, for the baseline: arguments of its losses."""
        sizes, draws, own = self.sizes, Draws(SEED), self._draws_of_labelled()
        shape, many = (sizes.classes, self.rows, sizes.latent), per_class(self.rows, sizes)
        z, imagined, _ = objective._fantasies(self.x, draws, self.rows)

        def labelled(stream: int, planes: int) -> Tensor:
            made = rng.normal(own, (1, sizes.classes * many, sizes.latent), stream, planes=planes, device=self.device)
            return made[:, 0].unflatten(1, (sizes.classes, many)).transpose(0, 1)

        chain = rng.normal(draws, (sizes.classes, self.rows, sizes.latent), rng.CHAIN, planes=sizes.num_steps, device=self.device)
        noise = {
            "start": rng.normal(draws, shape, rng.START, device=self.device),
            "chain": chain.transpose(0, 1),
            "labelled_start": labelled(rng.START, 1)[:, 0],
            "labelled_chain": labelled(rng.CHAIN, sizes.num_steps),
            "sleep": rng.normal(draws, tuple(z.shape), rng.NOISE, device=self.device),
            "top": rng.normal(draws.importance(1), tuple(z.shape), rng.NOISE, device=self.device),
        }
        t = uniform_timesteps(draws, len(z), sizes.num_steps, self.device)
        return {"x": self.x, "z": z, "imagined": imagined, "noise": noise, "t": t}

    def baseline_results(self, step: SemiSupervisedStep, given: dict, bf16: bool = False) -> dict[str, Tensor]:
        step.networks.zero_grad()
        with precision(step.labelled.device, bf16):
            loss = sum(step.losses(**given).values())
        loss.backward()
        found = {"loss": loss.detach()}
        for name in _NETWORKS:
            found |= named_gradients("step", name, linear_parameters(getattr(step.networks, name)))
        classes = [denoiser_gradients(network, [parameter.grad for parameter in network.parameters()]) for network in step.networks.denoisers]
        found |= {f"step gradient of denoiser {name}": torch.stack([gradients[name] for gradients in classes]) for name in classes[0]}
        return {name: value.cpu() for name, value in found.items()}

    def our_results(self, objective: SemiSupervised, bf16: bool) -> dict[str, Tensor]:
        objective.zero_grad()
        with precision(self.device, bf16):
            loss = objective.terms(self.x, PROGRESS, Draws(SEED)).total()
        loss.backward()
        found = {"loss": loss.detach()}
        for name, module in _modules(objective).items():
            found |= named_gradients("step", name, list(module.parameters()))
        for name, parameter in objective.posterior.family.denoiser.named_parameters():
            found[f"step gradient of denoiser {name}"] = parameter.grad
        return {name: value.cpu() for name, value in found.items()}


def step_flops(sizes: Sizes, rows: int) -> float:
    """Floating-point operations of the step's matrix products, forward and backward; backward costs twice a forward pass, less the
    gradient to the data in the first layer of the networks that see them. Fantasies are decoded forward only.
    """

    def seen(outputs: int) -> float:
        return 2.0 * (2 * sizes.pixels * sizes.hidden + 3 * sizes.hidden * (sizes.hidden + outputs))

    decoder = 2.0 * sizes.hidden * (sizes.latent + sizes.hidden + sizes.pixels)
    chain = network_flops(sizes.latent, sizes.context, sizes.chain_hidden)
    labelled, imagined = per_class(rows, sizes) * sizes.classes, rows // sizes.classes * sizes.classes
    encoders = seen(sizes.classes) + seen(2 * sizes.classes * sizes.latent) + seen(sizes.context)
    samples = rows * sizes.classes + labelled
    return (rows + labelled + imagined) * encoders + 3 * samples * (decoder + sizes.num_steps * chain) + imagined * (decoder + 3 * chain)


def _modules(objective: SemiSupervised) -> dict[str, networks.MLP]:
    """Our dense networks under the baseline's names."""
    family = objective.posterior.family
    found = (objective.posterior.classifier, family.encoder.network, family.context_encoder, objective.model.decoder)
    return dict(zip(_NETWORKS, found, strict=True))
