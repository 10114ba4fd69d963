"""Composition of a `Config` from `name=value` overrides and the files of `conf/`, by Hydra."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ddvi_fast import _checks
from ddvi_fast._checks import InputError
from ddvi_fast.config.names import CONF, GROUPS, check_overrides, choices
from ddvi_fast.config.schema import Config
from ddvi_fast.recipes.mapping import from_mapping


def compose(overrides: Sequence[str]) -> Config:
    """Compose a configuration from `conf/` and overrides.

    Args:
        overrides: Settings as ``name=value``, in Hydra's syntax.

    Returns:
        The configuration, names and types checked.

    Raises:
        InputError: An override without ``=``, an unknown setting or choice (the message has the nearest valid names), a value of another type;
            or Hydra is not installed.

    Example:
        >>> compose(["prior=square", "recipe.epochs=3"]).recipe.epochs
        3
    """
    check_overrides(overrides)
    try:
        from hydra import compose as hydra_compose
        from hydra import initialize_config_dir
        from hydra.core.global_hydra import GlobalHydra
        from hydra.errors import HydraException
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
    except ImportError:
        raise InputError("this needs Hydra (pip install 'ddvi-fast[train]')") from None
    previous = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            # "++" also adds settings that no file states; the schema says which exist.
            composed = hydra_compose("config", [_marked(override) for override in _released_of_method(overrides)])
        # Values may refer to settings that no file states.
        complete = OmegaConf.merge(dataclasses.asdict(Config()), composed)
        return from_mapping(Config, OmegaConf.to_container(complete, resolve=True))
    except (HydraException, OmegaConfBaseException) as error:
        _checks.fail("override", "a valid one", _first_line(error))
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = previous


def from_dict(config: Mapping[str, Any]) -> Config:
    """The configuration of a run from the contents of its `config.json`.

    Raises:
        InputError: Settings that this version does not have.
    """
    try:
        return from_mapping(Config, config)
    except InputError as error:
        _checks.fail("config.json", "the configuration of a run of this version", str(error))


def _released_of_method(overrides: Sequence[str]) -> list[str]:
    """Replace `recipe=released` by the released recipe of the requested method, where it has one of its own."""
    method = dict(override.split("=", 1) for override in overrides).get("method", "ddvi")
    own = f"released_{method}"
    return [f"recipe={own}" if override == "recipe=released" and own in choices("recipe") else override for override in overrides]


def _marked(override: str) -> str:
    """An override of a setting with the prefix ``++``, which overrides or adds it; a choice of a group as it is."""
    return override if override.partition("=")[0] in GROUPS else f"++{override}"


def _first_line(error: Exception) -> str:
    """The setting and the first line of a library's error message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key:")), "")
    return f"{where}: {lines[0]}" if where else lines[0]
