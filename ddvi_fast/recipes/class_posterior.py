"""Assembly of posteriors over latent and class, q(z, c | x) = q(c | x) q(z | x, c)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.dense import ACTIVATIONS
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.posteriors import Posterior
from ddvi_fast.posteriors.class_conditional import ClassConditional, PerClass
from ddvi_fast.priors import Prior
from ddvi_fast.recipes.builder import Builder, targets
from ddvi_fast.recipes.families import MakeNetwork, with_capability
from ddvi_fast.rng import Draws


class Trunk(nn.Module):
    """Encoder whose last layer is hidden: the features [N, H] from which the heads of a `ClassConditional` compute their outputs.

    Args:
        network: Network called as `network(x, draws)`, from x [N, ...] to [N, H].
        activation: Name of the activation that is applied to its output.
    """

    def __init__(self, network: nn.Module, activation: str) -> None:
        super().__init__()
        self.network, self.activation = network, activation

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        return ACTIVATIONS[self.activation](self.network(x, draws))


def has_discrete_class(builder: Builder, prior: Prior) -> bool:
    """Whether the posterior of the options draws the prior's class and has a family for each."""
    method = builder.options.method
    return method.discrete_class and "prior" in builder.coordinates and prior.num_classes is not None and builder.family.per_class


def posterior_of(builder: Builder, model: LatentVariableModel) -> Posterior:
    """The posterior of the options: with a drawn class where the prior has one, otherwise a single family."""
    return shared_trunk(builder, model.prior) if has_discrete_class(builder, model.prior) else builder.posterior(model)


def shared_trunk(builder: Builder, prior: Prior) -> ClassConditional:
    """A posterior whose q(c | x) and families are linear heads of one encoder; without hidden layers they are networks of their own."""
    encoder, classes = builder.options.dataset.encoder, prior.num_classes
    if not encoder.hidden:
        return with_classifier(builder, prior, builder.encoder(classes, "classifier"))
    trunk = Trunk(builder.encoder_trunk(), encoder.activation)
    return _assembled(builder, prior, builder.head(classes, "classifier"), builder.head, trunk)


def with_classifier(builder: Builder, prior: Prior, classifier: nn.Module) -> ClassConditional:
    """A posterior with a network `classifier` of its own for q(c | x), and one with heads for each class for the families."""
    name = builder.options.method.posterior
    _checks.require(builder.family.per_class, "method.posterior", f"one of {', '.join(with_capability('per_class'))}", name)
    return _assembled(builder, prior, classifier, builder.encoder)


def _assembled(builder: Builder, prior: Prior, classifier: nn.Module, make: MakeNetwork, trunk: nn.Module | None = None) -> ClassConditional:
    """The posterior; encoders of the families are networks of `make` with one output for each class."""
    classes, placed = prior.num_classes, builder.placed(prior, discrete_class=True)

    def heads(outputs: int, place: str) -> PerClass:
        return PerClass(make(classes * outputs, place), classes)

    family = placed.family.build(placed, partial(heads, place="encoder"), partial(heads, place="context"), None)
    if builder.options.recipe.match_prior:
        _match_classes(placed, family, prior, trunk)
    return ClassConditional(classifier, family, prior, trunk, builder.options.method.chain.informed_classes)


@torch.no_grad()
def _match_classes(builder: Builder, family: Posterior, prior: Prior, trunk: nn.Module | None) -> None:
    """Scale and shift each class's means so that over the data they have its partition's mean and standard deviation."""
    x = builder.first_examples()
    outputs, layer = family.encoder(x if trunk is None else trunk(x)), family.encoder.output_layer
    width = outputs.shape[-1]
    for label in range(prior.num_classes):
        builder.match_prior(layer, slice(label * width, (label + 1) * width), outputs[label], targets(family, prior, label))
