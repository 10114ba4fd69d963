"""The training loop: phases of epochs of batches of updates, and nothing else.

Order and noise are functions of (seed, step), so a run needs no random state to be repeated or resumed: batch `b` of the
whole run stands at draws `b * batch_size`. Of several processes each takes its own rows of every batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ddvi_fast import distributed
from ddvi_fast.data.batches import epoch_batches, num_batches
from ddvi_fast.data.dataset import Dataset
from ddvi_fast.distributed import Part
from ddvi_fast.engine.base import Engine, NonFinite, set_trainable
from ddvi_fast.objectives import Objective, Progress
from ddvi_fast.recipes.phases import Optimisation, Phase
from ddvi_fast.rng import Draws

_PHASE_BITS = 24  # a phase owns 2^24 passes over the data


class Observer(Protocol):
    """Who wants to know how training goes."""

    def step(self, step: int, phase: str, epoch: float, terms: dict[str, Tensor]) -> None:
        """After a batch; `terms` are unweighted means on the device."""

    def epoch(self, step: int, phase: str, epoch: int, engine: Engine) -> None:
        """After an epoch."""


@dataclass(frozen=True)
class Start:
    """Where a run goes on: the steps it has done, and the state of the optimisers then; weights are in the modules already."""

    step: int
    adam: Mapping[str, Tensor]


@dataclass(frozen=True)
class Place:
    """A step of a run: number, phase, progress, and the examples of its batch."""

    step: int
    phase: int
    progress: Progress
    indices: Tensor


def train(
    phases: Sequence[Phase],
    dataset: Dataset,
    batch_size: int,
    seed: int,
    make_engine: Callable[[Objective, Optimisation], Engine],
    observer: Observer,
    augment: Callable[[Tensor, Draws], Tensor] | None = None,
    *,
    start: Start | None = None,
    between: Callable[[int, Engine], None] | None = None,
    until: int | None = None,
) -> None:
    """Train phase after phase on the dataset's training split.

    Args:
        phases: in order; modules shared between their objectives carry over.
        dataset: lives on the engine's device as one tensor, in every process.
        batch_size: rows of a batch, over all processes; a last incomplete batch is left out.
        seed: of order and noise.
        make_engine: builds the engine of a phase.
        observer: told after every batch and epoch.
        augment: `augment(x, draws)`, applied to training data.
        start: go on after so many steps.
        between: called as `between(step, engine)` when all of a step has been told, the place to save or to stop.
        until: train no further than this step, which may lie within a phase.

    Raises:
        NonFinite: with the `Place` as its `place`, where it is known.
    """
    done, step = 0 if start is None else start.step, 0
    rows = Part(distributed.rank(), distributed.world_size()).rows(batch_size)
    one_pass = num_batches(dataset.size(), batch_size)
    for number, phase in enumerate(phases):
        per_epoch = phase.steps_per_epoch or one_pass
        if done >= step + phase.epochs * per_epoch:
            step += phase.epochs * per_epoch
            phase.objective.eval()
            continue
        engine = make_engine(phase.objective, phase.optimisation)
        if done > step:
            engine.load_state(start.adam)
        phase.objective.train()
        first_epoch, skipped = divmod(max(0, done - step), per_epoch)
        step = max(step, done)
        for epoch in range(first_epoch, phase.epochs):
            _prepare_epoch(phase, engine, epoch)
            batches = _batches(dataset, batch_size, seed, number, epoch, phase.steps_per_epoch)
            for position in range(skipped if epoch == first_epoch else 0, len(batches)):
                indices = batches[position]
                draws = Draws(seed, step * batch_size + rows.start)
                x = dataset.inputs(indices[rows])
                x = x if augment is None else augment(x, draws)
                progress = Progress(epoch + position / len(batches), phase.epochs, phase.epochs * len(batches))
                try:
                    terms = engine.run(x, progress, draws)
                except NonFinite as error:
                    error.place = Place(step, number, progress, indices)
                    raise
                step += 1
                observer.step(step, phase.name, epoch + (position + 1) / len(batches), terms)
                if position + 1 == len(batches):
                    engine.check()
                    observer.epoch(step, phase.name, epoch + 1, engine)
                if between is not None:
                    between(step, engine)
                if step == until:
                    return
        set_trainable(phase.frozen, True)
        phase.objective.eval()


def _prepare_epoch(phase: Phase, engine: Engine, epoch: int) -> None:
    """What a phase changes between epochs."""
    set_trainable(phase.frozen, epoch >= phase.frozen_epochs)
    if phase.before_epoch is not None:
        phase.before_epoch(Progress(epoch, phase.epochs))
    if phase.before_epoch is not None or phase.frozen:
        engine.refresh()


def _batches(dataset: Dataset, batch_size: int, seed: int, phase: int, epoch: int, steps: int | None) -> list[Tensor]:
    """The index tensors of one epoch: one pass over the data, or as many as `steps` batches need."""
    one_pass = num_batches(dataset.size(), batch_size)
    steps = one_pass if steps is None else steps
    passes = -(-steps // one_pass)
    first = (phase << _PHASE_BITS) + epoch * passes
    orders = (epoch_batches(dataset.size(), batch_size, seed, first + number, dataset.device) for number in range(passes))
    return list(itertools.islice(itertools.chain.from_iterable(orders), steps))
