"""Refusal of stated settings that a run would not honour because of its other settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ddvi_fast import _checks, distributed, priors
from ddvi_fast.config.schema import Config
from ddvi_fast.recipes.families import FAMILIES
from ddvi_fast.recipes.settings import check_settings
from ddvi_fast.training.engines import engine_name

_GENOTYPES = ("1kg", "genomes")
_DOWNLOADED = ("mnist", "fashion_mnist", "cifar10")
_SPLIT = (*_DOWNLOADED, "omniglot")  # before they come here
_CHAIN = ("recipe.defects.unscaled_noise", "recipe.defects.standard_normal_top")


class Rule(NamedTuple):
    """Settings (and all below them) that only some runs honour.

    Args:
        settings: Dotted names.
        honours: Whether a run honours them, as they are.
        runs: These runs in words.
    """

    settings: tuple[str, ...]
    honours: Callable[[Config], bool]
    runs: str


_TRAINING = (
    "recipe", "epochs", "max_minutes", "max_passes", "precision", "engine", "zero_stage", "accumulation", "optimiser", "capture", "compile_networks",
    "checkpoint_steps", "checkpoint_keep", "timeout", "tracker", "evaluation", "dataset.encoder", "dataset.decoder", "dataset.likelihood",
    "dataset.likelihood_options", "dataset.flip", "dataset.binarize", "prior.options", "prior.kernel_width", "prior.resolution", "method.coordinates",
    "method.num_samples", "method.reweighted", "method.doubly_reparametrised", "method.beta", "method.weight", "method.discrete_class",
)  # fmt: skip
_FEATURES = (
    "prior", "latent_dim", "limit", "device", "dataset.validation", "dataset.genotypes.features", "dataset.genotypes.num_components",
    "dataset.genotypes.held_out",
)  # fmt: skip
RULES = (
    Rule(_TRAINING, lambda config: config.method.task not in ("map", "admixture"), "a method that is trained"),
    Rule(_FEATURES, lambda config: config.method.task != "admixture", "a method of features in latent dimensions"),
    Rule(("recipe.epochs",), lambda config: config.epochs is None, "epochs=null, which takes its place"),
    Rule(("recipe.kl.fraction", "recipe.kl.hold", "recipe.kl.whole_epochs"), lambda c: c.recipe.kl.kind != "constant", "another recipe.kl.kind"),
    Rule(("recipe.prior_blur_fraction",), lambda config: config.recipe.prior_blur > 0, "recipe.prior_blur above 0"),
    Rule(("recipe.kl", "recipe.prior_blur"), lambda config: _has_kl(config), "an objective with a KL term"),
    Rule(("recipe.context_dropout",), lambda c: c.recipe.name == "released" or c.recipe.shared_context is False, "recipe.shared_context=false"),
    Rule(_CHAIN, lambda config: config.method.posterior == "diffusion", "method.posterior=diffusion"),
    Rule(("recipe.sigmoid_variances",), lambda config: _has_sigmoid(config), "an encoder that returns variances, for all classes at once"),
    Rule(("recipe.defects.log_var_twice",), lambda config: config.method.objective == "elbo" or _released_bound(config), "the objective elbo"),
    Rule(("evaluation.elbo_samples", "evaluation.iwae_samples"), lambda config: _has_density(config), "a posterior with a density"),
    Rule(("evaluation.limit",), lambda c: _has_bound(c) or _has_evidence(c), "a bound, or evaluation.evidence and up to two latents"),
    Rule(("evaluation.gap",), lambda config: not config.evaluation.gap or _has_density(config), "a posterior with a density"),
    Rule(("evaluation.evidence",), lambda config: not config.evaluation.evidence or config.latent_dim <= 2, "up to two latents"),
    Rule(
        ("evaluation.evidence_blur",),
        lambda config: _has_density(config) or _has_evidence(config),
        "a posterior with a density, or evaluation.evidence and up to two latents",
    ),
    Rule(("method.discrete_class",), lambda config: _in_the_prior(config) and config.method.task == "unsupervised", "the prior's coordinates"),
    Rule(("method.weight",), lambda config: config.method.objective in ("adversarial", "wae"), "method.objective=adversarial or wae"),
    Rule(("method.doubly_reparametrised",), lambda c: not c.method.doubly_reparametrised or c.method.objective == "iwae", "method.objective=iwae"),
    Rule(("prior.resolution",), lambda config: _has_evidence(config), "evaluation.evidence and up to two latents"),
    Rule(("dataset.genotypes",), lambda config: config.dataset.name in _GENOTYPES, "dataset=genomes or dataset=1kg"),
    Rule(("download",), lambda config: not config.download or config.dataset.name in _DOWNLOADED, f"a data set among {', '.join(_DOWNLOADED)}"),
    Rule(("split_seed",), lambda config: config.dataset.name not in _SPLIT, "a data set without a split of its own"),
    Rule(("data_dir",), lambda config: config.dataset.name != "digits", "a data set with files"),
    Rule(("checkpoint_keep",), lambda config: config.checkpoint_steps is not None, "checkpoint_steps"),
    Rule(("capture",), lambda config: not config.capture or (_local(config) and config.device.startswith("cuda")), "engine=local on a GPU"),
    Rule(("timeout",), lambda config: distributed.launched(), "several processes"),
    Rule(("compile_networks",), lambda config: not config.compile_networks or _local(config), "engine=local"),
)


def check_some(stated: Iterable[str], configs: Sequence[Config]) -> None:
    """Check that at least one of several runs has and honours each setting that was stated for all of them.

    Args:
        stated: Dotted names of settings.
        configs: Configurations of the runs.

    Raises:
        InputError: A setting that would change no run; the message is that of the first run.
    """
    for name in stated:
        refusals = [refusal for config in configs if (refusal := _refusal(name, config)) is not None]
        if len(refusals) == len(configs) and refusals:
            raise refusals[0]


def _refusal(name: str, config: Config) -> _checks.InputError | None:
    try:
        check_settings([name], config)
        check_honoured([name], config)
    except _checks.InputError as refused:
        return refused
    return None


def check_honoured(stated: Iterable[str], config: Config) -> None:
    """Check that a run honours all settings that were stated.

    Args:
        stated: Dotted names of settings.
        config: Configuration of the run.

    Raises:
        InputError: A setting that would change nothing; the message says in which runs it does.

    Example:
        >>> check_honoured(["recipe.kl.fraction"], Config())
        Traceback (most recent call last):
        ddvi_fast._checks.InputError: recipe.kl.fraction: expected a run with another recipe.kl.kind, which honours it, got this one
    """
    for name in stated:
        for rule in RULES:
            touched = any(name == setting or name.startswith(f"{setting}.") for setting in rule.settings)
            _checks.require(not touched or rule.honours(config), name, f"a run with {rule.runs}, which honours it", "this one")


def _local(config: Config) -> bool:
    return engine_name(config) == "local"


def _has_kl(config: Config) -> bool:
    return config.method.objective not in ("adversarial", "wae") or config.method.task != "unsupervised"


def _coordinates(config: Config) -> str:
    return config.method.coordinates or ("latent" if config.recipe.name == "released" else "prior+encoder")


def _in_the_prior(config: Config) -> bool:
    return _coordinates(config).startswith("prior")


def _in_stages(config: Config) -> bool:
    """Whether a run is the released DDVI, in stages with chains of their own."""
    return config.recipe.name == "released" and config.method.task == "unsupervised" and config.method.objective == "ddvi"


def _released_bound(config: Config) -> bool:
    """Whether a run has the released loss of a posterior without a chain."""
    return config.recipe.name == "released" and config.method.task == "unsupervised" and config.method.objective in ("elbo", "iwae")


def _has_density(config: Config) -> bool:
    method = config.method
    return method.posterior != "adversarial" and not _in_stages(config) and not (method.posterior == "diffusion" and method.chain.eta == 0)


def _has_bound(config: Config) -> bool:
    """Whether an evaluation computes a bound; a chain for all classes at once has that of the released code in any case."""
    return _has_density(config) or (config.method.posterior == "diffusion" and config.method.task != "semi" and not _draws_class(config))


def _has_evidence(config: Config) -> bool:
    return config.evaluation.evidence and config.latent_dim <= 2


def _has_sigmoid(config: Config) -> bool:
    """Whether an encoder of the run returns the log-variances that `recipe.sigmoid_variances` changes, and not by a head for each class."""
    method = config.method
    if method.task == "m2" or (FAMILIES[method.posterior].location_only and "encoder" not in _coordinates(config)):
        return False
    drawn = method.task != "semi" and FAMILIES[method.posterior].per_class and _draws_class(config)
    return not (drawn and config.dataset.encoder.hidden)


def _draws_class(config: Config) -> bool:
    """Whether the posterior draws the prior's class and goes through a family for it."""
    return not _in_stages(config) and config.method.discrete_class and _in_the_prior(config) and _has_classes(config)


def _has_classes(config: Config) -> bool:
    if config.method.task == "clustering":
        return True
    sized = {"dim": config.latent_dim} if config.prior.name == "gaussian" else {}
    return priors.make(config.prior.name, **sized, **config.prior.options).num_classes is not None
