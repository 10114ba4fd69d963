"""Genotypes as a data set: packed rows on the device, unpacked as minibatches are gathered; or their principal components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.data.dataset import Dataset, from_arrays, random_split
from ddvi_fast.data.packed import PackedDataset, Scaling
from ddvi_fast.data.registry import register
from ddvi_fast.genomes.cache import cached_store
from ddvi_fast.genomes.convert import write_store
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.formats.sources import open_source
from ddvi_fast.genomes.labels import attach, read_labels
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.simulate import Simulation, simulated_genomes
from ddvi_fast.genomes.store import GenotypeStore, count_codes
from ddvi_fast.genomes.tables import SampleTable
from ddvi_fast.plots.registry import register as register_pictures

FEATURES = ("components", "counts")
_BED, _LABELS = "1kg_phase3.bed", "1kg_phase3_samples.tsv"


def genotypes_dataset(
    store: GenotypeStore, labels: str | None = None, *, test_size: int | float = 0.2, seed: int = 0, name: str = "genomes"
) -> PackedDataset:
    """A store's genotypes, split at random into training and test samples.

    Args:
        store: the genotypes; all packed rows are read into memory.
        labels: a column of labels.
        test_size: samples for the test, a count or a fraction; 0 trains on all samples and tests on the same.
        seed: of the split.
        name: of the data set.
    """
    train, test = _split(len(store), test_size, seed)
    numbers, names = (None, ()) if labels is None else store.labels(labels)
    packed = torch.from_numpy(np.array(store.packed))
    return PackedDataset(
        name, packed[train], None if numbers is None else numbers[train], packed[test], None if numbers is None else numbers[test],
        num_classes=len(names), value_range=(0.0, 2.0), class_names=names, scaling=Scaling.of(count_codes(store, train.numpy())),
    )  # fmt: skip


def components_dataset(
    store: GenotypeStore, labels: str | None = None, *, n_components: int = 20, test_size: int | float = 0.2, seed: int = 0, name: str = "genomes"
) -> tuple[Dataset, GenotypePCA]:
    """Principal components of the training samples, and the test samples projected onto them without shrinkage, each divided by one number:
    the standard deviation of the first component. Returns the data set and the fitted components."""
    train, test = (part.numpy() for part in _split(len(store), test_size, seed))
    pca = GenotypePCA(n_components, drop_constant=True, seed=seed)
    scores = pca.fit_transform(store, rows=train)
    unit = float(scores[:, 0].std())
    test_scores = scores if test_size == 0 else pca.transform(store, rows=test, unshrunk=True)
    numbers, names = (None, ()) if labels is None else store.labels(labels)
    data = from_arrays(
        name, scores / unit, None if numbers is None else numbers[train], test_inputs=test_scores / unit,
        test_labels=None if numbers is None else numbers[test], num_classes=len(names), class_names=names,
    )  # fmt: skip
    return data, pca


def _split(size: int, test_size: int | float, seed: int) -> tuple[Tensor, Tensor]:
    everybody = torch.arange(size)
    return (everybody, everybody) if test_size == 0 else random_split(size, test_size, seed)


@dataclass(frozen=True)
class Genotypes:
    """What becomes of genotypes before a model sees them.

    Args:
        path: a store, or a PLINK, VCF, BCF or EIGENSTRAT file, whose store is cached; None for the data set's own.
        labels: a table of labels (see `genomes.labels`); None for those that a store has, or the data set's own.
        features: ``components`` (Gaussian noise fits them), or ``counts`` of the variants themselves (binomial).
        num_components: of the training samples' standardised genotypes.
        min_frequency: of a variant's rarer allele, where a file is read.
        label: the column of labels; None for none.
        held_out: share of the samples for the test; 0 trains on all samples and tests on the same.
    """

    path: str | None = None
    labels: str | None = None
    features: str = "components"
    num_components: int = 20
    min_frequency: float = 0.01
    label: str | None = "population"
    held_out: float = 0.2

    def __post_init__(self) -> None:
        _checks.choice(self.features, FEATURES, "genotypes.features")
        _checks.require(0 <= self.held_out < 1, "genotypes.held_out", "a share from 0 to below 1", self.held_out)


def load_genotypes(name: str, options: Genotypes, *, data_dir: Path | None = None, seed: int = 0) -> Dataset:
    """A data set of genotypes: those of `options.path`, else simulated ones (`name` is ``genomes``) or the 1000 Genomes Project's (``1kg``).

    The latter reads ``1kg_phase3.bed`` and ``1kg_phase3_samples.tsv`` in `data_dir` or its folder ``1kg``. `seed` is of the split, and of the
    simulation.

    Raises:
        InputError: files that are missing or damaged, samples without a label, a column that does not exist.
    """
    store = _store(name, options, data_dir, seed)
    if options.features == "counts":
        return genotypes_dataset(store, options.label, test_size=options.held_out, seed=seed, name=name)
    return components_dataset(store, options.label, n_components=options.num_components, test_size=options.held_out, seed=seed, name=name)[0]


def sample_tables(name: str, options: Genotypes, *, data_dir: Path | None = None, seed: int = 0) -> tuple[SampleTable, SampleTable]:
    """Names and all labels of the training and of the test samples of `load_genotypes`, in its order."""
    store = _store(name, options, data_dir, seed)
    train, test = _split(len(store), options.held_out, seed)
    return store.samples.take(train.numpy()), store.samples.take(test.numpy())


def _store(name: str, options: Genotypes, data_dir: Path | None, seed: int) -> GenotypeStore:
    """The store that options stand for, with the labels of their table."""
    store = _bare_store(name, options, data_dir, seed)
    if options.path is None or options.labels is None:
        return store
    samples, _ = attach(store.samples, read_labels(options.labels))
    return store.with_samples(samples)


def _bare_store(name: str, options: Genotypes, data_dir: Path | None, seed: int) -> GenotypeStore:
    if options.path is None:
        _checks.require(options.labels is None, "labels", "none without data=PATH", options.labels)
        return simulated_genomes(Simulation(seed=seed)) if name == "genomes" else _store_of_1kg(data_dir, options.min_frequency)
    path = Path(options.path).expanduser()
    if path.is_dir():
        return GenotypeStore(path)
    return _imported(open_source(path).path.stem, path, None, options.min_frequency)


def _store_of_1kg(data_dir: Path | None, least: float) -> GenotypeStore:
    folders = [] if data_dir is None else [data_dir / "1kg", data_dir]
    folder = next((folder for folder in folders if (folder / _BED).is_file()), None)
    looked = ", ".join(map(str, folders)) or "no folder (data_dir and DDVI_FAST_DATA are not set)"
    _checks.require(folder is not None, "1kg", f"the file {_BED} and those beside it", f"none; looked in {looked}")
    return _imported("1kg", folder / _BED, folder / _LABELS, least)


def _imported(name: str, file: Path, labels: Path | None, least: float) -> GenotypeStore:
    """The cached store of a file's variants from frequency `least` up."""
    files = [*sorted(file.parent.glob(f"{file.name.split('.')[0]}.*")), *([] if labels is None else [labels])]
    key = {str(path.resolve()): [path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()}
    table, filters = None if labels is None else read_labels(labels), Filters(min_frequency=least)
    key = {"file": str(file.resolve()), **key, "least": least}
    return cached_store(name, key, lambda made: write_store(open_source(file), made, table, filters=filters))


def _load(name: str, *, data_dir: Path | None, seed: int, options: Mapping[str, Any], **_: Any) -> Dataset:
    return load_genotypes(name, Genotypes(**options), data_dir=data_dir, seed=seed)


def _draw(*arguments: Any) -> list[Path]:
    # Not at the top: drawing needs the whole trainer.
    from ddvi_fast.genomes.maps import draw

    return draw(*arguments)


DATASETS = ("1kg", "genomes")
for _name in DATASETS:
    register(_name, _load)
    register_pictures(_name, _draw)
