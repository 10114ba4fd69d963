"""Several starts of a run, of which the best goes on, as in k-means: where data come to lie under a prior is settled early, and by luck.

Candidate 0 is the run as it would be alone. The others have initial weights, order and noise of their own, each a function of the
run's seed and the candidate's number; after the choice order and noise are the run's own, whichever candidate it was.
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
from ddvi_fast.engine.base import Engine, NonFinite
from ddvi_fast.engine.interrupts import Stopped, StopRequest
from ddvi_fast.engine.keeper import weights_of
from ddvi_fast.engine.logs import RunLog
from ddvi_fast.engine.loop import Start, train
from ddvi_fast.engine.recorder import Recorder
from ddvi_fast.objectives import Objective
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.builder import augmentation
from ddvi_fast.recipes.options import RecipeOptions
from ddvi_fast.recipes.phases import Experiment, Optimisation
from ddvi_fast.rng import Draws

MakeEngine = Callable[[Objective, Optimisation], Engine]


class Candidate(NamedTuple):
    """A start that was trained until the choice: what it came to, its weights by name, the state of its optimisers."""

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
    """Train all candidates for their share of the epochs, load the best one's weights into `experiment`, and say where the run goes on.

    What counts is minus the bound, a mean over the last of these epochs, under the prior as blurred as it is by then; for methods
    without a bound their reconstruction. Every candidate leaves a record in `log`.

    Raises:
        NonFinite: no candidate came through; one alone that does not is out of the choice.
        Stopped: a signal came; nothing is kept, the run begins anew.
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
        failure.place = None  # a step of a candidate is none of the run
        raise failure
    for number, objective in enumerate(objectives):
        terms = {"candidate": float(number), "objective": objective, "chosen": float(number == chosen)}
        log.log(step, epoch=epochs, phase="restarts", terms=terms)
    checkpoint.load_tensors(best.weights, _weights(experiment))
    return Start(step, best.adam)


def epochs_of(recipe: RecipeOptions, epochs: int) -> int:
    """After how many of a run's `epochs` the best start is chosen.

    Example:
        >>> epochs_of(RecipeOptions(restarts=5, restart_fraction=0.3), 250)
        75
    """
    return max(1, round(recipe.restart_fraction * epochs))


def lengths(recipe: RecipeOptions) -> float:
    """How long training takes, in lengths of a single start.

    Example:
        >>> lengths(RecipeOptions()), lengths(RecipeOptions(restarts=5, restart_fraction=0.25))
        (1.0, 2.0)
    """
    return 1.0 + (recipe.restarts - 1) * recipe.restart_fraction


def seed_of(seed: int, number: int) -> int:
    """The seed of a candidate.

    Example:
        >>> seed_of(3, 0), seed_of(3, 1) != seed_of(4, 1)
        (3, True)
    """
    if number == 0:
        return seed
    high, low = rng.words(Draws(seed, number), (1, 2), rng.RESTART).flatten().tolist()
    return (high << 31) | (low >> 1)


def _train(config: Config, dataset: Dataset, make_engine: MakeEngine, stop: StopRequest, steps: int) -> Candidate:
    experiment, recorder, adam = build(config, dataset), Recorder(None), {}

    def between(step: int, engine: Engine) -> None:
        if stop.asked:
            raise Stopped(0)
        if step == steps:
            adam.update(engine.state())

    augment = augmentation(config)
    settings = (config.recipe.batch_size, config.seed)
    train(experiment.phases, dataset, *settings, make_engine, recorder, augment, between=between, until=steps)
    return Candidate(recorder.last_bound, _weights(experiment), adam)


def _weights(experiment: Experiment) -> dict[str, Tensor]:
    return weights_of({"model": experiment.model, "posterior": experiment.posterior}, experiment.phases)
