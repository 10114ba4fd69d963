"""Parser of the options of a command: an error is one line that names the nearest valid option."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ddvi_fast import _checks


class Parser(argparse.ArgumentParser):
    """An `argparse` parser whose errors are `InputError`.

    Example:
        >>> parser = Parser(prog="ddvi-fast reproduce")
        >>> _ = parser.add_argument("--seeds", type=int)
        >>> parser.parse_args(["--sedes", "3"])
        Traceback (most recent call last):
        ddvi_fast._checks.InputError: reproduce: expected one of --help, --seeds, got '--sedes' (did you mean --seeds?)
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=_Help)
        for kind in (None, "store"):
            self.register("action", kind, _Once)
        self.given: dict[str, Any] = {}
        self._name = self.prog.removeprefix("ddvi-fast ")  # the command line begins every message with the rest

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse as `argparse` does, but name an unknown option before the arguments that are missing because of it."""
        if self._subparsers is None:
            names = [name for name in self._option_string_actions if name.startswith("--")]
            for word in args or ():
                option = word.partition("=")[0]
                if option.startswith("--") and not any(name.startswith(option) for name in names):
                    _checks.choice(option, names, self._name)
        self.given.clear()
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            _checks.choice(value, action.choices, f"{self._name}: {'/'.join(action.option_strings) or action.metavar or action.dest}")

    def error(self, message: str) -> NoReturn:
        """Raise the `InputError` of any other message of `argparse`."""
        raise _checks.InputError(f"{self._name}: {message}")


class _Once(argparse._StoreAction):
    """An option with a value, of which a command has no two: argparse would take the last one."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        if option_string is not None:
            before = parser.given.setdefault(self.dest, values)
            _checks.require(before == values, option_string, "one value", f"{before} and {values}")
        super().__call__(parser, namespace, values, option_string)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help with a line for each option, on terminals that are wide enough."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def dashed(arguments: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """Arguments with options in the older spelling ``name=value`` written as ``--name VALUE``; ``run_dir=PATH`` is the plain path.

    Args:
        arguments: The arguments of a command (list of str).
        names: The names that the older spelling has (list of str).

    Raises:
        InputError: another name, or an `overwrite` that is neither true nor false.

    Example:
        >>> list(dashed(["run_dir=runs/mine", "num_samples=2", "overwrite=true"], ["run_dir", "num_samples", "overwrite"]))
        ['runs/mine', '--num-samples=2', '--overwrite']
    """
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if not sign or argument.startswith("-") or Path(argument).exists():
            yield argument
        elif _checks.choice(name, names, "option") == "run_dir":
            yield value
        elif name == "overwrite":
            yield from ["--overwrite"] if _checks.choice(value, ("true", "false"), "overwrite") == "true" else []
        else:
            yield f"--{name.replace('_', '-')}={value}"
