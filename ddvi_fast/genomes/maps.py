"""Maps of the people of a genotype data set: by population, with posterior uncertainty, of the components, and interactive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ddvi_fast import plots
from ddvi_fast.config.schema import Config
from ddvi_fast.data import Dataset, folder_of
from ddvi_fast.genomes.dataset import DATASETS, ComponentsDataset, Genotypes, sample_tables
from ddvi_fast.genomes.people import Placed, place, sets_of
from ddvi_fast.genomes.tables import SampleTable
from ddvi_fast.recipes.phases import Experiment

_GROUP = "superpopulation"  # the column of labels that groups populations
_COMPONENTS = 4  # that are drawn


class People(NamedTuple):
    """Training people, and test people where there are any.

    Attributes:
        sets: Name of each set, as ``training`` and ``test``.
        tables: Tables of the people.
        labels: Population of each person, integers [N]; None where nobody has one.
        names, groups: Name of each population, and of its group.
    """

    sets: tuple[str, ...]
    tables: tuple[SampleTable, ...]
    labels: list[np.ndarray] | None
    names: tuple[str, ...]
    groups: tuple[str, ...]


def people(config: Config, dataset: Dataset) -> People | None:
    """The people of a data set; None for other data sets, or where only a part of it was loaded."""
    if config.dataset.name not in DATASETS or config.limit is not None:
        return None
    options = Genotypes(config.data, config.labels, **vars(config.dataset.genotypes), validation=config.dataset.validation)
    sets = sets_of(options)
    tables = sample_tables(config.dataset.name, options, data_dir=folder_of(config.data_dir), seed=config.split_seed)[: len(sets)]
    if dataset.train_labels is None or dataset.test_labels is None:
        return People(sets, tables, None, (), ())
    labels = [each.cpu().numpy() for each in (dataset.train_labels, dataset.test_labels)][: len(sets)]
    return People(sets, tables, labels, dataset.class_names, groups_of(tables, labels, dataset.class_names))


def groups_of(tables: Sequence[SampleTable], labels: Sequence[np.ndarray], names: Sequence[str]) -> tuple[str, ...]:
    """The most frequent superpopulation of each population; without such a column every population is a group of its own."""
    if any(_GROUP not in table.labels for table in tables):
        return tuple(names)
    column, numbers = np.concatenate([table.labels[_GROUP] for table in tables]).astype(str), np.concatenate(labels)
    found = []
    for number, name in enumerate(names):
        values, counts = np.unique(column[numbers == number], return_counts=True)
        found.append(str(values[counts.argmax()]) if len(values) else name)
    return tuple(found)


def colors(config: Config, dataset: Dataset) -> list[str] | None:
    """Color of each population, the same in every picture; None without populations."""
    known = people(config, dataset)
    return None if known is None or known.labels is None else plots.population_colours(known.names, known.groups)


@torch.no_grad()
def draw(config: Config, experiment: Experiment, dataset: Dataset, folder: Path, title: str) -> list[Path]:
    """Draw a run's maps: posterior means and components by population and by superpopulation, clouds of samples, and an interactive one.

    People without populations have the colors of their clusters.
    """
    known = people(config, dataset)
    if known is None or config.latent_dim != 2:
        return []
    placed = [place(experiment, dataset.inputs(split=split), config.seed) for split in ("train", "test")[: len(known.sets)]]
    if known.labels is None:
        known = _by_cluster(known, placed)
    named = (known.names, known.groups)
    panels = [(name, each.mean) for name, each in zip(known.sets, placed, strict=True)]
    drawn = [
        plots.uncertainty(folder / "uncertainty.png", placed[-1].samples, _labels(known)[-1], *named, f"{title}: {known.sets[-1]}", overwrite=True),
        *_populations(known, panels, _labels(known), folder, title),
        plots.interactive_map(
            folder / "map.html", np.concatenate([each.mean for each in placed]), np.concatenate(_labels(known)), *named, _hover(known, placed), title,
            sets=np.repeat(known.sets, [len(each.mean) for each in placed]), cluster=_joined(placed, "cluster"),
            probability=_joined(placed, "probability"), overwrite=True,
        ),
    ]  # fmt: skip
    return drawn + _components(known, dataset, folder, title)


def compare(config: Config, dataset: Dataset, maps: Mapping[str, np.ndarray], folder: Path, title: str) -> list[Path]:
    """Draw maps [N, 2] of the same test people, one per method, side by side, by population and by superpopulation."""
    known = people(config, dataset)
    if known is None or known.labels is None or not maps:
        return []
    return _populations(known, list(maps.items()), known.labels[-1], folder, title)


def _labels(known: People) -> list[np.ndarray]:
    return [] if known.labels is None else known.labels


def _by_cluster(known: People, placed: Sequence[Placed]) -> People:
    """People with their most probable clusters for populations, or all in one without clusters."""
    found = [np.zeros(len(each.mean), np.int64) if each.cluster is None else each.cluster for each in placed]
    used, numbers = np.unique(np.concatenate(found), return_inverse=True)
    names = tuple("people" if placed[0].cluster is None else f"cluster {number}" for number in used)
    return known._replace(labels=np.split(numbers, np.cumsum([len(each) for each in found])[:-1]), names=names, groups=names)


def _hover(known: People, placed: Sequence[Placed]) -> dict[str, list[str]]:
    own = {
        "name": [str(name) for table in known.tables for name in table.name],
        "spread": [f"{first:.3f}, {second:.3f}" for each in placed for first, second in each.spread],
    }
    taken = (*own, "set", "cluster", "probability", "x", "y")
    headings = dict.fromkeys(heading for table in known.tables for heading in table.labels)
    labels = {heading: [str(value) for table in known.tables for value in table.labels[heading]] for heading in headings}
    return {**own, **{f"label {heading}" if heading in taken else heading: values for heading, values in labels.items()}}


def _joined(placed: Sequence[Placed], name: str) -> np.ndarray | None:
    parts = [getattr(each, name) for each in placed]
    return None if parts[0] is None else np.concatenate(parts)


def _components(known: People, dataset: Dataset, folder: Path, title: str) -> list[Path]:
    """Draw the first components of all people, whose axes say how much of the variance each explains."""
    if not isinstance(dataset, ComponentsDataset) or dataset.pca is None:
        return []
    share = dataset.pca.explained_variance_ratio_
    names = [f"component {k + 1} ({value:.2%} of the variance)" for k, value in enumerate(share)]
    panels, labels, axes = [], [], []
    for first in range(0, min(_COMPONENTS, len(share)) - 1, 2):
        for name, split, of in zip(known.sets, ("train", "test"), _labels(known), strict=False):
            panels.append((name, dataset.inputs(split=split)[:, first : first + 2].cpu().numpy()))
            labels.append(of)
            axes.append((names[first], names[first + 1]))
    if not panels:
        return []
    path = folder / "components.png"
    return [plots.population_maps(path, panels, labels, known.names, known.groups, title, axes=axes, overwrite=True)]


def _populations(
    known: People, panels: Sequence[tuple[str, np.ndarray]], labels: np.ndarray | Sequence[np.ndarray], folder: Path, title: str
) -> list[Path]:  # fmt: skip
    pairs = (("populations.png", False), ("superpopulations.png", True))[: 1 + (known.groups != known.names)]
    options = {"names": known.names, "groups": known.groups, "title": title, "overwrite": True}
    return [plots.population_maps(folder / name, panels, labels, **options, by_group=by_group) for name, by_group in pairs]
