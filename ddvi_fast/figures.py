"""Alias of `ddvi_fast.plots` under its former name."""

from ddvi_fast.plots import *  # noqa: F403
from ddvi_fast.plots import __all__  # noqa: F401
