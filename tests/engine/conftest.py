"""Fixtures of the tests of engines."""

from __future__ import annotations

import pytest


@pytest.fixture
def plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense layers in plain PyTorch throughout: a recording of operators has them so, and steps that are compared with it must round alike."""
    monkeypatch.setattr("ddvi_fast.dense._fused_precision", lambda *_: None)
