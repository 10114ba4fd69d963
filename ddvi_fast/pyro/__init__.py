"""Diffusion posteriors as guides of Pyro (`pip install 'ddvi-fast[pyro]'`)."""

from __future__ import annotations

from typing import Any

__all__ = ["AutoDDVI"]


def __getattr__(name: str) -> Any:
    """The guide is a class of Pyro's, which loads when it is first asked for."""
    if name in __all__:
        from ddvi_fast.pyro.guide import guide_class

        return guide_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
