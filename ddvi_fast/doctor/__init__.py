"""Checks of the installation: libraries, devices, backends and data of this machine, a self-test, and suggested fixes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from ddvi_fast.doctor.findings import Finding, Status
from ddvi_fast.doctor.inspection import inspect
from ddvi_fast.doctor.selftest import self_test

__all__ = ["Finding", "Status", "inspect", "main", "self_test"]


def main(arguments: Sequence[str]) -> int:
    """Run `ddvi-fast doctor`: an alias of `ddvi_fast.cli.doctor.main`, loaded by name because the command line imports this package."""
    return importlib.import_module("ddvi_fast.cli.doctor").main(arguments)
