"""Training loop: phases of epochs of batches.

Order and noise are functions of (seed, step), so a run needs no random state to be repeated or resumed: batch `b` of the whole run
begins at draw `b * batch_size`. Each of several processes takes its own rows of every batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, distributed
from ddvi_fast.data.batches import epoch_batches, num_batches
from ddvi_fast.data.dataset import Dataset
from ddvi_fast.distributed import Part
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.non_finite import NonFinite
from ddvi_fast.objectives import Objective, Progress
from ddvi_fast.recipes.phases import Optimisation, Phase
from ddvi_fast.rng import Draws

_PHASE_BITS = 24  # a phase owns 2^24 passes over the data


class Callback:
    """Base of what `train` calls between steps. A callback overrides the methods that it needs; the others do nothing."""

    def step(self, step: int, phase: str, epoch: float, terms: dict[str, Tensor]) -> None:
        """Called after a batch; `terms` are unweighted means on the device."""

    def epoch(self, step: int, phase: str, epoch: int, engine: Engine) -> None:
        """Called after an epoch."""

    def after_step(self, step: int, engine: Engine) -> None:
        """Called when `step` and `epoch` of all callbacks have been called: the place to save or to stop."""


@dataclass(frozen=True)
class Start:
    """Where a run resumes: the steps that it has done, and the state of the optimizers then. Weights are in the modules already."""

    step: int
    adam: Mapping[str, Tensor]


@dataclass(frozen=True)
class StepInfo:
    """A step of a run: its number, phase and progress, and the examples of its batch."""

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
    callbacks: Sequence[Callback] = (),
    augment: Callable[[Tensor, Draws], Tensor] | None = None,
    *,
    start: Start | None = None,
) -> None:
    """Train phase after phase on the dataset's training split.

    Args:
        phases: Phases in order. Modules that their objectives share carry over.
        dataset: Data set on the device of the engine, whole in every process.
        batch_size: Rows of a batch over all processes (int). An incomplete last batch is left out.
        seed: Seed of order and noise (int).
        make_engine: Function `make_engine(objective, optimisation)` that makes the engine of a phase.
        callbacks: Callbacks, in the order in which they are called.
        augment: Function `augment(x, draws)` of the training rows of a batch, or None.
        start: State to resume from, or None.

    Raises:
        NonFinite: A loss or gradient is not finite; the error holds the `StepInfo` of the step as its `info`, where it is known.
        InputError: `start` is no state of this run.
    """
    with torch.inference_mode(False), torch.enable_grad():
        _train(phases, dataset, batch_size, seed, make_engine, callbacks, augment, start)


def _train(
    phases: Sequence[Phase], dataset: Dataset, batch_size: int, seed: int, make_engine: Callable[[Objective, Optimisation], Engine],
    callbacks: Sequence[Callback], augment: Callable[[Tensor, Draws], Tensor] | None, start: Start | None,
) -> None:  # fmt: skip
    done, first, batches = 0 if start is None else start.step, 0, num_batches(dataset.size(), batch_size)
    total = sum(phase.num_steps(batches) for phase in phases)
    _checks.require(0 <= done <= total, "checkpoint, step", f"0 to {total}, the steps of the run", done)
    rows = Part(distributed.rank(), distributed.world_size()).rows(batch_size)
    for number, phase in enumerate(phases):
        following = first + phase.num_steps(batches)
        if done < following:
            engine = make_engine(phase.objective, phase.optimisation)
            if done > first:
                _checks.require(bool(start.adam), "checkpoint", f"the optimizer's state after {done} steps", "no state of it")
                engine.load_state(start.adam)
            phase.objective.train()
            for info, epoch, last in _steps(phase, number, first, max(0, done - first), engine, dataset, batch_size, seed):
                terms = _run(engine, info, dataset, rows, Draws(seed, info.step * batch_size + rows.start), augment)
                _call(callbacks, info.step + 1, phase, epoch, terms, engine, last)
            set_trainable(phase.frozen, True)
        phase.objective.eval()
        first = following


def _steps(
    phase: Phase, number: int, first: int, done: int, engine: Engine, dataset: Dataset, batch_size: int, seed: int
) -> Iterator[tuple[StepInfo, float, bool]]:
    """Steps of a phase that begins at step `first` and has `done` steps behind it: step, epochs after it, whether it is the last of its epoch."""
    first_epoch, skipped = divmod(done, phase.steps_per_epoch or num_batches(dataset.size(), batch_size))
    step = first + done
    for epoch in range(first_epoch, phase.epochs):
        _prepare_epoch(phase, engine, epoch)
        batches = _batches(dataset, batch_size, seed, number, epoch, phase.steps_per_epoch)
        for position in range(skipped if epoch == first_epoch else 0, len(batches)):
            progress = Progress(epoch + position / len(batches), phase.epochs, phase.epochs * len(batches))
            yield StepInfo(step, number, progress, batches[position]), epoch + (position + 1) / len(batches), position + 1 == len(batches)
            step += 1


def _run(
    engine: Engine, info: StepInfo, dataset: Dataset, rows: slice, draws: Draws, augment: Callable[[Tensor, Draws], Tensor] | None
) -> dict[str, Tensor]:
    """Take a step on this process's `rows` of its batch."""
    x = dataset.inputs(info.indices[rows])
    try:
        return engine.run(x if augment is None else augment(x, draws), info.progress, draws)
    except NonFinite as error:
        error.info = info
        raise


def _call(callbacks: Sequence[Callback], step: int, phase: Phase, epoch: float, terms: dict[str, Tensor], engine: Engine, last: bool) -> None:
    """Call all callbacks after a step, which may be the last of its epoch."""
    for callback in callbacks:
        callback.step(step, phase.name, epoch, terms)
    if last:
        engine.check()
        for callback in callbacks:
            callback.epoch(step, phase.name, round(epoch), engine)
    for callback in callbacks:
        callback.after_step(step, engine)


def _prepare_epoch(phase: Phase, engine: Engine, epoch: int) -> None:
    """Freeze modules before an epoch, or make them trainable."""
    set_trainable(phase.frozen, epoch >= phase.frozen_epochs)
    if phase.frozen and epoch == phase.frozen_epochs:
        engine.refresh()


def _batches(dataset: Dataset, batch_size: int, seed: int, phase: int, epoch: int, steps: int | None) -> list[Tensor]:
    """The index tensors of one epoch: one pass over the data, or as many passes as `steps` batches need."""
    one_pass = num_batches(dataset.size(), batch_size)
    steps = one_pass if steps is None else steps
    passes = -(-steps // one_pass)
    first = (phase << _PHASE_BITS) + epoch * passes
    orders = (epoch_batches(dataset.size(), batch_size, seed, first + number, dataset.device) for number in range(passes))
    return list(itertools.islice(itertools.chain.from_iterable(orders), steps))


def set_trainable(modules: Iterable[nn.Module], trainable: bool) -> None:
    """Make the parameters of `modules` trainable, or freeze them."""
    for module in modules:
        module.requires_grad_(trainable)
