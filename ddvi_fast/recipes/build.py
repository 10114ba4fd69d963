"""Assembly of an experiment from its options and data, by registered recipes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from ddvi_fast import _checks
from ddvi_fast.data import Dataset
from ddvi_fast.posteriors.class_conditional import INFORMED, ClassConditional
from ddvi_fast.recipes.builder import IMPLICIT, Builder
from ddvi_fast.recipes.class_posterior import posterior_of
from ddvi_fast.recipes.classes import build_with_classes
from ddvi_fast.recipes.families import FAMILIES
from ddvi_fast.recipes.options import MethodOptions, Options
from ddvi_fast.recipes.phases import Experiment

OBJECTIVES = ("elbo", "iwae", "ddvi", *IMPLICIT)
TASKS = ("unsupervised", "semi", "m2", "clustering")
_FOR_ADVERSARIAL = "adversarial or wae, for the adversarial posterior, which has no density"
_FOR_OTHERS = "elbo, iwae, adversarial or wae, for a posterior other than diffusion"


class Build(Protocol):
    """Function that builds an experiment."""

    def __call__(self, builder: Builder) -> Experiment: ...


@dataclass(frozen=True)
class Recipe:
    """A recipe of the registry.

    Args:
        build: Function that builds the experiment.
        settings: Function of the options and of the settings that a run has by its method; it returns those that it has with this recipe.
        conditional: Names of the settings that only runs of this recipe have.
        staged: Whether training is in stages, such as those of `diff_vae`.
        module: Module that registered the recipe.
    """

    build: Build
    settings: Callable[[Options, set[str]], set[str]] = lambda options, names: names
    conditional: tuple[str, ...] = ()
    staged: bool = False
    module: str = __name__


RECIPES: dict[str, Recipe] = {}


def register(name: str, recipe: Recipe) -> None:
    """Make `recipe` available as `recipe.name`."""
    RECIPES[name] = recipe


def registered_modules() -> Iterable[str]:
    """Modules that registered recipes, which another process must import to build the same experiments."""
    return sorted({recipe.module for recipe in RECIPES.values()} & sys.modules.keys())


def build(options: Options, dataset: Dataset) -> Experiment:
    """Build networks with initial weights from `options.seed`, and the phases that train them.

    Args:
        options: Options of the experiment.
        dataset: Data set of the experiment.

    Returns:
        The experiment, on the data's device.

    Raises:
        InputError: A combination of options that is not possible; the message names one that is.

    Example:
        >>> from ddvi_fast import data
        >>> experiment = build(Options(), data.load("digits"))
        >>> type(experiment.posterior).__name__, [phase.name for phase in experiment.phases]
        ('ClassConditional', ['train'])
    """
    recipe = RECIPES.get(options.recipe.name)
    if recipe is None:
        _checks.choice(options.recipe.name, RECIPES, "recipe.name")
    _check_method(options.method)
    _checks.integer(options.latent_dim, "latent_dim", 1)
    _checks.require(options.recipe.batch_size >= 1, "recipe.batch_size", "at least 1", options.recipe.batch_size)
    staged = options.method.name != "diff_vae" or recipe.staged
    _checks.require(staged, "recipe", "released, for method=diff_vae, a stage of it", options.recipe.name)
    experiment = recipe.build(Builder(options, dataset))
    chain = options.method.chain
    classed = chain.informed_classes is None or isinstance(experiment.posterior, ClassConditional)
    _checks.require(classed, "method.chain.informed_classes", "null without a drawn class", chain.informed_classes)
    if options.method.posterior == "diffusion" and (chain.informed_steps or chain.frame_updates or chain.informed_classes):
        experiment.posterior.inform(experiment.model)
    return experiment.to(dataset.device)


def build_default(builder: Builder) -> Experiment:
    """The experiment of the default recipe: one phase, with or without classes."""
    if builder.options.method.task != "unsupervised":
        return build_with_classes(builder)
    model = builder.model()
    posterior = posterior_of(builder, model)
    return Experiment(model, posterior, [builder.train_phase(builder.objective(model, posterior))])


register("default", Recipe(build_default))


def _check_method(method: MethodOptions) -> None:
    """Refuse names that do not exist, and options that the objective does not have."""
    _checks.choice(method.task, TASKS, "method.task")
    _checks.choice(method.posterior, FAMILIES, "method.posterior")
    _checks.choice(method.objective, OBJECTIVES, "method.objective")
    implicit = method.objective in IMPLICIT
    bounded, informed = method.objective in ("elbo", "ddvi"), method.chain.informed_classes
    for fits, argument, expected, got in (
        (implicit or method.posterior != "adversarial", "method.objective", _FOR_ADVERSARIAL, method.objective),
        (method.objective != "ddvi" or method.posterior == "diffusion", "method.objective", _FOR_OTHERS, f"ddvi for {method.posterior}"),
        (implicit or method.weight is None, "method.weight", "null unless method.objective is adversarial or wae", method.weight),
        (bounded or method.beta == 1, "method.beta", "1 unless method.objective is elbo or ddvi", method.beta),
        (informed in (None, *INFORMED), "method.chain.informed_classes", f"null or one of {', '.join(INFORMED)}", informed),
        (bounded or not method.reweighted, "method.reweighted", "false unless method.objective is elbo or ddvi", True),
        (not implicit or method.num_samples in (None, 1), "method.num_samples", f"1 with method.objective={method.objective}", method.num_samples),
    ):
        _checks.require(fits, argument, expected, got)
