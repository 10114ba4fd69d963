"""Random restarts of a run, of which the best is continued, as in k-means.

Candidate 0 is the run without restarts. The others have initial weights, order and noise of their own, which are functions of the run's
seed and the candidate's number. After the choice, order and noise are the run's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from ddvi_fast import rng
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.data.batches import num_batches
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.callbacks import TermMeter, weights_of
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.logs import RunLog
from ddvi_fast.engine.loop import Callback, Start, train
from ddvi_fast.engine.non_finite import NonFinite
from ddvi_fast.engine.signals import Stopped, StopRequest
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.builder import augmentation
from ddvi_fast.recipes.options import RecipeOptions
from ddvi_fast.recipes.phases import Experiment
from ddvi_fast.rng import Draws
from ddvi_fast.training.engines import MakeEngine


class Candidate(NamedTuple):
    """A trained candidate: its objective, its weights by name, and the state of its optimizers."""

    objective: float
    weights: dict[str, Tensor]
    adam: dict[str, Tensor]


def choose(
    config: Config,
    experiment: Experiment,
    dataset: Dataset,
    make_engine: MakeEngine,
    stop: StopRequest,
    log: RunLog,
    tell: Callable[[str], None],
) -> Start:
    """Train all candidates for a fraction of the epochs, and load the weights of the best one into `experiment`.

    Candidates are compared by minus the bound, averaged over the last of these epochs, under the prior as blurred as it is then; methods
    without a bound by their reconstruction. `log` gets one record for each candidate.

    Returns:
        The step at which the run continues.

    Raises:
        NonFinite: All candidates failed; a single one that fails is left out.
        Stopped: A signal stopped the run; nothing is saved.
    """
    (phase,) = experiment.phases
    epochs = epochs_of(config.recipe, phase.epochs)
    step = epochs * num_batches(dataset.size(), config.recipe.batch_size)
    best, objectives, failure = None, [], None
    for number in range(config.recipe.restarts):
        try:
            candidate = _train(replace(config, seed=seed_of(config.seed, number)), dataset, make_engine, stop, step)
        except NonFinite as error:
            candidate, failure = None, error
        objectives.append(math.nan if candidate is None else candidate.objective)
        tell(f"candidate {number} of {config.recipe.restarts}: {objectives[-1]:.4g} nats after {epochs} epochs")
        if candidate is not None and (best is None or candidate.objective < best.objective):
            best, chosen = candidate, number
    if best is None:
        failure.info = None  # a candidate's step is not a step of the run
        raise failure
    for number, objective in enumerate(objectives):
        terms = {"candidate": float(number), "objective": objective, "chosen": float(number == chosen)}
        log.log(step, epoch=epochs, phase="restarts", terms=terms)
    checkpoint.load_tensors(best.weights, _weights(experiment))
    return Start(step, best.adam)


def epochs_of(recipe: RecipeOptions, epochs: int) -> int:
    """Number of epochs after which the best candidate is chosen.

    Example:
        >>> epochs_of(RecipeOptions(restarts=5, restart_fraction=0.3), 250)
        75
    """
    return max(1, round(recipe.restart_fraction * epochs))


def lengths(recipe: RecipeOptions) -> float:
    """Length of training in units of a run without restarts.

    Example:
        >>> lengths(RecipeOptions()), lengths(RecipeOptions(restarts=5, restart_fraction=0.25))
        (1.0, 2.0)
    """
    return 1.0 + (recipe.restarts - 1) * recipe.restart_fraction


def seed_of(seed: int, number: int) -> int:
    """Seed of a candidate.

    Example:
        >>> seed_of(3, 0), seed_of(3, 1) != seed_of(4, 1)
        (3, True)
    """
    if number == 0:
        return seed
    high, low = rng.words(Draws(seed, number), (1, 2), rng.RESTART).flatten().tolist()
    return (high << 31) | (low >> 1)


def _train(config: Config, dataset: Dataset, make_engine: MakeEngine, stop: StopRequest, steps: int) -> Candidate:
    experiment, meter, last = build(config, dataset), TermMeter(), _LastState(stop, steps)
    settings = (config.recipe.batch_size, config.seed)
    train(experiment.phases, dataset, *settings, make_engine, (meter, last), augmentation(config), until=steps)
    return Candidate(meter.last_bound, _weights(experiment), last.adam)


class _LastState(Callback):
    """Keeps the optimizers' state of step `steps`, and stops the run when a signal asks for it."""

    def __init__(self, stop: StopRequest, steps: int) -> None:
        self.adam: dict[str, Tensor] = {}
        self._stop, self._steps = stop, steps

    def after_step(self, step: int, engine: Engine) -> None:
        if self._stop.asked:
            raise Stopped(0)
        if step == self._steps:
            self.adam.update(engine.state())


def _weights(experiment: Experiment) -> dict[str, Tensor]:
    return weights_of({"model": experiment.model, "posterior": experiment.posterior}, experiment.phases)
