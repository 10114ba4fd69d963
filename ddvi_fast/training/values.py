"""Refusal of values that a run cannot have, before anything of it is printed, written or trained."""

from __future__ import annotations

from ddvi_fast import _checks, distributed
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.data.batches import num_batches
from ddvi_fast.engine.logs import PROGRESS
from ddvi_fast.engine.trackers import TRACKERS
from ddvi_fast.training.engines import check_engine

_COUNTS = (
    "checkpoint_steps", "checkpoint_keep", "accumulation", "recipe.batch_size", "evaluation.limit", "evaluation.elbo_samples",
    "evaluation.iwae_samples", "evaluation.prior_samples",
)  # fmt: skip
_RANGES: dict[str, dict[str, float]] = {
    "max_minutes": {"above": 0},
    "timeout": {"above": 0},
    "recipe.average_decay": {"above": 0, "below": 1},
    "evaluation.evidence_blur": {"at_least": 0},
}


def check_values(config: Config) -> None:
    """Check what building the experiment does not: values of training, evaluation and output.

    Raises:
        InputError: A value is out of range.

    Example:
        >>> check_values(Config(checkpoint_keep=0))
        Traceback (most recent call last):
        ddvi_fast._checks.InputError: checkpoint_keep: expected an integer of at least 1, got 0
    """
    _checks.at_least(1, **{name: _value(config, name) for name in _COUNTS})
    _checks.at_least(0, **{"recipe.min_steps": config.recipe.min_steps})
    _checks.at_least(2, **{"prior.resolution": config.prior.resolution})
    for name, limits in _RANGES.items():
        if (value := _value(config, name)) is not None:
            _checks.number(value, name, **limits)
    _checks.choice(config.progress, PROGRESS, "progress")
    if config.tracker is not None:
        _checks.choice(config.tracker, TRACKERS, "tracker")
    check_engine(config)


def check_batches(config: Config, dataset: Dataset) -> None:
    """Check that the batches are no larger than the training set, and can be cut into the parts of all processes."""
    num_batches(dataset.size(), config.recipe.batch_size)
    distributed.Part(0, distributed.world_size() * config.accumulation).rows(config.recipe.batch_size)


def _value(config: Config, name: str) -> object:
    value: object = config
    for part in name.split("."):
        value = getattr(value, part)
    return value
