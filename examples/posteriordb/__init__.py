"""Twelve posteriors of posteriordb (Magnusson et al. 2024): densities, data and 10,000 reference draws each.

>>> from examples import posteriordb
>>> sorted(posteriordb.NAMES)[:2]
['arK-arK', 'diamonds-diamonds']
"""

from __future__ import annotations

from examples.posteriordb.problem import NAMES, Problem, load, reference

__all__ = ["NAMES", "Problem", "load", "reference"]
