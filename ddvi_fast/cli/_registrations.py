"""Registration of the data sets, recipes and methods that stand outside the library and the trainer."""

from __future__ import annotations


def register() -> None:
    """Import the modules that register something; a command that trains or reads runs calls this first."""
    from ddvi_fast import genomes, paper  # noqa: F401
    from ddvi_fast.genomes import admixture_run  # noqa: F401
