"""One run: train what a configuration says, in a folder of its own, and evaluate it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from ddvi_fast import _checks, data, distributed
from ddvi_fast._html import card
from ddvi_fast.config.compose import from_dict
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.logs import read_metrics
from ddvi_fast.engine.run_folder import EVALUATION, RunFolder
from ddvi_fast.engine.trackers import open_tracker
from ddvi_fast.recipes.build import build
from ddvi_fast.recipes.phases import Experiment
from ddvi_fast.training.evaluate import evaluate
from ddvi_fast.training.time_budget import within_minutes
from ddvi_fast.training.training import Clocks, make_engines, prepared_folder, processes, train_in

FINAL = "final"


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run leaves: its folder, its figures of merit, the paths of its pictures."""

    folder: RunFolder
    metrics: dict[str, float]
    figures: list[Path]

    def _repr_html_(self) -> str:
        return card(str(self.folder.path), {name: f"{value:.4g}" for name, value in self.metrics.items()}, self.figures)


def train_run(config: Config) -> Result:
    """Train, save and evaluate one run; a run that was begun in its folder and not finished goes on.

    In several processes each must call it, and each returns the same figures.

    Raises:
        InputError: bad settings or data, or a run folder that holds another run (`overwrite=true` replaces it).
        NonFinite: a loss or gradient that is not finite.
        Stopped: a signal asked the run to stop.
    """
    config = dataclasses.replace(config, device=distributed.local_device(config.device))
    with processes(config):
        dataset = load_dataset(config)
        with prepared_folder(config, run_dir(config), lambda fresh: within_minutes(fresh, dataset, make_engines(fresh))) as (folder, config):
            experiment = build(config, dataset)
            return _finish(config, experiment, dataset, folder, train_in(folder, config, experiment, dataset))


def evaluate_run(path: str | Path, overwrite: bool = False) -> Result:
    """Evaluate the final checkpoint of the run at `path` again, as its configuration says."""
    folder = RunFolder.open(path)
    fresh = overwrite or not _evaluation_path(folder).exists()
    _checks.require(fresh, f"run folder {path}", "one not evaluated yet", "evaluation.json", "--overwrite replaces it")
    config = from_dict(folder.config)
    dataset = load_dataset(config)
    experiment = build(config, dataset)
    state = restore(experiment, folder, config.device)
    return _finish(config, experiment, dataset, folder, Clocks(state["seconds"], state["cpu_seconds"]), save=False)


def restore(experiment: Experiment, folder: RunFolder, device: str) -> dict[str, Any]:
    """Load a run's final weights into `experiment`, ready for evaluation; returns what was saved beside them."""
    tensors, state = checkpoint.load(folder.checkpoints / FINAL, device)
    checkpoint.load_modules(tensors, _modules(experiment))
    for module in _modules(experiment).values():
        module.eval()
    return state


def load_dataset(config: Config) -> Dataset:
    """The data set of a configuration, on its device."""
    import ddvi_fast.genomes  # noqa: F401

    _checks.require(config.seed >= 0, "seed", "at least 0", config.seed)
    genotypes = {"path": config.data, "labels": config.labels, **dataclasses.asdict(config.dataset.genotypes)}
    dataset = data.load(config.dataset.name, config.data_dir, config.download, config.split_seed, config.limit, genotypes)
    return dataset.to(_device(config.device))


def run_dir(config: Config) -> Path:
    """Where the run goes."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return Path("runs") / f"{config.dataset.name}-{config.method.name}-{config.prior.name}-seed{config.seed}"


def _finish(config: Config, experiment: Experiment, dataset: Dataset, folder: RunFolder, took: Clocks, save: bool = True) -> Result:
    if save and distributed.is_first():
        state = {"seconds": round(took.seconds, 3), "cpu_seconds": round(took.cpu_seconds, 3), "seed": config.seed}
        checkpoint.save(folder.checkpoints / FINAL, checkpoint.module_tensors(_modules(experiment)), state)
    metrics = {**evaluate(config, experiment, dataset), "seconds": round(took.seconds, 1), "cpu_seconds": round(took.cpu_seconds, 1)}
    if not distributed.is_first():
        return Result(folder, metrics, [])
    _evaluation_path(folder).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if (tracker := open_tracker(config.tracker, folder.path, folder.config)) is not None:
        tracker.summarise(metrics)
        tracker.close()
    return Result(folder, metrics, _draw(config, experiment, dataset, folder) if config.figures else [])


def _draw(config: Config, experiment: Experiment, dataset: Dataset, folder: RunFolder) -> list[Path]:
    from ddvi_fast.plots.run import draw_run

    return draw_run(config, experiment, dataset, folder.figures, read_metrics(folder.metrics))


def _modules(experiment: Experiment) -> dict[str, torch.nn.Module]:
    return {"model": experiment.model, "posterior": experiment.posterior}


def _evaluation_path(folder: RunFolder) -> Path:
    return folder.path / EVALUATION


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason: Any = str(error).splitlines()[0]
        _checks.fail("device", "a device that this machine has, such as cpu or cuda", name, reason)
    return device
