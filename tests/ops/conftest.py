"""Fixtures for tests of the operations on every fused backend."""

from __future__ import annotations

from types import ModuleType

import pytest

from ddvi_fast import _backend
from ddvi_fast.native import loader

INSTRUCTION_SETS = ("portable", "avx2", "avx512")


@pytest.fixture(params=[*(f"cpp-{isa}" for isa in INSTRUCTION_SETS), "triton"])
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a fused backend, for C++ once per instruction set; skips those that are missing."""
    backend, _, isa = request.param.partition("-")
    if reason := _backend.unavailable(backend):
        pytest.skip(reason)
    if isa:
        monkeypatch.setenv("DDVI_FAST_ISA", isa)
        if loader.library().ddvi_isa() < INSTRUCTION_SETS.index(isa):
            pytest.skip(f"this processor has no {isa}")
    return backend


@pytest.fixture
def implementation(request: pytest.FixtureRequest, fused: str) -> ModuleType:
    """Module of a fused backend for the operation that the test file is named after (``test_<operation>_kernels.py``)."""
    return _backend.implementation(fused, request.path.stem.split("_")[1])
