"""Time budget of a run: the number of epochs that fit, by a timing of the first steps of a copy."""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass, field, replace

from ddvi_fast import _checks
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.data.batches import num_batches
from ddvi_fast.engine.loop import Callback, train
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.builder import augmentation
from ddvi_fast.recipes.phases import Phase
from ddvi_fast.training.engines import MakeEngine

_STEPS, _UNCOUNTED = 20, 4  # the first steps warm caches


def within_minutes(config: Config, dataset: Dataset, make_engine: MakeEngine) -> Config:
    """Shorten all stages of a run by one factor so that training takes `config.max_minutes`.

    At least one epoch of each stage is kept. Unlike in a run that is cut off, learning rates still decay to their final values. Without
    `max_minutes`, or if all epochs fit, the configuration is returned unchanged.
    """
    if config.max_minutes is None:
        return config
    _checks.require(config.max_minutes > 0, "max_minutes", "a positive number", config.max_minutes)
    batches = num_batches(dataset.size(), config.recipe.batch_size)
    phases = build(config, dataset).phases
    seconds = sum(phase.num_steps(batches) * seconds_a_step(phase, config, dataset, make_engine) for phase in phases)
    share = 60 * config.max_minutes / seconds
    return config if share >= 1 else shortened(config, share)


def shortened(config: Config, share: float) -> Config:
    """`config` with that share of the epochs of each stage, at least one."""

    def fewer(epochs: int) -> int:
        return min(epochs, max(1, int(share * epochs)))

    if config.epochs is not None:
        return replace(config, epochs=fewer(config.epochs))
    recipe = config.recipe
    shorter = {name: fewer(getattr(recipe, name)) for name in ("epochs", "prior_epochs", "warmup_epochs")}
    return replace(config, recipe=replace(recipe, **shorter))


def seconds_a_step(phase: Phase, config: Config, dataset: Dataset, make_engine: MakeEngine, steps: int = _STEPS) -> float:
    """Median seconds per step of training `phase` for `steps` steps (more than 5), which changes its modules."""
    clock = _Clock()
    few = replace(phase, epochs=1, steps_per_epoch=steps, frozen=(), frozen_epochs=0)
    train([few], dataset, config.recipe.batch_size, config.seed, make_engine, [clock], augmentation(config))
    times = clock.times[_UNCOUNTED:]
    return statistics.median(after - before for before, after in itertools.pairwise(times))


@dataclass
class _Clock(Callback):
    """Callback that records the time at the end of each step."""

    times: list[float] = field(default_factory=list)

    def step(self, step: int, phase: str, epoch: float, terms: object) -> None:
        self.times.append(time.perf_counter())
