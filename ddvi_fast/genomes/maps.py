"""Maps of the samples of a genotype data set: by population, with posterior uncertainty, and interactive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ddvi_fast import metrics, plots
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset, folder_of
from ddvi_fast.genomes.dataset import DATASETS, Genotypes, sample_tables
from ddvi_fast.genomes.tables import SampleTable
from ddvi_fast.objectives.clustering import assign
from ddvi_fast.recipes.phases import Experiment
from ddvi_fast.rng import Draws

_GROUP = "superpopulation"  # the column of labels that groups populations
_SAMPLES = 60  # posterior samples per person


class People(NamedTuple):
    """Labels of the test examples: their table, population numbers [N], and the name and group of each population."""

    table: SampleTable
    labels: np.ndarray
    names: tuple[str, ...]
    groups: tuple[str, ...]


def people(config: Config, dataset: Dataset) -> People | None:
    """Labels of the test set; None where it has none, or where only a part of the data set was loaded."""
    if config.dataset.name not in DATASETS or dataset.test_labels is None or config.limit is not None:
        return None
    options = Genotypes(config.data, config.labels, **vars(config.dataset.genotypes), validation=config.dataset.validation)
    _, table = sample_tables(config.dataset.name, options, data_dir=folder_of(config.data_dir), seed=config.split_seed)
    labels = dataset.test_labels.cpu().numpy()
    return People(table, labels, dataset.class_names, groups_of(table, labels, dataset.class_names))


def groups_of(table: SampleTable, labels: np.ndarray, names: Sequence[str]) -> tuple[str, ...]:
    """The most frequent superpopulation of each population; without such a column every population is a group of its own."""
    if _GROUP not in table.labels:
        return tuple(names)
    found = []
    for number, name in enumerate(names):
        values, counts = np.unique(table.labels[_GROUP][labels == number].astype(str), return_counts=True)
        found.append(str(values[counts.argmax()]) if len(values) else name)
    return tuple(found)


@torch.no_grad()
def draw(config: Config, experiment: Experiment, dataset: Dataset, folder: Path, title: str) -> list[Path]:
    """Draw posterior means by population and by superpopulation, clouds of posterior samples, and the interactive map of a run."""
    known = people(config, dataset)
    if known is None or config.latent_dim != 2:
        return []
    x, posterior = dataset.inputs(split="test"), experiment.posterior
    samples = torch.stack([metrics.encode(posterior, x, Draws(config.seed).importance(number)) for number in range(_SAMPLES)]).cpu().numpy()
    means, spread = samples.mean(0), samples.std(0)
    own = {"name": known.table.name, "spread": [f"{first:.3f}, {second:.3f}" for first, second in spread]}
    hover = {**own, **{f"label {name}" if name in (*own, "cluster") else name: values for name, values in known.table.labels.items()}}
    if config.method.task == "clustering":
        hover["cluster"] = assign(posterior, experiment.model.prior, x, Draws(config.seed), 25).tolist()
    named = (known.labels, known.names, known.groups)
    return [
        plots.uncertainty(folder / "uncertainty.png", samples, *named, title, overwrite=True),
        *_populations(known, {"posterior means": means}, folder, title),
        plots.interactive_map(folder / "map.html", means, *named, hover, title, overwrite=True),
    ]


def compare(config: Config, dataset: Dataset, maps: Mapping[str, np.ndarray], folder: Path, title: str) -> list[Path]:
    """Draw maps [N, 2] of the same test examples, one per method, side by side, by population and by superpopulation."""
    known = people(config, dataset)
    return [] if known is None or not maps else _populations(known, maps, folder, title)


def _populations(known: People, maps: Mapping[str, np.ndarray], folder: Path, title: str) -> list[Path]:
    drawn = (list(maps.items()), known.labels, known.names, known.groups, title)
    pairs = (("populations.png", False), ("superpopulations.png", True))
    return [plots.population_maps(folder / name, *drawn, by_group=by_group, overwrite=True) for name, by_group in pairs]
