"""Diffusion posteriors as guides of Pyro (`pip install 'ddvi-fast[pyro]'`)."""

from __future__ import annotations

from typing import Any

__all__ = ["AutoAmortizedDDVI", "AutoDDVI"]


def __getattr__(name: str) -> Any:
    """Import Pyro when a guide is first used."""
    if name == "AutoDDVI":
        from ddvi_fast.pyro.guide import guide_class

        return guide_class()
    if name == "AutoAmortizedDDVI":
        from ddvi_fast.pyro.amortized import amortized_class

        return amortized_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
