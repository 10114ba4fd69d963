"""Assembly of experiments with classes: semi-supervised, M2, clustering."""

from __future__ import annotations

from ddvi_fast import _checks
from ddvi_fast.data.labels import select_labels
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import NoisyInput
from ddvi_fast.objectives import ELBO, Objective, WakeSleep
from ddvi_fast.objectives.adversarial_classes import AdversarialSemiSupervised
from ddvi_fast.objectives.clustering import Clustering
from ddvi_fast.objectives.pairs import Sleep
from ddvi_fast.objectives.semisupervised import ClassWeights, LabelledExamples, SemiSupervised
from ddvi_fast.posteriors import Gaussian, Posterior
from ddvi_fast.posteriors.class_conditional import ClassConditional, ClassMLP
from ddvi_fast.priors import Centres, OneHotGaussian, Prior
from ddvi_fast.priors.partitions import require_partitions
from ddvi_fast.recipes.builder import Builder, augmentation
from ddvi_fast.recipes.class_posterior import posterior_of, with_classifier
from ddvi_fast.recipes.options import ClusteringOptions
from ddvi_fast.recipes.phases import Experiment

_LATENT_BALANCE = 20.0
# For 20 clusters 0.06 and 0.75, half the width and half the distance of the paper's: 20 centres that keep 1.5 apart are pressed against the edge of
# their square.
_SCALE, _DISTANCE = 1.2, 0.75 * 20**0.5


def build_with_classes(builder: Builder) -> Experiment:
    """The experiment of a semi-supervised or clustering method.

    Raises:
        InputError: A prior whose classes do not fit the data's, or labels that do not exist.
    """
    return {"semi": _semi_supervised, "m2": _m2, "clustering": _clustering}[builder.options.method.task](builder)


def _semi_supervised(builder: Builder) -> Experiment:
    prior, dataset = builder.prior(), builder.dataset
    classes = require_partitions(prior)
    _checks.require(classes == dataset.num_classes, "prior.options.num_classes", f"{dataset.num_classes}, as {dataset.name} has", classes)
    model = builder.model(prior)
    posterior = with_classifier(builder, prior, _classifier(builder, prior))
    return _experiment(builder, model, posterior, _over_classes(builder, model, posterior, _labelled(builder)))


def _m2(builder: Builder) -> Experiment:
    """Kingma's M2: the latents are style and class, and encoder and decoder depend on both."""
    options, dataset = builder.options, builder.dataset
    stated = (options.prior.name, options.prior.kernel_width)
    _checks.require(stated == ("gaussian", 0), "prior", "gaussian without a kernel_width, as M2's styles have", stated)
    prior = OneHotGaussian(builder.latent_dim, dataset.num_classes)
    model = builder.model(prior)
    network = options.dataset.encoder
    _checks.require(network.kind == "mlp", "dataset.encoder.kind", "mlp, for M2", network.kind)
    encoder = ClassMLP(
        dataset.num_dimensions, network.hidden, 2 * builder.latent_dim, dataset.num_classes,
        activation=network.activation, draws=builder.weights("encoder"),
    )  # fmt: skip
    posterior = ClassConditional(_classifier(builder, prior), Gaussian(encoder, builder.latent_dim, "prior", prior), prior)
    return _experiment(builder, model, posterior, _over_classes(builder, model, posterior, _labelled(builder)))


def _clustering(builder: Builder) -> Experiment:
    options = builder.options.method.clustering
    scale, eta = _widths(options)
    prior = Centres(builder.prior(), options.num_clusters, scale, draws=builder.weights("centres"))
    model = builder.model(prior)
    if options.latent:
        posterior = with_classifier(builder, prior, _classifier(builder, prior))
        inner = _over_classes(builder, model, posterior, None)
    else:
        posterior = posterior_of(builder, model)
        inner = builder.objective(model, posterior)
    balance = 0.0 if options.latent else options.balance or 0.0  # a latent cluster is balanced by its own q(c | x)
    clustering = Clustering(inner, prior, eta, options.spread_weight, balance, posterior, builder.guide())
    return _experiment(builder, model, posterior, clustering)


def _widths(options: ClusteringOptions) -> tuple[float, float]:
    """Scale of the base prior and distance of the centres; where they are null, those at which that many clusters fill the square of centres."""
    number = max(1, options.num_clusters)
    scale = _SCALE / number if options.base_scale is None else options.base_scale
    return scale, _DISTANCE / number**0.5 if options.eta is None else options.eta


def _experiment(builder: Builder, model: LatentVariableModel, posterior: Posterior, objective: Objective) -> Experiment:
    factors = {"prior.raw": builder.options.method.clustering.centre_lr}
    return Experiment(model, posterior, [builder.train_phase(objective, factors)])


def _over_classes(builder: Builder, model: LatentVariableModel, posterior: ClassConditional, labelled: LabelledExamples | None) -> Objective:
    method = builder.options.method
    _checks.choice(method.objective, ("elbo", "ddvi", "adversarial"), "method.objective")
    weights = _class_weights(builder, labelled is not None)
    if method.objective == "adversarial":
        discriminator = builder.discriminator(model.prior.dim + model.prior.num_classes)
        return AdversarialSemiSupervised(model, posterior, discriminator, labelled, weights, **builder.weight())
    inner = builder.objective(model, posterior)
    if isinstance(inner, ELBO):
        inner = WakeSleep(inner, Sleep(weight=0.0, top_weight=0.0, classes=0.0, decoder=0.0))
    return SemiSupervised(inner, labelled, weights)


def _class_weights(builder: Builder, labelled: bool) -> ClassWeights:
    semi, balance = builder.options.method.semi, builder.options.method.clustering.balance
    if not labelled:
        return ClassWeights(consistency=0.0, balance=_LATENT_BALANCE if balance is None else balance)
    return ClassWeights(semi.cross_entropy, semi.labelled, semi.unlabelled, semi.consistency, batch_fraction=semi.batch_fraction)


def _labelled(builder: Builder) -> LabelledExamples:
    dataset, options = builder.dataset, builder.options
    labels = dataset.labels()
    kept = select_labels(labels, options.dataset.labels, dataset.num_classes, options.seed)
    return LabelledExamples(dataset.inputs(kept), labels[kept], dataset.num_classes, augmentation(options))


def _classifier(builder: Builder, prior: Prior) -> NoisyInput:
    semi = builder.options.method.semi
    return NoisyInput(builder.encoder(prior.num_classes, "classifier", semi.dropout), semi.noise, semi.input_dropout)
