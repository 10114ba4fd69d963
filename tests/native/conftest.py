"""Fixtures for tests of the compiled kernels on every instruction set that this processor has."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from ddvi_fast.native import loader

LEVELS = {"portable": 0, "avx2": 1, "avx512": 2}


@pytest.fixture(autouse=True)
def compiled() -> None:
    """Skip where the library was not built, with the reason."""
    usable, reason = loader.available()
    if not usable:
        pytest.skip(reason)


@pytest.fixture(params=LEVELS)
def isa(request: pytest.FixtureRequest, compiled: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test once per instruction set; skip those that the processor lacks."""
    monkeypatch.setenv("DDVI_FAST_ISA", request.param)
    if loader.library().ddvi_isa() < LEVELS[request.param]:
        pytest.skip(f"this processor has no {request.param}")
    return request.param


@pytest.fixture(params=["native", *LEVELS])
def bf16_isa(request: pytest.FixtureRequest, compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test of bf16 once with the processor's own products, if it has any, and once with those that each instruction set emulates."""
    monkeypatch.setenv("DDVI_FAST_ISA", request.param)
    if loader.library().ddvi_isa() != LEVELS.get(request.param, 3):
        pytest.skip(f"this processor has no {request.param} products")


@pytest.fixture
def threads() -> Iterator:
    """Function that sets torch's number of threads for the length of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def same_for_any_threads(threads: Callable) -> Callable:
    """Function that fails unless the tensors a call returns, by name or in order, have the same bits twice and for any number of threads."""

    def check(call: Callable, counts: tuple[int, ...] = (1, 2, 2)) -> None:
        results = []
        for count in counts:
            threads(count)
            found = call()
            results.append(found if isinstance(found, dict) else dict(enumerate(found)))
        for name, value in results[0].items():
            assert value is None or all(torch.equal(value, other[name]) for other in results[1:]), name

    return check
