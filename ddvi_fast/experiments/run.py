"""One run: train what a configuration says, in a folder of its own, and evaluate it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddvi_fast import _checks, data
from ddvi_fast.data import Dataset
from ddvi_fast.data.batches import num_batches
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.base import Engine, Optimisation
from ddvi_fast.engine.local import LocalEngine
from ddvi_fast.engine.logs import RunLog, read_metrics
from ddvi_fast.engine.loop import train
from ddvi_fast.engine.run_folder import RunFolder
from ddvi_fast.experiments.build import build
from ddvi_fast.experiments.clock import within_minutes
from ddvi_fast.experiments.compose import from_dict
from ddvi_fast.experiments.config import Config
from ddvi_fast.experiments.evaluate import draw_figures, evaluate
from ddvi_fast.experiments.parts import Experiment, augmentation
from ddvi_fast.objectives import Objective

FINAL = "final"


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run leaves: its folder, its figures of merit, the paths of its pictures."""

    folder: RunFolder
    metrics: dict[str, float]
    figures: list[Path]


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


def train_run(config: Config) -> Result:
    """Train, save and evaluate one run.

    Raises:
        InputError: bad settings or data, or a run folder that holds another run (`overwrite=true` replaces it).
    """
    dataset = load_dataset(config)
    config = within_minutes(config, dataset, _engines(config))
    experiment = build(config, dataset)
    batches = num_batches(dataset.size(), config.recipe.batch_size)
    folder = RunFolder.create(run_dir(config), dataclasses.asdict(config), overwrite=config.overwrite)
    started = Clocks.now()
    total = sum(phase.num_steps(batches) for phase in experiment.phases)
    with RunLog(folder.path, total_steps=total, tensorboard=config.tensorboard, progress=config.progress) as log:
        train(
            experiment.phases,
            dataset,
            config.recipe.batch_size,
            config.seed,
            _engines(config),
            _Recorder(log),
            augmentation(config),
        )
    return _finish(config, experiment, dataset, folder, started.until_now())


def evaluate_run(path: str | Path, overwrite: bool = False) -> Result:
    """Evaluate the final checkpoint of the run at `path` again, as its configuration says."""
    folder = RunFolder.open(path)
    fresh = overwrite or not _evaluation_path(folder).exists()
    _checks.require(fresh, f"run folder {path}", "one not evaluated yet", "evaluation.json", "overwrite=true replaces it")
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
    _checks.require(config.seed >= 0, "seed", "at least 0", config.seed)
    genotypes = {"path": config.data, "labels": config.labels, **dataclasses.asdict(config.dataset.genotypes)}
    dataset = data.load(config.dataset.name, config.data_dir, config.download, config.split_seed, config.limit, genotypes)
    return dataset.to(_device(config.device))


def run_dir(config: Config) -> Path:
    """Where the run goes."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    return Path("runs") / f"{config.dataset.name}-{config.method.name}-{config.prior.name}-seed{config.seed}"


def _engines(config: Config) -> Callable[[Objective, Optimisation], Engine]:
    return lambda objective, optimisation: LocalEngine(
        objective, optimisation, config.device, capture=config.capture, compile_networks=config.compile_networks, precision=config.precision
    )


def _finish(config: Config, experiment: Experiment, dataset: Dataset, folder: RunFolder, took: Clocks, save: bool = True) -> Result:
    if save:
        state = {"seconds": round(took.seconds, 3), "cpu_seconds": round(took.cpu_seconds, 3), "seed": config.seed}
        checkpoint.save(folder.checkpoints / FINAL, checkpoint.module_tensors(_modules(experiment)), state)
    metrics = {**evaluate(config, experiment, dataset), "seconds": round(took.seconds, 1), "cpu_seconds": round(took.cpu_seconds, 1)}
    _evaluation_path(folder).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    figures = draw_figures(config, experiment, dataset, folder.figures, read_metrics(folder.metrics)) if config.figures else []
    return Result(folder, metrics, figures)


class _Recorder:
    """Sends the loop's news to the run's log: a record an epoch, the bar at every step."""

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def step(self, step: int, phase: str, epoch: float, terms: Mapping[str, Tensor]) -> None:
        # Sums stay on the device: reading every step's terms back would stall it.
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in terms.items()}
        self._count += 1
        self._log.advance(step, phase=phase)

    def epoch(self, step: int, phase: str, epoch: int, engine: Engine) -> None:
        means = {name: total / self._count for name, total in self._sums.items()}
        self._log.log(step, epoch=epoch, phase=phase, terms=means)
        self._sums, self._count = {}, 0


def _modules(experiment: Experiment) -> dict[str, torch.nn.Module]:
    return {"model": experiment.model, "posterior": experiment.posterior}


def _evaluation_path(folder: RunFolder) -> Path:
    return folder.path / "evaluation.json"


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason: Any = str(error).splitlines()[0]
        _checks.fail("device", "a device that this machine has, such as cpu or cuda", name, reason)
    return device
