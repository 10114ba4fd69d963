"""Priors p(z): samples, exact densities, classes, quadrature nodes."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from ddvi_fast import _checks
from ddvi_fast.priors.base import Prior, PriorSample
from ddvi_fast.priors.centres import Centres
from ddvi_fast.priors.gaussian import Gaussian
from ddvi_fast.priors.mixture import Mixture
from ddvi_fast.priors.partitions import OneHotGaussian
from ddvi_fast.priors.pinwheel import Pinwheel
from ddvi_fast.priors.pushforward import Pushforward
from ddvi_fast.priors.square import Square
from ddvi_fast.priors.swiss_roll import SwissRoll

__all__ = [
    "Centres", "Gaussian", "Mixture", "OneHotGaussian", "Pinwheel", "Prior", "PriorSample", "Pushforward", "Square", "SwissRoll", "make",
]  # fmt: skip

_PRIORS = {
    "gaussian": Gaussian,
    "mixture": Mixture,
    "pinwheel": Pinwheel,
    "swiss_roll": SwissRoll,
    "noiseless_swiss_roll": SwissRoll,
    "swiss_roll_noisy": partial(SwissRoll, noise=0.1),
    "less_noisy_swiss_roll": partial(SwissRoll, noise=0.1),
    "square": Square,
    "less_noisy_square": partial(Square, noise_level=3.0),
}


def make(name: str, **options: Any) -> Prior:
    """Make a prior by name.

    Args:
        name: ``gaussian``, ``mixture``, ``pinwheel``, ``swiss_roll`` (without noise and density, also called ``noiseless_swiss_roll``),
            ``swiss_roll_noisy`` (noise 0.1, also called ``less_noisy_swiss_roll``), ``square``, or ``less_noisy_square`` (noise level 3).
        options: Arguments of the prior's class.

    Returns:
        The prior.

    Raises:
        InputError: If the name or an option is unknown; the message contains the nearest valid ones.

    Example:
        >>> make("pinwheel").num_classes
        10
    """
    family = _PRIORS[_checks.choice(name, _PRIORS, "prior")]
    for option in options:
        _checks.choice(option, inspect.signature(family).parameters, f"option of the {name} prior")
    return family(**options)
