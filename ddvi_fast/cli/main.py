"""Dispatcher of the command line: help, version, completion, and the commands with their exit codes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

from ddvi_fast import InputError, __version__, _checks

EXIT_BAD_INPUT = 2
EXIT_NON_FINITE = 65  # a loss or gradient that is not finite; the run's folder holds a bundle of the step
EXIT_NOT_WRITTEN = 74  # a full or broken disk
EXIT_STOPPED = 75  # stopped by a signal after a checkpoint; the same command resumes
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141  # the reader of the output, such as `head`, closed the pipe

COMMANDS = {
    "train": "Train and evaluate one run: ddvi-fast train dataset=mnist prior=pinwheel epochs=5",
    "evaluate": "Evaluate the weights of a run again: ddvi-fast evaluate RUN --overwrite",
    "demo": "Compare a Gaussian and a diffusion posterior on digits, in a few minutes",
    "reproduce": "Reproduce a table of results: ddvi-fast reproduce mnist --seeds 3 --epochs 10 --jobs 2",
    "data": "Import genotype files into packed stores: ddvi-fast data import FILE --out STORE",
    "project": "Project people of another genotype file: ddvi-fast project RUN FILE --out people.tsv",
    "admixture": "Estimate proportions of ancestry: ddvi-fast admixture FILE --sources 5 --out FOLDER",
    "place": "Place people with few called genotypes: ddvi-fast place PANEL FILE --out places.tsv",
    "report": "Compare runs in one HTML file: ddvi-fast report RUN RUN --output report.html",
    "export": "Export the posterior of a run as a program that needs only torch: ddvi-fast export RUN --output FILE",
    "doctor": "Check the installation and suggest fixes: ddvi-fast doctor --quick",
    "bench": "Measure speed and memory against plain PyTorch: ddvi-fast bench quick --threads 2",
}
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_RENAMED = {"settings": "train --settings", "paper": "train --paper", "replay": "train --replay", "completion": "--completion"}
_USAGE = """usage: ddvi-fast COMMAND [ARGUMENT ...]

{commands}

  --completion SHELL  Print the completion script of bash, zsh or fish
  --version           Print the version
  --help              Print this help; ddvi-fast COMMAND --help describes one command

Settings of a run are written name=value, options of a command --name VALUE. `ddvi-fast train --settings` lists the settings."""
# What the extra `train` installs: module -> name for people.
_CORE = {"torch": "PyTorch", "numpy": "NumPy", "safetensors": "safetensors", "sklearn": "scikit-learn"}
_EXTRA = {"hydra": "Hydra", "omegaconf": "OmegaConf", "yaml": "PyYAML", "rich": "rich", "tensorboard": "TensorBoard", "matplotlib": "matplotlib"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: The command and its arguments (list of str, default `sys.argv[1:]`).

    Returns:
        0; 2 for bad input (one line on standard error); 74 for a file that cannot be read or written (a full disk); 130 for Ctrl-C; 141 if
        the reader of the output closed it. Training also returns 65 (a loss is not finite), 75 (stopped by a signal, can be resumed) and
        76 (a process was lost).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _one_line_warnings():
            code = _call(arguments) or 0
        sys.stdout.flush()
        return code
    except InputError as error:
        if not hasattr(error, "info"):  # which `engine.non_finite.NonFinite` has; its module imports torch
            return _refuse(str(error))
        from ddvi_fast.distributed import speaks  # a loss is not finite in every process of a run, of which one prints

        return _refuse(str(error), EXIT_NON_FINITE) if speaks() else EXIT_NON_FINITE
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in _CORE:
            return _refuse(f"this needs {_CORE[package]}, which {sys.executable} does not have (make install, or pip install 'ddvi-fast[train]')")
        if package not in _EXTRA:
            raise
        return _refuse(f"this needs {_EXTRA[package]} (pip install 'ddvi-fast[train]')")
    except KeyboardInterrupt:
        return _refuse("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return EXIT_UNREAD
    except OSError as error:
        fault = "cannot be written: " if error.errno in _UNWRITABLE else ""
        return _refuse(f"{error.filename or 'a file'}: {fault}{error.strerror or error}", EXIT_NOT_WRITTEN)


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """A context in which a warning is one line on standard error that begins as an error does."""
    with warnings.catch_warnings():
        warnings.formatwarning = lambda message, *_, **__: f"ddvi-fast: {' '.join(str(message).split())}\n"
        try:
            yield
        finally:
            warnings.formatwarning = _PLAIN


_PLAIN = warnings.formatwarning


def _refuse(message: str, code: int = EXIT_BAD_INPUT) -> int:
    print(f"ddvi-fast: {' '.join(message.split())}", file=sys.stderr)
    return code


def _call(arguments: Sequence[str]) -> int | None:
    word, *further = arguments or [""]
    if word in ("", "-h", "--help", "help"):
        print(_USAGE.format(commands="\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())))
        return 0 if word else EXIT_BAD_INPUT
    if word == "--version":
        print(f"ddvi-fast {__version__}")
        return 0
    if word == "--completion":
        from ddvi_fast.cli.completion import script

        _checks.require(len(further) == 1, "--completion", "the name of one shell", " ".join(further) or "none")
        print(script(further[0], list(COMMANDS)), end="")
        return 0
    if word in _RENAMED:
        return _refuse(f"`ddvi-fast {word}` is now `{' '.join(['ddvi-fast', _RENAMED[word], *further])}`")
    if word.startswith("-"):
        _checks.choice(word, ("--help", "--version", "--completion"), "option")
    return importlib.import_module(f"ddvi_fast.cli.{_checks.choice(word, COMMANDS, 'command')}").main(further)
