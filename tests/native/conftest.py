"""The compiled kernels are tested on every instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ddvi_fast.native import loader

LEVELS = {"portable": 0, "avx2": 1, "avx512": 2}


@pytest.fixture(autouse=True)
def compiled() -> None:
    """Skips where the library was not built, and says why."""
    usable, reason = loader.available()
    if not usable:
        pytest.skip(reason)


@pytest.fixture(params=LEVELS)
def isa(request: pytest.FixtureRequest, compiled: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once per instruction set; skips those that the processor lacks."""
    monkeypatch.setenv("DDVI_FAST_ISA", request.param)
    if loader.library().ddvi_isa() < LEVELS[request.param]:
        pytest.skip(f"this processor has no {request.param}")
    return request.param


@pytest.fixture(params=["native", *LEVELS])
def bf16_isa(request: pytest.FixtureRequest, compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test of bf16 once with the processor's own products, if it has any, and once with those that each instruction set emulates."""
    monkeypatch.setenv("DDVI_FAST_ISA", request.param)
    if loader.library().ddvi_isa() != LEVELS.get(request.param, 3):
        pytest.skip(f"this processor has no {request.param} products")


@pytest.fixture
def threads() -> Iterator:
    """Sets torch's number of threads for the length of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
