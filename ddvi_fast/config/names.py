"""Names of settings and choices of configuration groups, checked without torch and Hydra.

The names stand in `names.txt`; `python -m ddvi_fast.config.names` writes it anew from the schema.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

from ddvi_fast import _checks

CONF = Path(__file__).with_name("conf")
LISTING = Path(__file__).with_name("names.txt")
GROUPS = ("dataset", "prior", "method", "recipe")
# Options that are passed on to a library function, which checks their names.
FREE = ("dataset.likelihood_options", "prior.options", "method.chain.schedule_options")
_RENAMED = {("prior", "swiss_roll"): "prior=swiss_roll is now prior=swiss_roll_noisy: the swiss roll with noise 0.1, which has a density"}
_HEAD = "# Dotted names of all settings, written from the schema by `python -m ddvi_fast.config.names`.\n"


def choices(group: str) -> list[str]:
    """The names of the files of a configuration group.

    Example:
        >>> choices("prior")[:3]
        ['gaussian', 'less_noisy_square', 'mixture']
    """
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def check_choice(group: str, name: str, further: Sequence[str] = ()) -> str:
    """Return `name` if it is a choice of a configuration group, or one of the `further` names.

    Raises:
        InputError: `name` is not one of them; the message has the nearest ones, or what an old name is now.

    Example:
        >>> check_choice("prior", "swiss_roll")
        Traceback (most recent call last):
        ddvi_fast._checks.InputError: prior=swiss_roll is now prior=swiss_roll_noisy: the swiss roll with noise 0.1, which has a density
    """
    if (group, name) in _RENAMED:
        raise _checks.InputError(_RENAMED[group, name])
    return _checks.choice(name, [*further, *choices(group)], group)


def check_overrides(overrides: Iterable[str]) -> None:
    """Check the form ``name=value`` of overrides, the names of their settings and the choices of configuration groups.

    Raises:
        InputError: the first override that is wrong, with the nearest valid names.
    """
    known = setting_names()
    for override in overrides:
        name, sign, value = override.partition("=")
        _checks.require(bool(sign) and bool(name), "override", "name=value", override)
        if name in GROUPS:
            check_choice(name, value)
        elif not name.startswith(tuple(f"{free}." for free in FREE)):
            hint = _checks.nearest(name, known) or "ddvi-fast train --settings lists the settings"
            _checks.require(name in known, "setting", "one that exists", name, hint)


@functools.cache
def setting_names() -> tuple[str, ...]:
    """The dotted names of all settings and of the nodes they stand in."""
    return tuple(line for line in LISTING.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))


def names_of_schema() -> list[str]:
    """The names that `LISTING` must hold, in the schema's order."""
    from ddvi_fast.config.schema import Config
    from ddvi_fast.recipes.mapping import names

    return list(names(Config))


if __name__ == "__main__":
    LISTING.write_text(_HEAD + "\n".join(names_of_schema()) + "\n", encoding="utf-8")
