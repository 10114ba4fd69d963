"""Training a run in its folder: with which engine, from where, watched, kept, and stopped."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ddvi_fast import _checks, distributed
from ddvi_fast._files import locked
from ddvi_fast.config.compose import from_dict
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.data.batches import num_batches
from ddvi_fast.engine import bundle
from ddvi_fast.engine.base import Engine, NonFinite
from ddvi_fast.engine.checkpoints import Checkpoints, tensors_of
from ddvi_fast.engine.interrupts import StopRequest
from ddvi_fast.engine.keeper import Keeper
from ddvi_fast.engine.local import LocalEngine
from ddvi_fast.engine.logs import RunLog
from ddvi_fast.engine.loop import train
from ddvi_fast.engine.optimisers import choose
from ddvi_fast.engine.parallel import ParallelEngine
from ddvi_fast.engine.recorder import Recorder
from ddvi_fast.engine.run_folder import RunFolder, unfinished
from ddvi_fast.engine.trackers import open_tracker
from ddvi_fast.engine.watchdog import Watchdog
from ddvi_fast.objectives import Objective
from ddvi_fast.precision import in_force
from ddvi_fast.recipes.builder import augmentation
from ddvi_fast.recipes.phases import Experiment, Optimisation
from ddvi_fast.rng import Draws
from ddvi_fast.training import restarts

EPOCHS = ("epochs", "prior_epochs", "warmup_epochs")  # of a recipe
ENGINES = ("auto", "local", "parallel", "deepspeed")


class Clocks(NamedTuple):
    """Seconds by the clock on the wall, and seconds of this process on processors, which other programs' work does not lengthen."""

    seconds: float
    cpu_seconds: float

    @classmethod
    def now(cls) -> Clocks:
        return cls(time.perf_counter(), time.process_time())

    def until_now(self) -> Clocks:
        """What has gone by since."""
        return Clocks(*(after - before for after, before in zip(self.now(), self, strict=True)))

    def plus(self, seconds: float, cpu_seconds: float) -> Clocks:
        """With what earlier parts of a run took."""
        return Clocks(self.seconds + seconds, self.cpu_seconds + cpu_seconds)


@contextmanager
def processes(config: Config) -> Iterator[None]:
    """The processes of a run, joined and watched; one alone has nothing to join."""
    if distributed.launched():
        _checks.require(config.max_minutes is None, "max_minutes", "null in several processes, whose clocks differ", config.max_minutes)
        _checks.require(config.recipe.restarts == 1, "recipe.restarts", "1 in several processes", config.recipe.restarts)
    one_owner = config.recipe.restarts == 1 or engine_name(config) != "deepspeed"
    _checks.require(one_owner, "recipe.restarts", "1 with engine=deepspeed, which takes a model for good", config.recipe.restarts)
    distributed.start(config.device, config.timeout)
    try:
        with Watchdog(config.timeout):
            yield
            distributed.wait_for_all()
    finally:
        distributed.stop()


@contextmanager
def prepared_folder(config: Config, path: Path, shorten: Callable[[Config], Config]) -> Iterator[tuple[RunFolder, Config]]:
    """The run's folder, locked, and what it is to run: a new one, or the same run that was begun there and not finished.

    `shorten` fits a new run into the time it is given; one that goes on keeps the length it began with.
    """
    first = distributed.is_first()
    with locked(path) if first else nullcontext():
        resume = unfinished(path) and not config.overwrite
        config = _as_long_as(config, path) if resume else shorten(config)
        folder = RunFolder.create(path, dataclasses.asdict(config), overwrite=config.overwrite, resume=resume) if first else None
        distributed.wait_for_all()
        yield folder or RunFolder.open(path), config


def _as_long_as(config: Config, path: Path) -> Config:
    """`config` with the epochs of the run in a folder, if both have the same time."""
    begun = from_dict(RunFolder.open(path).config)
    if config.max_minutes is None or config.max_minutes != begun.max_minutes:
        return config
    lengths = {name: getattr(begun.recipe, name) for name in EPOCHS}
    return dataclasses.replace(config, epochs=begun.epochs, recipe=dataclasses.replace(config.recipe, **lengths))


def engine_name(config: Config) -> str:
    """``local``, ``parallel`` or ``deepspeed``: what the configuration asks for, or what fits."""
    name = _checks.choice(config.engine, ENGINES, "engine")
    if name != "auto":
        return name
    if config.zero_stage > 0:
        return "deepspeed"
    if distributed.world_size() > 1:
        return "deepspeed" if importlib.util.find_spec("deepspeed") is not None else "parallel"
    return "parallel" if config.accumulation > 1 or config.precision == "fp16" else "local"


def make_engines(config: Config) -> Callable[[Objective, Optimisation], Engine]:
    """Makes the engine that the configuration asks for."""
    name = engine_name(config)
    if name == "local":
        return _local(config, distributed.world_size() > 1)
    _checks.require(name == "deepspeed" or config.zero_stage == 0, "zero_stage", "0 without engine=deepspeed", config.zero_stage)
    options: dict[str, Any] = {"precision": config.precision, "accumulation": config.accumulation, "optimiser": config.optimiser}
    if name == "parallel":
        return lambda objective, optimisation: ParallelEngine(objective, optimisation, config.device, **options)
    from ddvi_fast.engine.deepspeed_engine import DeepSpeedEngine

    return lambda objective, optimisation: DeepSpeedEngine(objective, optimisation, config.device, zero_stage=config.zero_stage, **options)


def _name_engine(config: Config) -> None:
    """Say what moves the parameters, where that is chosen."""
    name = engine_name(config)
    if name != "local":
        stage = f", ZeRO {config.zero_stage}" if name == "deepspeed" else ""
        adam, products = choose(config.optimiser, torch.device(config.device)), in_force(config.precision, torch.device(config.device))
        _tell(f"engine {name}{stage}, {distributed.world_size()} x {config.accumulation} parts of a batch, {products}, {adam.note}")


def _local(config: Config, several: bool) -> Callable[[Objective, Optimisation], Engine]:
    for fits, argument, expected, got in (
        (not several, "engine", "parallel or deepspeed in several processes", "local"),
        (config.accumulation == 1, "accumulation", "1 with engine=local", config.accumulation),
        (config.zero_stage == 0, "zero_stage", "0 with engine=local", config.zero_stage),
        (config.optimiser in ("auto", "torch"), "optimiser", "auto or torch with engine=local", config.optimiser),
    ):
        _checks.require(fits, argument, expected, got)
    return lambda objective, optimisation: LocalEngine(
        objective, optimisation, config.device, capture=config.capture, compile_networks=config.compile_networks, precision=config.precision
    )


def train_in(folder: RunFolder, config: Config, experiment: Experiment, dataset: Dataset) -> Clocks:
    """Train the run of a folder from its start or its last checkpoint; returns how long it took, over all its parts.

    Raises:
        NonFinite: a bundle of the step that failed is in the folder.
        Stopped: a signal came, and the run can go on.
    """
    first, started = distributed.is_first(), Clocks.now()
    earlier = Clocks(0.0, 0.0)
    recorder = Recorder(None)
    modules = {"model": experiment.model, "posterior": experiment.posterior}
    with StopRequest() as stop:
        kept = None if config.checkpoint_steps is None else Checkpoints(folder.checkpoints, config.checkpoint_keep, _tell if first else _keep_quiet)
        keeper = Keeper(
            modules, experiment.phases, recorder, kept, config.checkpoint_steps or 1, stop, config.recipe.average_decay,
            about=lambda: started.until_now().plus(*earlier)._asdict(),
        )  # fmt: skip
        start = keeper.start()
        earlier = Clocks(**keeper.about) if start else earlier
        total = sum(phase.num_steps(num_batches(dataset.size(), config.recipe.batch_size)) for phase in experiment.phases)
        resume_from = start.step if start else (0 if folder.metrics.exists() else None)
        options = {"tensorboard": config.tensorboard, "progress": config.progress, "resume_from": resume_from}
        if first:
            options["tracker"] = open_tracker(config.tracker, folder.path, folder.config)
            _name_engine(config)
        if start and first:
            _tell(f"goes on after step {start.step} of {total}")
        with RunLog(folder.path, total_steps=total, **options) if first else nullcontext() as recorder.log:
            try:
                make = make_engines(config)
                if start is None and config.recipe.restarts > 1:
                    start = restarts.choose(config, experiment, dataset, make, stop, recorder.log, _tell)
                    keeper.begin(start)
                train(
                    experiment.phases, dataset, config.recipe.batch_size, config.seed, make, recorder, augmentation(config),
                    start=start, between=keeper,
                )  # fmt: skip
            except NonFinite as error:
                _keep_failed_step(folder, config, experiment, dataset, error)
                raise
        keeper.finish()
    return started.until_now().plus(*earlier)


def _keep_failed_step(folder: RunFolder, config: Config, experiment: Experiment, dataset: Dataset, error: NonFinite) -> None:
    """Write a bundle of the step, and say in the error where it is and what was at fault; nothing where the step is not known."""
    if error.place is None:
        return
    draws = Draws(config.seed, error.place.step * config.recipe.batch_size)
    batch = dataset.inputs(error.place.indices)
    augment = augmentation(config)
    batch = batch if augment is None else augment(batch, draws)
    if distributed.is_first():
        weights = tensors_of({"objective": experiment.phases[error.place.phase].objective})
        bundle.write(folder.failed_step, error, weights, batch, draws.first_index, folder.config)
    error.args = (f"{bundle.describe(error)}; ddvi-fast train --replay {folder.failed_step} shows it",)


def _tell(line: str) -> None:
    print(f"ddvi-fast: {line}", file=sys.stderr, flush=True)


def _keep_quiet(line: str) -> None:
    """Another process speaks."""
