"""Composition of a `Config` from the files of `conf/`, by Hydra, and from `name=value` overrides."""

from __future__ import annotations

import dataclasses
import functools
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ddvi_fast import _checks
from ddvi_fast._checks import InputError
from ddvi_fast.config.names import CONF, GROUPS, check_choice, choices, read
from ddvi_fast.config.schema import Config
from ddvi_fast.recipes.mapping import from_mapping, left_out, updated

_HYDRA = threading.Lock()


def compose(overrides: Sequence[str], defaults: Sequence[str] = ()) -> Config:
    """Compose a configuration from `conf/` and overrides.

    Args:
        overrides: Settings as ``name=value``. The type of a setting decides how its value is read; strings are taken as they stand.
        defaults: Settings in the same form, in force where `overrides` do not have them.

    Returns:
        The configuration, names and types checked.

    Raises:
        InputError: An override without ``=``, an unknown setting or choice (the message has the nearest valid names), a value of another type,
            a setting with two values; or Hydra is not installed.

    Example:
        >>> compose(["prior=square", "recipe.epochs=3", "run_dir=runs/a #1"]).run_dir
        'runs/a #1'
    """
    stated = {**read(defaults), **read(overrides)}
    chosen = _released_of_method({name: check_choice(name, value) for name, value in stated.items() if name in GROUPS})
    values = {name: value for name, value in stated.items() if name not in GROUPS}
    return updated(from_mapping(Config, _resolved(chosen, values)), values)


def from_dict(config: Mapping[str, Any]) -> Config:
    """The configuration of a run from the contents of its `config.json`.

    A warning names settings that the configuration does not have; they have this version's defaults.

    Raises:
        InputError: Settings that this version does not have, or a whole group of settings that is missing.
    """
    expected = "the configuration of a run of this version"
    try:
        made = from_mapping(Config, _checks.instance(config, Mapping, "configuration", "a mapping"))
    except InputError as error:
        _checks.fail("config.json", expected, str(error))
    lacking = list(left_out(Config, config))
    groups = [name for name, group in lacking if group]
    _checks.require(not groups, "config.json", expected, f"one without {', '.join(groups)}")
    if lacking:
        names = ", ".join(name for name, _ in lacking)
        warnings.warn(f"config.json does not state {names}: the defaults of this version are used", stacklevel=2)
    return made


def _released_of_method(chosen: dict[str, str]) -> dict[str, str]:
    """Replace `recipe=released` by the released recipe of the requested method, where it has one of its own."""
    own = f"released_{chosen.get('method', 'ddvi')}"
    return {**chosen, "recipe": own} if chosen.get("recipe") == "released" and own in choices("recipe") else chosen


def _resolved(chosen: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The files of the chosen groups as one mapping, with the values to which they refer."""
    try:
        import hydra  # noqa: F401 - the files may have been composed before
        from omegaconf import OmegaConf
    except ImportError:
        raise InputError("this needs Hydra (pip install 'ddvi-fast[train]')") from None
    composed = _composed(tuple(sorted(chosen.items())))
    if "${" not in str(composed):
        return composed
    complete = OmegaConf.merge(dataclasses.asdict(Config()), composed)
    for name, value in values.items():
        if isinstance(value, (int, float)):  # no file refers to anything else, and "${" in a string is no reference
            OmegaConf.update(complete, name, value, force_add=True)
    return OmegaConf.to_container(complete, resolve=True)


@functools.cache
def _composed(chosen: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The files of groups, as Hydra composes them; references are unresolved."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir, version
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    with _HYDRA:  # Hydra has one global state for all threads; that of the calling program, with its version, is put back
        previous, base = GlobalHydra.instance().hydra, version.getbase()
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
                return OmegaConf.to_container(hydra_compose("config", [f"{group}={choice}" for group, choice in chosen]), resolve=False)
        finally:
            GlobalHydra.instance().clear()
            GlobalHydra.instance().hydra = previous
            version.VersionBase.instance().version_base = base
