"""Settings that a run would not look at: who states one is told so, instead of tuning it in vain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ddvi_fast import _checks
from ddvi_fast.config.schema import Config
from ddvi_fast.paper.released import has_released_density, has_stages
from ddvi_fast.recipes.families import FLOWS, SHARING

_OF_A_CONTROL = ("num_steps", "hidden_dim", "context_dim", "learn_variances")  # what a path integral takes of a chain
_OF_A_CLASSIFIER = ("dropout", "input_dropout", "noise")  # what a latent cluster takes of methods that see labels


@dataclass(frozen=True)
class Use:
    """Which runs look at a setting.

    Args:
        setting: its dotted name, or that of the node that it stands in.
        runs: whether a configuration is such a run.
        expected: what such a run has.
    """

    setting: str
    runs: Callable[[Config], bool]
    expected: str

    def covers(self, name: str) -> bool:
        """Whether `name` is the setting, or stands in the node."""
        return name == self.setting or name.startswith(f"{self.setting}.")


def refuse_unused(overrides: Sequence[str], config: Config) -> None:
    """Check that the run of `config` looks at every setting that `overrides` state.

    Raises:
        InputError: a setting that it would ignore, with the runs that have it.

    Example:
        >>> from ddvi_fast.config.compose import compose
        >>> refuse_unused(["method.sleep.weight=1"], compose(["method=ddvi"]))
    """
    got = f"method={config.method.name} with the {config.method.posterior} posterior and recipe={config.recipe.name}"
    for name in (override.partition("=")[0] for override in overrides):
        use = next((use for use in _USES if use.covers(name)), None)
        if use is not None:
            _checks.require(use.runs(config), name, f"{use.expected}, which alone has this setting", got)


def _has_posterior(*families: str) -> Callable[[Config], bool]:
    return lambda config: config.method.task != "map" and config.method.posterior in families


def _has_task(*tasks: str) -> Callable[[Config], bool]:
    return lambda config: config.method.task in tasks


def _has_chain(config: Config) -> bool:
    return _has_posterior("diffusion")(config) and not has_stages(config)


def _has_steps(config: Config) -> bool:
    return _has_chain(config) or _has_posterior("path_integral")(config)


def _has_sleep(config: Config) -> bool:
    return _has_chain(config) and config.method.objective == "ddvi"


def _has_classifier(config: Config) -> bool:
    return _has_task("semi", "m2")(config) or (config.method.task == "clustering" and config.method.clustering.latent)


def _is_released_ddvi(config: Config) -> bool:
    return has_stages(config) and config.method.name != "diff_vae"


def _drops_in_the_decoder(config: Config) -> bool:
    return (has_stages(config) or has_released_density(config)) and config.dataset.decoder.kind == "mlp"


def _has_own_flow(config: Config) -> bool:
    without_classes = config.method.task == "unsupervised" or (config.method.task == "clustering" and not config.method.clustering.latent)
    return without_classes and _has_posterior(*SHARING)(config)


_CHAIN = "a diffusion posterior without the released recipe"
_STAGED = "recipe=released with method=ddvi"

# The first that covers a setting decides.
_USES = (
    Use("method.flow.num_levels", _has_posterior("hierarchical_iaf"), "the hierarchical_iaf posterior"),
    Use("method.flow.num_leapfrog", _has_posterior("hamiltonian"), "the hamiltonian posterior"),
    Use("method.flow.num_steps", _has_posterior(*FLOWS), "a flow or the hamiltonian posterior"),
    Use("method.flow", _has_posterior(*FLOWS, "adversarial"), "a flow, the hamiltonian or the adversarial posterior"),
    *(Use(f"method.chain.{name}", _has_steps, f"{_CHAIN}, or the path_integral posterior") for name in _OF_A_CONTROL),
    Use("method.chain", _has_chain, _CHAIN),
    Use("method.sleep", _has_sleep, f"{_CHAIN}, and method.objective=ddvi"),
    *(Use(f"method.semi.{name}", _has_classifier, "a method that sees labels, or has latent clusters") for name in _OF_A_CLASSIFIER),
    Use("method.semi", _has_task("semi", "m2"), "a method that sees labels"),
    Use("method.clustering", _has_task("clustering"), "a clustering method"),
    Use("method.map.perplexity", lambda config: config.method.name == "tsne", "method=tsne"),
    Use("method.map", lambda config: config.method.name == "umap", "method=umap"),
    Use("dataset.decoder.dropout", _drops_in_the_decoder, "recipe=released, unsupervised and not adversarial, with dataset.decoder.kind=mlp"),
    Use("dataset.labels", _has_task("semi", "m2"), "a method that sees labels"),
    Use("recipe.denoiser_lr", _has_posterior("diffusion"), "a diffusion posterior"),
    Use("recipe.schedule_lr", _has_chain, _CHAIN),
    Use("recipe.shared_context", _has_own_flow, "an iaf, planar, realnvp or spline posterior without classes"),
    Use("recipe.prior_weight", has_released_density, "recipe=released with a posterior without a chain"),
    *(Use(f"recipe.{name}", has_stages, _STAGED) for name in ("prior_epochs", "prior_steps")),
    *(Use(f"recipe.{name}", _is_released_ddvi, _STAGED) for name in ("sleep_updates", "warmup_epochs", "frozen_fraction")),
)
