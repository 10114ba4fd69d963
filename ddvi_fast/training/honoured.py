"""Refusal of stated settings that a run would not honour because of its other settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ddvi_fast import _checks
from ddvi_fast.config.schema import Config
from ddvi_fast.training.engines import engine_name

_GENOTYPES = ("1kg", "genomes")
_WITH_FILES = ("mnist", "fashion_mnist", "cifar10")  # and with a split of their own
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
    "recipe", "epochs", "max_minutes", "precision", "engine", "zero_stage", "accumulation", "optimiser", "capture", "compile_networks",
    "checkpoint_steps", "checkpoint_keep", "timeout", "tracker", "evaluation", "dataset.encoder", "dataset.decoder", "dataset.likelihood",
    "dataset.likelihood_options", "dataset.flip", "prior.options", "prior.kernel_width", "prior.resolution", "method.coordinates",
    "method.num_samples", "method.reweighted", "method.doubly_reparametrised", "method.beta", "method.weight", "method.discrete_class",
)  # fmt: skip
RULES = (
    Rule(_TRAINING, lambda config: config.method.task != "map", "a method that is trained"),
    Rule(("recipe.epochs",), lambda config: config.epochs is None, "epochs=null, which takes its place"),
    Rule(("recipe.kl.fraction", "recipe.kl.hold", "recipe.kl.whole_epochs"), lambda c: c.recipe.kl.kind != "constant", "another recipe.kl.kind"),
    Rule(("recipe.prior_blur_fraction",), lambda config: config.recipe.prior_blur > 0, "recipe.prior_blur above 0"),
    Rule(("recipe.kl", "recipe.prior_blur"), lambda config: _has_kl(config), "an objective with a KL term"),
    Rule(("recipe.context_dropout",), lambda c: c.recipe.name == "released" or c.recipe.shared_context is False, "recipe.shared_context=false"),
    Rule(_CHAIN, lambda config: config.method.posterior == "diffusion", "method.posterior=diffusion"),
    Rule(("method.discrete_class",), lambda config: _in_the_prior(config) and config.method.task == "unsupervised", "the prior's coordinates"),
    Rule(("method.weight",), lambda config: config.method.objective in ("adversarial", "wae"), "method.objective=adversarial or wae"),
    Rule(("method.doubly_reparametrised",), lambda c: not c.method.doubly_reparametrised or c.method.objective == "iwae", "method.objective=iwae"),
    Rule(("prior.resolution",), lambda config: config.latent_dim <= 2, "up to two latents"),
    Rule(("dataset.genotypes",), lambda config: config.dataset.name in _GENOTYPES, "dataset=genomes or dataset=1kg"),
    Rule(("download",), lambda config: not config.download or config.dataset.name in _WITH_FILES, f"a data set among {', '.join(_WITH_FILES)}"),
    Rule(("split_seed",), lambda config: config.dataset.name not in _WITH_FILES, "a data set without a split of its own"),
    Rule(("data_dir",), lambda config: config.dataset.name != "digits", "a data set with files"),
    Rule(("checkpoint_keep",), lambda config: config.checkpoint_steps is not None, "checkpoint_steps"),
    Rule(("capture",), lambda config: not config.capture or (_local(config) and config.device.startswith("cuda")), "engine=local on a GPU"),
    Rule(("compile_networks",), lambda config: not config.compile_networks or _local(config), "engine=local"),
)


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


def _in_the_prior(config: Config) -> bool:
    default = "latent" if config.recipe.name == "released" else "prior+encoder"
    return (config.method.coordinates or default).startswith("prior")
