"""Diffusion posteriors as guides of Pyro (`pip install 'ddvi-fast[pyro]'`)."""

from __future__ import annotations

from typing import Any

__all__ = ["AutoDDVI"]


def __getattr__(name: str) -> Any:
    """Import Pyro when the guide is first used."""
    if name in __all__:
        from ddvi_fast.pyro.guide import guide_class

        return guide_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
