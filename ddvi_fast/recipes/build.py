"""From a configuration to a model, a posterior and the phases that train them."""

from __future__ import annotations

from ddvi_fast import _checks
from ddvi_fast.config.schema import Config, MethodConfig
from ddvi_fast.data import Dataset
from ddvi_fast.paper.released import build_released
from ddvi_fast.recipes import families, parts
from ddvi_fast.recipes.classes import build_with_classes
from ddvi_fast.recipes.phases import Experiment, Phase

_FOR_ADVERSARIAL = "adversarial or wae, for the adversarial posterior, which has no density"
_FOR_OTHERS = "elbo, iwae, adversarial or wae, for a posterior other than diffusion"


def build(config: Config, dataset: Dataset) -> Experiment:
    """Build networks with initial weights from `config.seed`, and the phases that train them, where the data are.

    Raises:
        InputError: a combination of settings that makes no sense, naming what would.
    """
    return _built(config, dataset).to(dataset.device)


def _built(config: Config, dataset: Dataset) -> Experiment:
    _check_method(config.method)
    _checks.choice(config.recipe.name, ("default", "released"), "recipe.name")
    _checks.choice(config.method.task, ("unsupervised", "semi", "m2", "clustering"), "method.task")
    _check_restarts(config)
    staged = config.method.name != "diff_vae" or config.recipe.name == "released"
    _checks.require(staged, "recipe", "released, for method=diff_vae, a stage of it", config.recipe.name)
    if config.recipe.name == "released":
        return build_released(config, dataset, _built)
    if config.method.task != "unsupervised":
        return build_with_classes(config, dataset)
    model = parts.build_model(config, dataset)
    posterior = parts.build_posterior(config, dataset, model)
    if config.recipe.match_prior:
        parts.match_prior(posterior.encoder, dataset, model.prior)
    objective = parts.make_objective(config, model, posterior)
    before_epoch = parts.make_annealing(config.method.chain, posterior)
    phase = Phase("train", objective, parts.num_epochs(config), parts.make_optimisation(config.recipe), before_epoch=before_epoch)
    return Experiment(model, posterior, [phase])


def _check_restarts(config: Config) -> None:
    """Refuse several starts where they are not one phase apart, or do not see the same labels."""
    recipe = config.recipe
    _checks.require(recipe.restarts >= 1, "recipe.restarts", "at least 1", recipe.restarts)
    _checks.require(0 < recipe.restart_fraction <= 1, "recipe.restart_fraction", "a number in (0, 1]", recipe.restart_fraction)
    labelled = config.method.task in ("semi", "m2")
    for fits, expected, got in (
        (recipe.name == "default", "1 with recipe=released, whose stages stand on one another", recipe.restarts),
        (not labelled, "1 for methods with labels, which the seed chooses", recipe.restarts),
    ):
        _checks.require(fits or recipe.restarts == 1, "recipe.restarts", expected, got)


def _check_method(method: MethodConfig) -> None:
    """Refuse names that do not exist, and options that the objective does not have."""
    _checks.choice(method.posterior, (*families.FAMILIES, "diffusion"), "method.posterior")
    _checks.choice(method.objective, ("elbo", "iwae", "ddvi", *parts.IMPLICIT), "method.objective")
    implicit = method.objective in parts.IMPLICIT
    bounded = method.objective in ("elbo", "ddvi") and method.task in ("unsupervised", "clustering") and not method.clustering.latent
    for fits, argument, expected, got in (
        (implicit or method.posterior != "adversarial", "method.objective", _FOR_ADVERSARIAL, method.objective),
        (method.objective != "ddvi" or method.posterior == "diffusion", "method.objective", _FOR_OTHERS, f"ddvi for {method.posterior}"),
        (implicit or method.weight is None, "method.weight", "null unless method.objective is adversarial or wae", method.weight),
        (method.objective in ("elbo", "ddvi") or method.beta == 1, "method.beta", "1 unless method.objective is elbo or ddvi", method.beta),
        (bounded or not method.reweighted, "method.reweighted", "null unless method.objective is elbo or ddvi, without classes", True),
        (not implicit or method.num_samples == 1, "method.num_samples", f"1 with method.objective={method.objective}", method.num_samples),
    ):
        _checks.require(fits, argument, expected, got)
