"""Command line of ddvi_fast: `ddvi-fast COMMAND [name=value ...]`."""

from ddvi_fast.cli.main import EXIT_BAD_INPUT, EXIT_UNREAD, main

__all__ = ["EXIT_BAD_INPUT", "EXIT_UNREAD", "main"]
