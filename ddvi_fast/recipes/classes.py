"""From a configuration to an experiment over classes: semi-supervised, M2, clustering."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from ddvi_fast import _checks
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.data.labels import select_labels
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import NoisyInput
from ddvi_fast.objectives import Objective
from ddvi_fast.objectives.adversarial import make_discriminator
from ddvi_fast.objectives.adversarial_classes import AdversarialSemiSupervised
from ddvi_fast.objectives.clustering import Clustering
from ddvi_fast.objectives.semisupervised import ClassWeights, LabelledExamples, SemiSupervised
from ddvi_fast.posteriors import Posterior
from ddvi_fast.posteriors.class_conditional import ClassConditional, ClassDiffusion, ClassMLP, OneHotStyle, PerClass
from ddvi_fast.priors import Centres, OneHotGaussian, Prior
from ddvi_fast.priors.partitions import require_partitions
from ddvi_fast.recipes import families, parts
from ddvi_fast.recipes.phases import Experiment, Phase
from ddvi_fast.rng import Draws

_CLASSIFIER, _CENTRES = 5, 6  # further places of initial weights
_LATENT_BALANCE = 20.0
_FAMILIES = ("gaussian", "iaf", "planar", "realnvp", "spline", "adversarial")  # whose encoders may have a head for each class


def build_with_classes(config: Config, dataset: Dataset) -> Experiment:
    """Build a semi-supervised or clustering experiment.

    Raises:
        InputError: a prior whose classes do not fit the data's, labels that do not exist.
    """
    return {"semi": _semi_supervised, "m2": _m2, "clustering": _clustering}[config.method.task](config, dataset)


def _semi_supervised(config: Config, dataset: Dataset) -> Experiment:
    prior = parts.build_prior(config)
    classes = require_partitions(prior)
    _checks.require(classes == dataset.num_classes, "prior.options.num_classes", f"{dataset.num_classes}, as {dataset.name} has", classes)
    model = parts.build_model(config, dataset, prior)
    posterior = _class_posterior(config, dataset, prior)
    return _experiment(config, model, posterior, _over_classes(config, model, posterior, _labelled(config, dataset)))


def _m2(config: Config, dataset: Dataset) -> Experiment:
    """Kingma's M2: style and class make the latents; its decoder and encoder see both."""
    stated = (config.prior.name, config.prior.kernel_width)
    _checks.require(stated == ("gaussian", 0), "prior", "gaussian without a kernel_width, as M2's styles have", stated)
    prior = OneHotGaussian(config.latent_dim, dataset.num_classes)
    model = parts.build_model(config, dataset, prior)
    network = config.dataset.encoder
    _checks.require(network.kind == "mlp", "dataset.encoder.kind", "mlp, for M2", network.kind)
    encoder = ClassMLP(
        dataset.num_dimensions, network.hidden, 2 * config.latent_dim, dataset.num_classes,
        activation=network.activation, draws=parts.place_of(config, parts.ENCODER),
    )  # fmt: skip
    posterior = ClassConditional(_classifier(config, dataset, prior), OneHotStyle(encoder, config.latent_dim, dataset.num_classes), prior)
    return _experiment(config, model, posterior, _over_classes(config, model, posterior, _labelled(config, dataset)))


def _clustering(config: Config, dataset: Dataset) -> Experiment:
    options = config.method.clustering
    base = parts.build_prior(config)
    prior = Centres(base, options.num_clusters, options.base_scale, draws=parts.place_of(config, _CENTRES))
    model = parts.build_model(config, dataset, prior)
    if options.latent:
        posterior = _class_posterior(config, dataset, prior)
        inner = _over_classes(config, model, posterior, None)
    else:
        posterior = parts.build_posterior(config, dataset, model)
        if config.recipe.match_prior:
            parts.match_prior(posterior.encoder, dataset, prior)
        inner = parts.make_objective(config, model, posterior)
    # A latent cluster is balanced by its own q(c | x).
    balance = 0.0 if options.latent else options.balance or 0.0
    clustering = Clustering(inner, prior, options.eta, options.spread_weight, balance, posterior, parts.make_guide(config.recipe))
    return _experiment(config, model, posterior, clustering)


def _experiment(config: Config, model: LatentVariableModel, posterior: Posterior, objective: Objective) -> Experiment:
    family = posterior.family if isinstance(posterior, ClassConditional) else posterior
    optimisation = parts.make_optimisation(config.recipe)
    optimisation = replace(optimisation, factors={**optimisation.factors, "prior.raw": config.method.clustering.centre_lr})
    annealing = parts.make_annealing(config.method.chain, family)
    return Experiment(model, posterior, [Phase("train", objective, parts.num_epochs(config), optimisation, before_epoch=annealing)])


def _class_posterior(config: Config, dataset: Dataset, prior: Prior) -> ClassConditional:
    """q(c | x) and a posterior for each class, their means starting where the class lies."""
    family = _family(config, dataset, prior)
    if config.recipe.match_prior:
        _match_classes(family.encoder, dataset, prior)
    return ClassConditional(_classifier(config, dataset, prior), family, prior)


def _family(config: Config, dataset: Dataset, prior: Prior) -> Posterior:
    """q(z | x, c): the family of the configuration, with a head of its encoders for each class; chains share one context."""
    name, classes = config.method.posterior, prior.num_classes
    if name == "diffusion":
        return _chains(config, dataset, prior)
    _checks.choice(name, _FAMILIES, "method.posterior")

    def heads(outputs: int, place: int) -> PerClass:
        return PerClass(_network(config, dataset, classes * outputs, place), classes)

    encoder, context = partial(heads, place=parts.ENCODER), partial(heads, place=parts.CONTEXT)
    draws, still = parts.place_of(config, parts.DENOISER), config.recipe.match_prior
    return families.make(families.Parts(encoder, context, None, config.method, prior.dim, draws, still))


def _chains(config: Config, dataset: Dataset, prior: Prior) -> ClassDiffusion:
    chain = config.method.chain
    denoiser = ResidualMLP(
        prior.dim, chain.context_dim, chain.num_steps, chain.hidden_dim, prior.num_classes,
        zero_output=config.recipe.match_prior, draws=parts.place_of(config, parts.DENOISER),
    )  # fmt: skip
    return ClassDiffusion(
        PerClass(_network(config, dataset, 2 * prior.dim * prior.num_classes, parts.ENCODER), prior.num_classes),
        denoiser,
        parts.schedule(config, chain),
        context_encoder=_network(config, dataset, chain.context_dim, parts.CONTEXT) if chain.context_dim else None,
        parametrisation=chain.parametrisation,
        eta=chain.eta,
        final_variance=chain.final_variance,
        learn_schedule=chain.learn_schedule,
        learn_variances=chain.learn_variances,
    )


def _over_classes(config: Config, model: LatentVariableModel, posterior: ClassConditional, labelled: LabelledExamples | None) -> Objective:
    recipe, semi, method = config.recipe, config.method.semi, config.method
    _checks.choice(method.objective, ("elbo", "ddvi", "adversarial"), "method.objective")
    if labelled is None:
        weights = ClassWeights(balance=_LATENT_BALANCE if method.clustering.balance is None else method.clustering.balance)
    else:
        weights = ClassWeights(
            semi.cross_entropy, semi.labelled, semi.fantasies, semi.unlabelled, semi.consistency, batch_fraction=semi.batch_fraction
        )
    if method.objective == "adversarial":
        discriminator = make_discriminator(model.prior.dim + model.prior.num_classes, parts.place_of(config, parts.DISCRIMINATOR))
        weight = {} if method.weight is None else {"weight": method.weight}
        return AdversarialSemiSupervised(model, posterior, discriminator, labelled, weights, **weight)
    kl, guide = parts.make_kl(recipe.kl, method.beta), parts.make_guide(recipe)
    sleep = parts.make_sleep(method) if method.objective == "ddvi" else None
    return SemiSupervised(model, posterior, labelled, kl, guide, weights, sleep, method.num_samples)


def _labelled(config: Config, dataset: Dataset) -> LabelledExamples:
    labels = dataset.labels()
    kept = select_labels(labels, config.dataset.labels, dataset.num_classes, config.seed)
    return LabelledExamples(dataset.inputs(kept), labels[kept], dataset.num_classes, parts.augmentation(config))


def _classifier(config: Config, dataset: Dataset, prior: Prior) -> NoisyInput:
    semi = config.method.semi
    return NoisyInput(_network(config, dataset, prior.num_classes, _CLASSIFIER, semi.dropout), semi.noise, semi.input_dropout)


def _network(config: Config, dataset: Dataset, outputs: int, place: int, dropout: float | None = None) -> parts.Network:
    return parts.make_encoder(config, dataset, outputs, place, dropout)


@torch.no_grad()
def _match_classes(encoder: PerClass, dataset: Dataset, prior: Prior) -> None:
    """Scale and shift each class's means so that over the data they start with its partition's centre and spread."""
    means = encoder(parts.first_examples(dataset))[..., : prior.dim]
    weight = encoder.output_layer.weight.unflatten(0, (prior.num_classes, -1))
    bias = encoder.output_layer.bias.unflatten(0, (prior.num_classes, -1))
    for label in range(prior.num_classes):
        target = prior.sample(4096, Draws(0), torch.full((4096,), label))
        parts.match_spread(weight[label], bias[label], means[label], target)
