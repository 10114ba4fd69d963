"""Fixtures of tests that fit posteriors."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def short_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the steps of the Gaussian from which a fit to one data set starts: enough for parameters of order 1. `test_start.py` takes all."""
    monkeypatch.setattr("ddvi_fast.inference.start.STEPS", 375)


@pytest.fixture
def quick_start(short_start: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """So few of these steps that the fit is of no use."""
    monkeypatch.setattr("ddvi_fast.inference.start.STEPS", 30)
