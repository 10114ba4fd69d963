"""From `key=value` overrides to a checked `Config`, with one clear line for whatever is wrong with them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddvi_fast import _checks
from ddvi_fast.config.schema import Config

CONF = Path(__file__).with_name("conf")
GROUPS = ("dataset", "prior", "method", "recipe")


def compose(overrides: Sequence[str]) -> Config:
    """The configuration that Hydra composes from `conf/` and the overrides, its types checked.

    Raises:
        InputError: an override without `=`, an unknown setting or choice (with the nearest valid names), a value of another type.

    Example:
        >>> compose(["prior=square", "recipe.epochs=3"]).recipe.epochs
        3
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _check_names(overrides)
    overrides = _released_of_method(overrides)
    previous = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            # Lists and settings that a file leaves out are added to it; the schema says which exist.
            composed = hydra_compose("config", [_marked(override) for override in overrides])
        return _typed(composed)
    except (HydraException, OmegaConfBaseException) as error:
        _checks.fail("override", "a valid one", _first_line(error))
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = previous


def from_dict(config: Mapping[str, Any]) -> Config:
    """The configuration that a run folder holds."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return _typed(OmegaConf.create(dict(config)))
    except OmegaConfBaseException as error:
        _checks.fail("config.json", "the configuration of a run of this version", _first_line(error))


def choices(group: str) -> list[str]:
    """The files of a configuration group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _typed(composed: Any) -> Config:
    from omegaconf import OmegaConf

    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), composed))


def _check_names(overrides: Iterable[str]) -> None:
    """Name the nearest valid settings and choices before Hydra sees the overrides."""
    known = setting_names()
    for override in overrides:
        name, sign, value = override.partition("=")
        _checks.require(bool(sign) and bool(name), "override", "name=value", override)
        if name in GROUPS:
            _checks.choice(value, choices(name), name)
        elif not any(name.startswith(f"{free}.") for free in _FREE):
            _checks.require(name in known, "setting", "one that exists", name, _checks.nearest(name, known) or "config.py lists them all")


# Free-form options: their names are checked by what they are passed to.
_FREE = ("dataset.likelihood_options", "prior.options", "method.chain.schedule_options")


@functools.cache
def setting_names() -> list[str]:
    """Dotted names of all settings, inner nodes included."""
    from omegaconf import DictConfig, OmegaConf

    def walk(node: DictConfig, prefix: str) -> Iterable[str]:
        for key in node:
            yield prefix + str(key)
            if isinstance(node._get_node(key), DictConfig):
                yield from walk(node._get_node(key), f"{prefix}{key}.")

    return list(walk(OmegaConf.structured(Config), ""))


def _released_of_method(overrides: Sequence[str]) -> list[str]:
    """`recipe=released` stands for the released recipe of the method that is asked for, where it has one."""
    method = dict(override.split("=", 1) for override in overrides).get("method", "ddvi")
    own = f"released_{method}"
    return [f"recipe={own}" if override == "recipe=released" and own in choices("recipe") else override for override in overrides]


def _marked(override: str) -> str:
    """Hydra adds a setting that a file leaves out only when told to with `++`."""
    return override if override.partition("=")[0] in GROUPS else f"++{override}"


def _first_line(error: Exception) -> str:
    """The gist of a library's message, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key:")), "")
    return f"{where}: {lines[0]}" if where else lines[0]
