"""Command line of ddvi_fast: one module a command, imported when the command is called. Only this package prints to standard output."""

from ddvi_fast.cli.main import (
    COMMANDS,
    EXIT_BAD_INPUT,
    EXIT_INTERRUPTED,
    EXIT_NON_FINITE,
    EXIT_NOT_WRITTEN,
    EXIT_STOPPED,
    EXIT_UNREAD,
    main,
)  # fmt: skip

__all__ = [
    "COMMANDS", "EXIT_BAD_INPUT", "EXIT_INTERRUPTED", "EXIT_NON_FINITE", "EXIT_NOT_WRITTEN", "EXIT_STOPPED", "EXIT_UNREAD", "main",
]  # fmt: skip
