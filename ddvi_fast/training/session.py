"""Training of a run in its folder: processes, folder lock, checkpoints, logs, failed steps."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from ddvi_fast import _checks, distributed
from ddvi_fast._files import locked
from ddvi_fast.config.compose import from_dict
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.data.batches import num_batches
from ddvi_fast.engine import failed_step
from ddvi_fast.engine.callbacks import CheckpointCallback, TermMeter
from ddvi_fast.engine.checkpoint_manager import CheckpointManager, tensors_of
from ddvi_fast.engine.logs import RunLog
from ddvi_fast.engine.loop import train
from ddvi_fast.engine.non_finite import NonFinite
from ddvi_fast.engine.run_folder import RunFolder, unfinished
from ddvi_fast.engine.signals import StopRequest
from ddvi_fast.engine.trackers import open_tracker
from ddvi_fast.engine.watchdog import Watchdog
from ddvi_fast.recipes.builder import augmentation
from ddvi_fast.recipes.phases import Experiment
from ddvi_fast.rng import Draws
from ddvi_fast.training import turns
from ddvi_fast.training.class_factors import fit_class_factors
from ddvi_fast.training.engines import engine_line, make_engines

EPOCHS = ("epochs", "prior_epochs", "warmup_epochs")  # lengths of a recipe


class Clocks(NamedTuple):
    """Wall-clock seconds and processor seconds of this process; the latter do not depend on other programs, nor on runs side by side."""

    seconds: float
    cpu_seconds: float

    @classmethod
    def now(cls) -> Clocks:
        return cls(time.perf_counter(), time.process_time() - turns.seconds_of_others())

    @classmethod
    def of(cls, state: Mapping[str, Any], where: str) -> Clocks:
        """The clocks among the plain values that were saved in the checkpoint `where`."""
        return cls(*(_checks.number(state.get(name), f"{where}, {name}", at_least=0) for name in cls._fields))

    def until_now(self) -> Clocks:
        """Time since this reading."""
        return Clocks(*(after - before for after, before in zip(self.now(), self, strict=True)))

    def plus(self, seconds: float, cpu_seconds: float) -> Clocks:
        """Time including that of earlier parts of a run."""
        return Clocks(self.seconds + seconds, self.cpu_seconds + cpu_seconds)


@contextmanager
def processes(config: Config) -> Iterator[None]:
    """Context in which the processes of a run are joined and supervised."""
    if distributed.launched():
        _checks.require(config.max_minutes is None, "max_minutes", "null in several processes, whose clocks differ", config.max_minutes)
    distributed.start(config.device, _checks.number(config.timeout, "timeout", above=0))
    try:
        with Watchdog(config.timeout):
            yield
            distributed.wait_for_all()
    finally:
        distributed.stop()


@contextmanager
def prepared_folder(config: Config, path: Path, shorten: Callable[[Config], Config]) -> Iterator[tuple[RunFolder, Config]]:
    """Context of a run's locked folder; yields the folder and the configuration to run.

    The folder is new, or holds the same run, begun and not finished. `shorten` chooses the number of clusters of a new run and fits its
    epochs into its time budget; a resumed run keeps both.
    """
    first = distributed.is_first()
    with locked(path) if first else nullcontext():
        resume = unfinished(path) and not config.overwrite
        config = _as_long_as(_with_its_clusters(config, path), path) if resume else shorten(config)
        folder = RunFolder.create(path, dataclasses.asdict(config), overwrite=config.overwrite, resume=resume) if first else None
        distributed.wait_for_all()
        yield folder or RunFolder.open(path), config


def _with_its_clusters(config: Config, path: Path) -> Config:
    """`config` with the number of clusters of the run in a folder, if both compare the same numbers."""
    begun, own = from_dict(RunFolder.open(path).config).method.clustering, config.method.clustering
    if not own.compare or begun.compare != own.compare:
        return config
    clustering = dataclasses.replace(own, num_clusters=begun.num_clusters)
    return dataclasses.replace(config, method=dataclasses.replace(config.method, clustering=clustering))


def _as_long_as(config: Config, path: Path) -> Config:
    """`config` with the epochs of the run in a folder, if both have the same budget of time or passes."""
    begun = from_dict(RunFolder.open(path).config)
    budgets = [(one.max_minutes, one.max_passes) for one in (config, begun)]
    if budgets[0] == (None, None) or budgets[0] != budgets[1]:
        return config
    lengths = {name: getattr(begun.recipe, name) for name in EPOCHS}
    return dataclasses.replace(config, epochs=begun.epochs, recipe=dataclasses.replace(config.recipe, **lengths))


@dataclasses.dataclass(frozen=True)
class Session:
    """The training of one run in its folder.

    Args:
        config: Configuration of the run.
        dataset: Data set on the run's device.
        experiment: Model, posterior and phases, on the same device.
        folder: Folder of the run.
    """

    config: Config
    dataset: Dataset
    experiment: Experiment
    folder: RunFolder

    def train(self) -> Clocks:
        """Train from the start or the last checkpoint.

        Returns:
            The time that training took, over all its parts.

        Raises:
            NonFinite: A loss or gradient is not finite; the folder holds a bundle of the step.
            Stopped: A signal stopped the run, which can be resumed.
        """
        first, started, earlier = distributed.is_first(), Clocks.now(), Clocks(0.0, 0.0)
        config, meter = self.config, TermMeter()
        every = 1 if config.checkpoint_steps is None else config.checkpoint_steps
        with StopRequest() as stop:
            checkpoints = CheckpointCallback(
                self.experiment.modules(), self.experiment.phases, meter, self._checkpoints(), every, stop,
                config.recipe.average_decay, about=lambda: started.until_now().plus(*earlier)._asdict(),
            )  # fmt: skip
            start = checkpoints.resume()
            earlier = Clocks.of(checkpoints.about, "checkpoint") if start else earlier
            with self._log(start.step if start else None) if first else nullcontext() as meter.log:
                try:
                    callbacks = (meter, checkpoints, *turns.callbacks())
                    train(
                        self.experiment.phases, self.dataset, config.recipe.batch_size, config.seed, make_engines(config), callbacks,
                        augmentation(config), start=start,
                    )  # fmt: skip
                except NonFinite as error:
                    self._keep_failed_step(error)
                    raise
            checkpoints.finish()
            fit_class_factors(config, self.experiment, self.dataset)
        return started.until_now().plus(*earlier)

    def _checkpoints(self) -> CheckpointManager | None:
        if self.config.checkpoint_steps is None:
            return None
        return CheckpointManager(self.folder.checkpoints, self.config.checkpoint_keep, _tell if distributed.is_first() else _keep_quiet)

    def _log(self, step: int | None) -> RunLog:
        """The run's log, and lines about the engine and the step at which training is resumed."""
        config, batches = self.config, num_batches(self.dataset.size(), self.config.recipe.batch_size)
        total = sum(phase.num_steps(batches) for phase in self.experiment.phases)
        tracker = open_tracker(config.tracker, self.folder.path, self.folder.config)
        if (line := engine_line(config)) is not None:
            _tell(line)
        if step is not None:
            _tell(f"resuming at step {step} of {total}")
        resume_from = step if step is not None else (0 if self.folder.metrics.exists() else None)
        return RunLog(
            self.folder.path, total_steps=total, tensorboard=config.tensorboard, progress=config.progress, resume_from=resume_from, tracker=tracker
        )

    def _keep_failed_step(self, error: NonFinite) -> None:
        """Write a bundle of a known step, and add to the error where the bundle is and what was not finite."""
        if error.info is None:
            return
        draws = Draws(self.config.seed, error.info.step * self.config.recipe.batch_size)
        batch, augment = self.dataset.inputs(error.info.indices), augmentation(self.config)
        batch = batch if augment is None else augment(batch, draws)
        if distributed.is_first():
            weights = tensors_of({"objective": self.experiment.phases[error.info.phase].objective})
            failed_step.write(self.folder.failed_step, error, weights, batch, draws.first_index, self.folder.config)
        error.args = (f"{failed_step.describe(error)}; ddvi-fast train --replay {self.folder.failed_step} shows it",)


def _tell(line: str) -> None:
    print(f"ddvi-fast: {line}", file=sys.stderr, flush=True)


def _keep_quiet(line: str) -> None:
    """Print nothing: the first process prints."""
