"""Builder of the parts of one experiment: networks, model, posterior, objective, optimisation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, likelihoods, priors, schedules
from ddvi_fast.data import Dataset
from ddvi_fast.data.augment import flip
from ddvi_fast.data.binarization import binarize
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import IMAGE_SHAPE, MLP, ConvDecoder, ConvEncoder, SigmoidVariances
from ddvi_fast.objectives import ELBO, IWAE, WAE, Adversarial, Objective, WakeSleep
from ddvi_fast.objectives.adversarial import make_discriminator
from ddvi_fast.objectives.annealing import KLSchedule, PriorGuide
from ddvi_fast.objectives.pairs import Sleep
from ddvi_fast.posteriors import Posterior
from ddvi_fast.posteriors.base import COORDINATES
from ddvi_fast.posteriors.class_conditional import ClassConditional
from ddvi_fast.priors import Prior
from ddvi_fast.recipes.families import Family, family_of
from ddvi_fast.recipes.options import ChainOptions, NetworkOptions, Options
from ddvi_fast.recipes.phases import Optimisation, Phase
from ddvi_fast.rng import Draws

IMPLICIT = ("adversarial", "wae")  # objectives without a bound
# Lanes of the run's seed from which its networks draw their initial weights.
WEIGHTS = ("decoder", "encoder", "context", "denoiser", "warmup_denoiser", "classifier", "centres", "discriminator", "trunk")
_INITIAL_LOG_VARIANCE = -2.0  # of q(y_T | x), where its means start with the prior's spread
_STATIONARY_BETA = 0.3  # initial beta of the chain in the encoder's frame
_EXAMPLES = 2048  # examples whose means are matched with the prior
_TARGETS = 4096  # prior samples with which they are matched

# Further classes of the bound by name; `ddvi_fast.paper` registers "defective", the released code's.
BOUNDS: dict[str, type[ELBO]] = {"default": ELBO}

Augmentation = Callable[[Tensor, Draws], Tensor]
Network = MLP | ConvEncoder | ConvDecoder | SigmoidVariances


def augmentation(options: Options) -> Augmentation | None:
    """The augmentation of training data, a function of data and draws; None if there is none."""
    if options.dataset.flip and options.dataset.binarize:
        return lambda x, draws: binarize(flip(x, draws), draws)
    return flip if options.dataset.flip else binarize if options.dataset.binarize else None


class Builder:
    """Builds the parts of an experiment, with initial weights from the seed of its options, on the CPU.

    Args:
        options: Options of the experiment.
        dataset: Data set of the experiment.
    """

    def __init__(self, options: Options, dataset: Dataset) -> None:
        self.options, self.dataset = options, dataset
        self.latent_dim = options.latent_dim  # of the family under construction: in the prior's coordinates, those of its noise
        self.place: dict[str, Any] = {}  # arguments of the family under construction: its coordinates and the prior they need
        self.starts_at_prior = options.recipe.match_prior

    # Lengths and learning rates

    def epochs(self, recipe: int | None = None) -> int:
        """Epochs of a stage for which the recipe has so many (its own `epochs` by default); `options.epochs` overrides what is not zero."""
        stated = self.options.recipe.epochs if recipe is None else recipe
        epochs = stated if self.options.epochs is None or stated == 0 else self.options.epochs
        _checks.require(recipe is not None or epochs >= 1, "epochs", "at least 1", epochs)
        return epochs

    def optimisation(self) -> Optimisation:
        """Learning rates and clipping of the recipe."""
        recipe = self.options.recipe
        factors = {"learned_schedule": recipe.schedule_lr, "log_variance_factors": recipe.schedule_lr, ".denoiser.": recipe.denoiser_lr}
        return Optimisation(recipe.lr, recipe.lr_schedule, recipe.warmup_fraction, recipe.max_norm, factors)

    def train_phase(self, objective: Objective, factors: dict[str, float] | None = None) -> Phase:
        """The one phase of a recipe without stages."""
        optimisation = self.optimisation()
        if factors:
            optimisation = replace(optimisation, factors={**optimisation.factors, **factors})
        return Phase("train", objective, self.epochs(), optimisation)

    # Networks

    def weights(self, place: str) -> Draws:
        """Draws of the initial weights of a network, one of `WEIGHTS`."""
        return Draws(self.options.seed).importance(WEIGHTS.index(place))

    def encoder(self, outputs: int, place: str = "encoder", dropout: float | None = None) -> nn.Module:
        """A network from examples of the data set to `outputs` values."""
        recipe, network = self.options.recipe, self.options.dataset.encoder
        rate = network.dropout if dropout is None else dropout
        if place == "context" and recipe.context_dropout is not None:
            rate = recipe.context_dropout
        made = _network(network, self.dataset.num_dimensions, outputs, rate, self.weights(place))
        if place == "encoder" and recipe.sigmoid_variances:
            made = SigmoidVariances(made, self.latent_dim)
        return self.dataset.wrap_encoder(made)

    def encoder_trunk(self) -> nn.Module:
        """A network from examples of the data set to the last hidden layer of an encoder, before its activation."""
        network = self.options.dataset.encoder
        *hidden, width = network.hidden
        made = _network(replace(network, hidden=hidden), self.dataset.num_dimensions, width, network.dropout, self.weights("trunk"))
        return self.dataset.wrap_encoder(made)

    def head(self, outputs: int, place: str) -> nn.Module:
        """A linear layer from the last hidden layer of an encoder to `outputs` values."""
        return MLP(self.options.dataset.encoder.hidden[-1], [], outputs, draws=self.weights(place))

    def decoder(self, inputs: int) -> nn.Module:
        """A network from `inputs` latents to the data's dimensions."""
        network = self.options.dataset.decoder
        made = _network(network, inputs, self.dataset.num_dimensions, network.dropout, self.weights("decoder"), decodes=True)
        self.dataset.initialize_decoder(made)
        return made

    def discriminator(self, inputs: int) -> nn.Module:
        """The discriminator of an adversarial objective."""
        return make_discriminator(inputs, self.weights("discriminator"))

    # Model and posterior

    def prior(self) -> Prior:
        """The prior of the options."""
        stated = self.options.prior
        _checks.require("dim" not in stated.options, "prior.options.dim", "the setting latent_dim", stated.options.get("dim"))
        sized = {"dim": self.latent_dim} if stated.name == "gaussian" else {}
        prior = priors.make(stated.name, **sized, **stated.options)
        _checks.require(prior.dim == self.latent_dim, "latent_dim", f"{prior.dim}, as the {stated.name} prior has", self.latent_dim)
        _checks.require(stated.kernel_width >= 0, "prior.kernel_width", "a width of at least 0", stated.kernel_width)
        return prior.blurred(stated.kernel_width)

    def model(self, prior: Prior | None = None) -> LatentVariableModel:
        """The generative model: prior (that of the options by default), decoder, likelihood."""
        prior = self.prior() if prior is None else prior
        stated = self.options.dataset
        likelihood = likelihoods.make(stated.likelihood, **stated.likelihood_options)
        return LatentVariableModel(prior, self.decoder(prior.dim), likelihood)

    def posterior(self, model: LatentVariableModel) -> Posterior:
        """The posterior of the options, its means matched with the prior where the recipe says so."""
        builder = self.placed(model.prior)
        posterior = builder.family.build(builder, builder.encoder, partial(builder.encoder, place="context"), model)
        if self.options.recipe.match_prior:
            means = posterior.encoder(self.first_examples())
            builder.match_prior(posterior.encoder.output_layer, slice(None), means, targets(posterior, model.prior))
        return posterior

    def placed(self, prior: Prior, discrete_class: bool = False) -> Builder:
        """This builder for a family in the coordinates of the options; with `discrete_class` the class is not part of the prior's noise."""
        coordinates = self.coordinates
        pushes = "prior" in coordinates
        made = copy.copy(self)
        if pushes:
            made.latent_dim = prior.noise_dim if discrete_class else prior.joint_noise_dim
        made.place = {"coordinates": coordinates, "prior": prior if pushes else None}
        return made

    @property
    def released(self) -> bool:
        """Whether the recipe is the released code's."""
        return self.options.recipe.name == "released"

    @property
    def coordinates(self) -> str:
        """Coordinates of the posterior."""
        stated = self.options.method.coordinates
        return ("latent" if self.released else "prior+encoder") if stated is None else _checks.choice(stated, COORDINATES, "method.coordinates")

    def num_samples(self, posterior: Posterior) -> int:
        """Posterior samples per row."""
        stated = self.options.method.num_samples
        return (4 if isinstance(posterior, ClassConditional) else 1) if stated is None else stated

    @property
    def family(self) -> Family:
        """The posterior family of the options."""
        return family_of(self.options.method.posterior)

    @property
    def whitens(self) -> bool:
        """Whether the family under construction is in the encoder's frame."""
        return "encoder" in self.place.get("coordinates", "")

    @property
    def shares_context(self) -> bool:
        """Whether the encoder of the family under construction computes its context."""
        stated = self.options.recipe.shared_context
        return (not self.released if stated is None else stated) and self.family.shares_context

    def schedule(self, chain: ChainOptions) -> schedules.NoiseSchedule:
        """The noise schedule of a chain; with the defect `unscaled_noise`, the released code's for any T."""
        if self.options.recipe.defects.unscaled_noise:
            return schedules.make("linear", chain.num_steps)
        if chain.schedule is None:
            name, options = ("constant", {"beta": _STATIONARY_BETA}) if self.whitens else ("geometric", {})
            return schedules.make(name, chain.num_steps, **{**options, **chain.schedule_options})
        return schedules.make(chain.schedule, chain.num_steps, **chain.schedule_options)

    @torch.no_grad()
    def match_prior(self, layer: nn.Linear, rows: slice, outputs: Tensor, target: Tensor) -> None:
        """Rescale rows of an encoder's last layer in place so that its means get the mean and spread of prior samples; variances start small.

        Means that start at one point are far from most of a narrow prior, and the KL term then pulls all of them together.

        Args:
            layer: Last layer of the encoder.
            rows: Rows of the layer that belong to the family: means, then log-variances if it has them, then others.
            outputs: Outputs of these rows on the first examples, [N, W].
            target: Prior samples in the coordinates of the means, [M, D].
        """
        weight, bias, dim = layer.weight[rows], layer.bias[rows], target.shape[1]
        means = outputs[:, :dim]
        factor = target.std(0) / means.std(0)
        weight[:dim] *= factor.unsqueeze(1)
        bias[:dim] = (bias[:dim] - means.mean(0)) * factor + target.mean(0)
        if self.whitens or not self.family.location_only:
            weight[dim : 2 * dim] *= 0.1
            bias[dim : 2 * dim] = _INITIAL_LOG_VARIANCE

    def first_examples(self) -> Tensor:
        """The first training examples, on the CPU, where networks are built."""
        return self.dataset.inputs(slice(0, _EXAMPLES)).cpu()

    # Objectives

    def kl(self, factor: float | None = None) -> KLSchedule:
        """The schedule of the KL weight, times `factor` (`method.beta` by default)."""
        kl = self.options.recipe.kl
        return replace(kl, weight=kl.weight * (self.options.method.beta if factor is None else factor))

    def guide(self) -> PriorGuide:
        """The annealing of the prior in training."""
        recipe = self.options.recipe
        return PriorGuide(recipe.prior_blur, recipe.prior_blur_fraction)

    def objective(self, model: LatentVariableModel, posterior: Posterior) -> Objective:
        """The objective of the options."""
        method = self.options.method
        fits = method.objective == "iwae" or not method.doubly_reparametrised
        _checks.require(fits, "method.doubly_reparametrised", "false unless method.objective is iwae", True)
        if method.objective in IMPLICIT:
            return self._implicit(model, posterior)
        wake = self._iwae(model, posterior) if method.objective == "iwae" else self._elbo(model, posterior)
        sleep = self.sleep()
        return wake if sleep is None else WakeSleep(wake, sleep)

    def sleep(self) -> Sleep | None:
        """Settings of the terms on pairs: all of them for the objective ddvi, otherwise those of the class and of the decoder, for every family."""
        if self.options.method.objective == "ddvi":
            return replace(self.options.method.sleep)
        return None if self.released else replace(self.options.method.sleep, weight=0.0, top_weight=0.0, alternating=False)

    def weight(self) -> dict[str, float]:
        """The weight of an implicit objective as an argument; the objective's own default if the options have none."""
        return {} if self.options.method.weight is None else {"weight": self.options.method.weight}

    def _implicit(self, model: LatentVariableModel, posterior: Posterior) -> Objective:
        sleep = self.sleep()
        if self.options.method.objective == "wae":
            return WAE(model, posterior, **self.weight(), sleep=sleep)
        return Adversarial(model, posterior, self.discriminator(model.prior.dim), **self.weight(), sleep=sleep)

    def _iwae(self, model: LatentVariableModel, posterior: Posterior) -> IWAE:
        method = self.options.method
        return IWAE(model, posterior, self.num_samples(posterior), method.doubly_reparametrised, self.kl(), self.guide())

    def _elbo(self, model: LatentVariableModel, posterior: Posterior) -> ELBO:
        method, defects = self.options.method, self.options.recipe.defects
        wrong = {name: True for name in ("log_var_twice", "standard_normal_top") if getattr(defects, name)}
        known = not wrong or "defective" in BOUNDS
        _checks.require(known, "recipe.defects", "those registered by `import ddvi_fast.paper`", ", ".join(wrong))
        kind = BOUNDS["defective" if wrong else "default"]
        return kind(model, posterior, self.kl(), self.num_samples(posterior), self.guide(), method.reweighted, **wrong)


def _network(network: NetworkOptions, inputs: int, outputs: int, rate: float, draws: Draws, decodes: bool = False) -> Network:
    _checks.choice(network.kind, ("mlp", "conv"), "kind")
    if network.kind == "mlp":
        return MLP(inputs, network.hidden, outputs, activation=network.activation, dropout=rate, draws=draws)
    pixels = outputs if decodes else inputs
    _checks.require(pixels == math.prod(IMAGE_SHAPE), "kind", f"mlp, for data other than images of {IMAGE_SHAPE}", f"conv for {pixels} values")
    if decodes:
        return ConvDecoder(inputs, draws=draws)
    return ConvEncoder(outputs, network.hidden, activation=network.activation, dropout=rate, draws=draws)


def targets(posterior: Posterior, prior: Prior, label: int | None = None) -> Tensor:
    """Prior samples, of the class `label` if given, in the coordinates of the encoder's Gaussian [M, D]."""
    labels = None if label is None else torch.full((_TARGETS,), label, device="cpu")
    sample = prior.draw(_TARGETS, Draws(0), labels, joint=posterior.pushes and posterior.latent_dim != prior.noise_dim)
    return sample.noise if posterior.pushes else sample.z
