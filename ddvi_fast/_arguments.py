"""Arguments of commands that take options: what is wrong with them is one line, which names the nearest valid one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from ddvi_fast import _checks


class Parser(argparse.ArgumentParser):
    """`argparse` whose refusals are `InputError`.

    Example:
        >>> parser = Parser(prog="ddvi-fast reproduce")
        >>> _ = parser.add_argument("--seeds", type=int)
        >>> parser.parse_args(["--sedes", "3"])
        Traceback (most recent call last):
        ddvi_fast._checks.InputError: ddvi-fast reproduce: expected one of --help, --seeds, got '--sedes' (did you mean --seeds?)
    """

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As of `argparse`, but that an unknown option is named before anything that is missing because of it."""
        if self._subparsers is None:
            names = [name for name in self._option_string_actions if name.startswith("--")]
            for word in args or ():
                option = word.partition("=")[0]
                if option.startswith("--") and not any(name.startswith(option) for name in names):
                    _checks.choice(option, names, self.prog)
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            _checks.choice(value, action.choices, f"{self.prog}: {'/'.join(action.option_strings) or action.metavar or action.dest}")

    def error(self, message: str) -> NoReturn:
        """Whatever else `argparse` finds."""
        raise _checks.InputError(f"{self.prog}: {message}")
