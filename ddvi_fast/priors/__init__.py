"""Priors `p(z)`: samples, exact densities, class partitions, and nodes to integrate over."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from ddvi_fast import _checks
from ddvi_fast.priors.base import Prior
from ddvi_fast.priors.centres import Centres
from ddvi_fast.priors.gaussian import Gaussian
from ddvi_fast.priors.mixture import Mixture
from ddvi_fast.priors.partitions import OneHotGaussian
from ddvi_fast.priors.pinwheel import Pinwheel
from ddvi_fast.priors.square import Square
from ddvi_fast.priors.swiss_roll import SwissRoll

__all__ = ["Centres", "Gaussian", "Mixture", "OneHotGaussian", "Pinwheel", "Prior", "Square", "SwissRoll", "make"]

_PRIORS = {
    "gaussian": Gaussian,
    "mixture": Mixture,
    "pinwheel": Pinwheel,
    "swiss_roll": SwissRoll,
    "swiss_roll_noisy": partial(SwissRoll, noise=0.1),
    "less_noisy_swiss_roll": partial(SwissRoll, noise=0.1),
    "square": Square,
    "less_noisy_square": partial(Square, noise_level=3.0),
}


def make(name: str, **options: Any) -> Prior:
    """A prior by name: ``gaussian``, ``mixture``, ``pinwheel``, ``swiss_roll``, ``square``, ``less_noisy_square`` (the square with
    ``noise_level=3``), ``swiss_roll_noisy`` and ``less_noisy_swiss_roll`` (both the swiss roll with ``noise=0.1``).

    Raises:
        InputError: an unknown name or option, with the nearest valid ones.

    Example:
        >>> make("pinwheel").num_classes
        10
    """
    family = _PRIORS[_checks.choice(name, _PRIORS, "prior")]
    for option in options:
        _checks.choice(option, inspect.signature(family).parameters, f"option of the {name} prior")
    return family(**options)
