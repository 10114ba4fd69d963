"""`ddvi-fast doctor`: what there is on this machine, what will be used of it and why, whether it computes what it should, and what to do."""

from __future__ import annotations

from ddvi_fast.doctor.command import main
from ddvi_fast.doctor.findings import Finding, Status
from ddvi_fast.doctor.inspection import inspect
from ddvi_fast.doctor.selftest import self_test

__all__ = ["Finding", "Status", "inspect", "main", "self_test"]
