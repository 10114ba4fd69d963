"""From `key=value` overrides to a checked `Config`, with one clear line for whatever is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ddvi_fast import _checks
from ddvi_fast.config.names import CONF, GROUPS, check_overrides, choices
from ddvi_fast.config.schema import Config


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

    check_overrides(overrides)
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


def _typed(composed: Any) -> Config:
    from omegaconf import OmegaConf

    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), composed))


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
