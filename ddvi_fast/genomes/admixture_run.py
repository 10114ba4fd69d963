"""Proportions of the people of a file, or of a data set as a run: tables and figures in a folder."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ddvi_fast import _checks, _files, metrics, plots
from ddvi_fast.config.schema import Config
from ddvi_fast.data import folder_of
from ddvi_fast.engine.run_folder import EVALUATION, RunFolder, require_room
from ddvi_fast.genomes.admixture import Admixture, Proportions, held_out_log_likelihood, write_proportions
from ddvi_fast.genomes.convert import store_or_import
from ddvi_fast.genomes.dataset import DATASETS, Genotypes, store_of
from ddvi_fast.genomes.labels import attach, read_labels
from ddvi_fast.genomes.store import GenotypeStore
from ddvi_fast.recipes.options import AdmixtureOptions
from ddvi_fast.standardization import tell
from ddvi_fast.training.run import TASKS, Result, run_dir

_STEM = "admixture"


class Estimated(NamedTuple):
    """A fitted model, the proportions of the people, and the groups of the figures or None."""

    model: Admixture
    found: Proportions
    groups: list[str] | None


def admixture(
    file: str | Path,
    sources: Sequence[int],
    out: str | Path,
    *,
    supervised: str | Path | None = None,
    label: str | None = None,
    groups: str | Path | None = None,
    concentration: float = 1.0,
    seed: int = 0,
) -> list[Path]:
    """Write proportions, frequencies and figures; returns the paths.

    Args:
        file: Store, or genotype file of any format.
        sources: Numbers of sources, of which held-out genotypes choose where there are several.
        out: New folder.
        supervised: Table of people who are known to come from one source each; people without a label are not (default none).
        label: Column of the source in that table (default: its only column).
        groups: Table whose first column of labels names the groups of the figures (default: the sources of `supervised`).
        concentration, seed: See `Admixture`.

    Raises:
        InputError: `out` exists, the file or a table cannot be read, or the labels do not name `sources` sources.
    """
    out = _checks.path(out, "out").expanduser()
    _checks.require(not out.exists(), "out", "a new folder", str(out))
    options = AdmixtureOptions(list(_checks.integers(sources, "sources", 1)), concentration, None if supervised is None else str(supervised), label)
    with tempfile.TemporaryDirectory() as folder:
        store = store_or_import(file, Path(folder) / "store")
        estimated = _estimated(store, options, seed, None if groups is None else _column(store, groups, None, first=True))
    out.mkdir(parents=True)
    return _written(estimated, out, out, "")


def run_admixture(config: Config) -> Result:
    """Estimate the proportions of the people of a data set of genotypes in a run folder (`method=ddvi_admixture`).

    Where the people have labels, they name the groups of the figures, and are compared with the largest proportion of each person.

    Raises:
        InputError: As for `admixture`, another data set, or a run folder that holds another run.
    """
    _checks.choice(config.dataset.name, DATASETS, "dataset")
    options = Genotypes(config.data, config.labels, **vars(config.dataset.genotypes))
    store = store_of(config.dataset.name, options, data_dir=folder_of(config.data_dir), seed=config.split_seed)
    groups = None if options.label is None else store.samples.labels.get(options.label)
    require_room(run_dir(config), config.overwrite)
    started = time.perf_counter(), time.process_time()
    estimated = _estimated(store, config.method.admixture, config.seed, groups)
    took = {"seconds": round(time.perf_counter() - started[0], 1), "cpu_seconds": round(time.process_time() - started[1], 1)}
    # An earlier run is replaced only now, when there are new results.
    folder = RunFolder.create(run_dir(config), dataclasses.asdict(config), overwrite=config.overwrite)
    figures = _written(estimated, folder.path, folder.figures if config.figures else None, f"{config.dataset.name}, {config.method.name}")[3:]
    result = {"sources": len(estimated.found.sources), **_agreement(estimated), **took}
    _files.write_json(folder.path / EVALUATION, result)
    return Result(folder, result, figures)


def _estimated(store: GenotypeStore, options: AdmixtureOptions, seed: int, groups: np.ndarray | None) -> Estimated:
    """Fit to the people of a store; without `groups` the sources of a supervised fit stand in their place."""
    numbers = _checks.integers(options.sources, "sources", 1)
    labels = None if options.supervised is None else _column(store, options.supervised, options.label)
    _checks.require(labels is None or len(numbers) == 1, "sources", "one number, for a supervised fit", list(numbers))
    models = [Admixture(number, concentration=options.concentration, seed=seed) for number in numbers]
    model = _chosen(store, models).fit(store, labels)
    names = labels if groups is None else groups
    return Estimated(model, model.proportions(store), None if names is None else np.where(names == "", "unlabelled", names).tolist())


def _written(estimated: Estimated, folder: Path, figures: Path | None, title: str) -> list[Path]:
    """Write tables into a folder and the bars into another; returns the paths, those of the three tables first."""
    model, found, groups = estimated
    written = write_proportions(folder, model, found, _STEM)
    if figures is None:
        return written
    page, interval = figures / f"{_STEM}.html", found.interval()
    return [
        *written,
        plots.admixture_bars(figures / f"{_STEM}.png", found.mean, found.sources, groups, title, overwrite=True),
        plots.interactive_bars(page, found.mean, found.sources, found.people, groups, title or _STEM, interval=interval, overwrite=True),
    ]


def _agreement(estimated: Estimated) -> dict[str, float]:
    """Scores of the largest proportion of each person against the groups, if there are any."""
    if estimated.groups is None:
        return {}
    _, labels = np.unique(estimated.groups, return_inverse=True)
    return metrics.cluster_scores(torch.from_numpy(labels), torch.from_numpy(estimated.found.mean.argmax(1)))


def _chosen(store: GenotypeStore, models: Sequence[Admixture]) -> Admixture:
    """The model with the number of sources with which held-out genotypes are most probable."""
    if len(models) == 1:
        return models[0]
    scores = [held_out_log_likelihood(store, model.num_sources, model.seed) for model in models]
    shown = ", ".join(f"{model.num_sources}: {score:.5f}" for model, score in zip(models, scores, strict=True))
    tell(f"sources: {shown} nats per held-out genotype")
    return models[int(np.argmax(scores))]


def _column(store: GenotypeStore, table: str | Path, label: str | None, first: bool = False) -> np.ndarray:
    """A column of the people's labels in a table, [N]."""
    samples, _ = attach(store.samples, read_labels(table), leave_out=True)
    added = [name for name in samples.labels if name not in store.samples.labels or samples.labels[name] is not store.samples.labels[name]]
    if label is None:
        _checks.require(first or len(added) == 1, "label", f"one of {', '.join(added)}", "none")
        label = added[0]
    return samples.labels[_checks.choice(label, added, "label")]


TASKS["admixture"] = run_admixture
