"""Runs: training in a folder, evaluation, and loading of finished runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ddvi_fast import _checks, _files, data, distributed
from ddvi_fast._html import card
from ddvi_fast.config.compose import from_dict
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.logs import read_metrics
from ddvi_fast.engine.run_folder import EVALUATION, FINAL, RunFolder, require_places
from ddvi_fast.engine.trackers import open_tracker
from ddvi_fast.precision import without_callers_autocast
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.length import fitted_to_size, tell_smaller_batches
from ddvi_fast.recipes.phases import Experiment
from ddvi_fast.training.cluster_choice import with_chosen_clusters
from ddvi_fast.training.decoder_passes import decoder_rows, within_passes
from ddvi_fast.training.engines import make_engines
from ddvi_fast.training.evaluate import evaluate
from ddvi_fast.training.keeping import further_files
from ddvi_fast.training.session import Clocks, Session, prepared_folder, processes
from ddvi_fast.training.time_budget import within_minutes
from ddvi_fast.training.turns import shared_data
from ddvi_fast.training.values import check_batches, check_values

# Function that draws the plots of a run into a folder and returns their paths.
Draw = Callable[[Config, Experiment, Dataset, Path, Sequence[Mapping[str, Any]]], list[Path]]


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a run.

    Args:
        folder: Folder of the run.
        metrics: Metrics on the test set (or the validation examples in its place) by name.
        figures: Paths of the plots.
    """

    folder: RunFolder
    metrics: dict[str, float]
    figures: list[Path]

    def _repr_html_(self) -> str:
        return card(str(self.folder.path), {name: f"{value:.4g}" for name, value in self.metrics.items()}, self.figures)


@dataclasses.dataclass(frozen=True)
class Run(Session):
    """A run with its data, networks and folder."""

    @classmethod
    def load(cls, path: str | Path | RunFolder, device: str | None = None) -> Run:
        """A finished run with its final weights, in evaluation mode.

        Args:
            path: Folder of the run.
            device: Device of data and networks; None for the run's own.

        Raises:
            InputError: No run, no final weights, or no data.
        """
        run = cls.untrained(path if isinstance(path, RunFolder) else RunFolder.open(path), device)
        run.restore()
        return run

    @classmethod
    def untrained(cls, folder: RunFolder, device: str | None = None) -> Run:
        """The run of a folder with initial weights, on `device` or the run's own device."""
        config = from_dict(folder.config)
        config = config if device is None else dataclasses.replace(config, device=device)
        dataset = load_dataset(config)
        return cls(config, dataset, build(config, dataset), folder)

    def restore(self) -> dict[str, Any]:
        """Load the final weights, ready for evaluation; returns what was saved beside them."""
        tensors, state = checkpoint.load(self.folder.checkpoints / FINAL, self.config.device)
        checkpoint.load_modules(tensors, self.experiment.modules())
        self.experiment.eval()
        return state

    def save(self, took: Clocks) -> None:
        """Save the final weights, and how long training took."""
        state = {"seconds": took.seconds, "cpu_seconds": took.cpu_seconds, "seed": self.config.seed}
        checkpoint.save(self.folder.checkpoints / FINAL, checkpoint.module_tensors(self.experiment.modules()), state)

    def evaluate(self, took: Clocks, draw: Draw | None = None) -> Result:
        """Evaluate on the test set or the validation examples, write `evaluation.json` and draw the plots."""
        # A damaged file is told before the work is done.
        records = read_metrics(self.folder.metrics) if distributed.is_first() and draw is not None and self.config.figures else []
        metrics = evaluate(self.config, self.experiment, self.dataset)
        counted = {} if self.config.max_passes is None else {"decoder_rows": decoder_rows(self.config, self.dataset)}
        metrics = {**metrics, **counted, "seconds": round(took.seconds, 1), "cpu_seconds": round(took.cpu_seconds, 1)}
        if not distributed.is_first():
            return Result(self.folder, metrics, [])
        further_files(self.config.dataset.name)(self.config, self.experiment, self.dataset, self.folder)
        _files.write_json(self.folder.path / EVALUATION, metrics)
        if (tracker := open_tracker(self.config.tracker, self.folder.path, self.folder.config)) is not None:
            tracker.summarise(metrics)
            tracker.close()
        if draw is None or not self.config.figures:
            return Result(self.folder, metrics, [])
        return Result(self.folder, metrics, draw(self.config, self.experiment, self.dataset, self.folder.figures, records))


# Functions that run configurations of further tasks, by `method.task`.
TASKS: dict[str, Callable[[Config], Result]] = {}


def run(config: Config, draw: Draw | None = None) -> Result:
    """Run a configuration: `train_run`, or the function that is registered for its task."""
    return TASKS[config.method.task](config) if config.method.task in TASKS else train_run(config, draw)


def train_run(config: Config, draw: Draw | None = None) -> Result:
    """Train, save and evaluate one run, or resume the run that was begun in its folder and not finished.

    In several processes each must call it, and each returns the same metrics.

    Args:
        config: Configuration of the run.
        draw: Function that draws the plots, such as `ddvi_fast.plots.run.draw_run`; None for none.

    Raises:
        InputError: Settings or data that cannot be used, or a run folder that holds another run (`overwrite=true` replaces it).
        NonFinite: A loss or gradient is not finite.
        Stopped: A signal asked the run to stop.
    """
    config = dataclasses.replace(config, device=distributed.local_device(config.device))
    with processes(config), without_callers_autocast():
        check_values(config)
        dataset = load_dataset(config)
        stated, config = config, fitted_to_size(config, dataset.size())
        tell_smaller_batches(stated.recipe.batch_size, config.recipe.batch_size, dataset.size())
        check_batches(config, dataset)
        asked, experiment = config, build(config, dataset)  # also to refuse it before there is a folder
        with prepared_folder(config, run_dir(config), lambda fresh: _within_budget(fresh, dataset)) as (folder, config):
            run = Run(config, dataset, experiment if config == asked else build(config, dataset), folder)
            took = Clocks(*(round(value, 3) for value in run.train()))  # as saved, so that a later evaluation has the same figures
            if distributed.is_first():
                run.save(took)
            return run.evaluate(took, draw)


def _within_budget(config: Config, dataset: Dataset) -> Config:
    """The configuration with the number of clusters that it leaves open, and as many epochs as its budgets of passes and of time allow."""
    config = within_passes(with_chosen_clusters(config, load_dataset), dataset)
    return within_minutes(config, dataset, make_engines(config))


def evaluate_run(path: str | Path, overwrite: bool = False, draw: Draw | None = None) -> Result:
    """Evaluate the final weights of the run at `path` again, as its configuration says.

    Raises:
        InputError: The run is evaluated already, unless `overwrite`.
    """
    folder = RunFolder.open(path)
    fresh = overwrite or not folder.finished
    _checks.require(fresh, f"run folder {path}", "one not evaluated yet", "evaluation.json", "--overwrite replaces it")
    require_places(folder.path)
    run = Run.untrained(folder)
    state = run.restore()
    with without_callers_autocast():
        return run.evaluate(Clocks.of(state, str(folder.checkpoints / FINAL)), draw)


def load_dataset(config: Config) -> Dataset:
    """The data set of a configuration, on its device."""
    _checks.require(config.seed >= 0, "seed", "at least 0", config.seed)
    genotypes = {"path": config.data, "labels": config.labels, **dataclasses.asdict(config.dataset.genotypes)}
    stated = config.dataset
    binary = stated.likelihood == "bernoulli" or not stated.binarize
    _checks.require(binary, "dataset.binarize", "false unless dataset.likelihood is bernoulli", f"true with {stated.likelihood}")
    sizes = (config.limit, genotypes, stated.validation, stated.binarize)
    settings, device = (stated.name, config.data_dir, config.download, config.split_seed, *sizes), _device(config.device)
    return shared_data((*settings, config.device), lambda: data.load(*settings).to(device))


def run_dir(config: Config) -> Path:
    """Folder of the run: the configuration's, or one below `runs/` named after data, method, prior and seed."""
    if config.run_dir is not None:
        _checks.require(bool(config.run_dir), "run_dir", "the name of a folder", config.run_dir)
        return Path(config.run_dir)
    return Path("runs") / f"{config.dataset.name}-{config.method.name}-{config.prior.name}-seed{config.seed}"


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it has no memory")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason: Any = str(error).splitlines()[0]
        _checks.fail("device", "a device that this machine has, such as cpu or cuda", name, reason)
    return device
