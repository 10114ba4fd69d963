"""Loader of the compiled library: the reason for a missing library, checks of tensors, positions of draws."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import InputError
from ddvi_fast.native import loader


def test_missing_library_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "LIBRARY", tmp_path / "_native.so")
    loader._open.cache_clear()
    try:
        usable, reason = loader.available()
        assert not usable and "was not built" in reason and "\n" not in reason
        with pytest.raises(InputError, match="compiled extension"):
            loader.library()
        (tmp_path / "_native.so").write_bytes(b"no library")
        loader._open.cache_clear()
        assert "cannot be loaded" in loader.available()[1]
    finally:
        loader._open.cache_clear()


def test_only_float32_of_the_cpu_can_be_used():
    assert loader.unusable(x=torch.zeros(1), y=None) is None
    assert "y: the C++ kernels are float32, got float64" in loader.unusable(x=torch.zeros(1), y=torch.zeros(1).double())
    assert "x: the C++ kernels run on the CPU" in loader.unusable(x=torch.zeros(1, device="meta"))


@pytest.mark.parametrize("state, position", [([5, 7], (5, 9)), ([-1, 0], (2**64 - 1, 2)), (None, (0, 0))])
def test_position(state, position):
    assert loader.position(None if state is None else torch.tensor(state), 2) == position
