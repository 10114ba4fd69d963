"""Settings of a run: those that its family, objective, task and recipe have, and refusal of all others."""

from __future__ import annotations

from collections.abc import Iterable

from ddvi_fast import _checks
from ddvi_fast.recipes.build import RECIPES
from ddvi_fast.recipes.families import FAMILIES
from ddvi_fast.recipes.options import Options

_CLASSIFIER = tuple(f"method.semi.{name}" for name in ("dropout", "input_dropout", "noise"))
# Settings that only runs of some tasks, objectives or methods have; a name stands for all settings below it.
TASKS = {
    "semi": ("method.semi", "dataset.labels"),
    "m2": ("method.semi", "dataset.labels"),
    "clustering": ("method.clustering",),
    "admixture": ("method.admixture",),
    "clustering with latent clusters": _CLASSIFIER,
}
OBJECTIVES = {"ddvi": ("method.sleep",)}
_PAIRS = ("method.sleep.data", "method.sleep.classes", "method.sleep.decoder", "method.sleep.candidates")
METHODS = {"tsne": ("method.map.perplexity",), "umap": ("method.map.n_neighbors", "method.map.min_dist")}


def settings_of(options: Options) -> set[str]:
    """Names of the conditional settings that a run has.

    Example:
        >>> sorted(name for name in settings_of(Options()) if name.startswith("recipe."))
        ['recipe.denoiser_lr', 'recipe.schedule_lr', 'recipe.shared_context']
    """
    method = options.method
    if method.task == "map":
        return set(METHODS.get(method.name, ()))
    if method.task == "admixture":
        return set(TASKS[method.task])
    latent = method.task == "clustering" and method.clustering.latent
    names = {*FAMILIES[method.posterior].settings, *OBJECTIVES.get(method.objective, ()), *TASKS.get(method.task, ())}
    if latent:
        names |= set(_CLASSIFIER)
    if options.recipe.name != "released":
        names |= set(_PAIRS)
    return RECIPES[options.recipe.name].settings(options, names)


def check_settings(stated: Iterable[str], options: Options) -> None:
    """Check that a run has all the settings that were stated.

    Args:
        stated: Dotted names of settings.
        options: Options of the run.

    Raises:
        InputError: A setting that the run would ignore; the message says which runs have it.

    Example:
        >>> check_settings(["method.sleep.weight"], Options())
    """
    own, got = settings_of(options), f"method={options.method.name} with the {options.method.posterior} posterior and recipe={options.recipe.name}"
    for name in stated:
        owners = _owners(name)
        fits = not owners or _covered(own, name)
        _checks.require(fits, name, f"a run with {' or '.join(owners)}, which has this setting", got)


def shown(options: Options, values: dict) -> dict:
    """Options as a nested mapping without the settings that the run does not have."""
    own = settings_of(options)

    def pruned(node: dict, prefix: str) -> dict:
        kept = {}
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict) and value:
                if inner := pruned(value, f"{name}."):
                    kept[key] = inner
            elif not _owners(name) or _covered(own, name):
                kept[key] = value
        return kept

    return pruned(values, "")


def _covers(setting: str, name: str) -> bool:
    """Whether `name` is the setting, or stands below it."""
    return name == setting or name.startswith(f"{setting}.")


def _covered(settings: Iterable[str], name: str) -> bool:
    return any(_covers(setting, name) for setting in settings)


def _registries() -> dict[str, tuple[str, ...]]:
    """Conditional settings by the runs that have them, in words."""
    return {
        **{f"method.posterior={name}": family.settings for name, family in FAMILIES.items()},
        **{f"method.objective={name}": settings for name, settings in OBJECTIVES.items()},
        **{f"method.task={name}": settings for name, settings in TASKS.items()},
        **{f"method={name}": settings for name, settings in METHODS.items()},
        **{f"recipe={name}": recipe.conditional for name, recipe in RECIPES.items()},
        "recipe=default": _PAIRS,
    }


def _owners(name: str) -> list[str]:
    return [owner for owner, settings in _registries().items() if _covered(settings, name)]
