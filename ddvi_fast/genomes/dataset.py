"""Data sets of genotypes: counts, packed on the device and unpacked per batch, or principal components."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.data.dataset import Dataset, from_arrays, random_split
from ddvi_fast.data.folders import candidates, first, searched
from ddvi_fast.data.packed import PackedDataset, Scaling
from ddvi_fast.data.packing import MISSING
from ddvi_fast.data.registry import register
from ddvi_fast.data.validation import validation_split
from ddvi_fast.genomes.cache import cached_store
from ddvi_fast.genomes.convert import write_store
from ddvi_fast.genomes.filters import Filters
from ddvi_fast.genomes.formats.sources import ending_of, located, open_source
from ddvi_fast.genomes.labels import attach, read_labels
from ddvi_fast.genomes.pca import GenotypePCA
from ddvi_fast.genomes.simulate import Simulation, simulated_genomes
from ddvi_fast.genomes.store import GenotypeStore, count_codes, is_store
from ddvi_fast.genomes.tables import SampleTable, VariantTable
from ddvi_fast.plots.registry import register as register_pictures
from ddvi_fast.standardization import tell
from ddvi_fast.training.keeping import register as register_files

FEATURES = ("components", "counts")
_BED, _LABELS = "1kg_phase3.bed", "1kg_phase3_samples.tsv"


@dataclass(frozen=True, eq=False)
class ComponentsDataset(Dataset):
    """Principal components of genotypes; `pca` are the fitted ones."""

    pca: GenotypePCA | None = None


@dataclass(frozen=True, eq=False)
class CountsDataset(PackedDataset):
    """Packed genotypes; `variants` are their columns."""

    variants: VariantTable | None = None


def genotypes_dataset(
    store: GenotypeStore,
    labels: str | None = None,
    *,
    test_size: int | float = 0.2,
    seed: int = 0,
    name: str = "genomes",
    validation: float = 0.0,
    rows: np.ndarray | None = None,
) -> CountsDataset:
    """Genotypes of a store, split at random into training and test samples.

    Args:
        store: Genotypes, whose packed rows are read into memory.
        labels: Column of the labels (default none).
        test_size: Number or fraction of the samples for the test set (default 0.2); with 0 both sets have all samples.
        seed: Seed of the split (int, default 0).
        name: Name of the data set.
        validation: Fraction of the training samples that is held out and takes the place of the test samples (float, default 0).
        rows: Indices of the samples to split (default all).
    """
    train, test = _split(store, labels, test_size, seed, validation, rows)
    packed, scaling = torch.from_numpy(np.array(store.packed)), Scaling.of(count_codes(store, train.numpy()))
    train_labels, test_labels, names = _labels(store, labels, train, test)
    return CountsDataset(
        name, packed[train], train_labels, packed[test], test_labels,
        num_classes=len(names), value_range=(0.0, 2.0), class_names=names, validation=validation, scaling=scaling,
        variants=store.variants,
    )  # fmt: skip


def components_dataset(
    store: GenotypeStore,
    labels: str | None = None,
    *,
    n_components: int = 20,
    test_size: int | float = 0.2,
    seed: int = 0,
    name: str = "genomes",
    validation: float = 0.0,
    missing: str = "least_squares",
    rows: np.ndarray | None = None,
) -> tuple[ComponentsDataset, GenotypePCA]:
    """Principal components of the training samples, and projections of the test samples without shrinkage.

    All values are divided by the standard deviation of the first component. Arguments as for `genotypes_dataset`; `missing` is the
    treatment of missing calls (see `GenotypePCA.transform`).

    Returns:
        The data set and the fitted components.
    """
    train, test = _split(store, labels, test_size, seed, validation, rows)
    pca = GenotypePCA(n_components, drop_constant=True, seed=seed)
    scores = pca.fit_transform(store, rows=train.numpy())
    if missing != "mean" and store.counts[:, MISSING].any():
        scores = pca.scores_ = pca.transform(store, rows=train.numpy(), missing=missing)
    unit = unit_of(pca)
    test_scores = scores if test is train else pca.transform(store, rows=test.numpy(), missing=missing, unshrunk=True)
    train_labels, test_labels, names = _labels(store, labels, train, test)
    made = from_arrays(
        name, scores / unit, train_labels, test_inputs=test_scores / unit, test_labels=test_labels, num_classes=len(names), class_names=names
    )
    return ComponentsDataset(**{**vars(made), "validation": validation}, pca=pca), pca


def unit_of(pca: GenotypePCA) -> float:
    """Standard deviation of the first component of the fitted samples, the unit of features."""
    return float(pca.scores_[:, 0].std())


def _split(
    store: GenotypeStore, column: str | None, test_size: int | float, seed: int, validation: float, rows: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Rows of the training and of the test samples: the same tensor if both are all samples."""
    everybody = torch.arange(len(store), device="cpu") if rows is None else torch.from_numpy(np.asarray(rows, np.int64))
    if test_size == 0:
        train = test = everybody
    else:
        train, test = (everybody[part] for part in random_split(len(everybody), test_size, seed))
    if not validation:
        return train, test
    kept, held = validation_split(len(train), None if column is None else store.labels(column)[0][train], validation)
    return train[kept], train[held]


def _labels(store: GenotypeStore, column: str | None, train: Tensor, test: Tensor) -> tuple[Tensor | None, Tensor | None, tuple[str, ...]]:
    """Labels of the training and of the test samples, and the names of the classes; None and no names without a column."""
    if column is None:
        return None, None, ()
    numbers, names = store.labels(column)
    return numbers[train], numbers[test], names


@dataclass(frozen=True)
class Genotypes:
    """Options of a data set of genotypes.

    Args:
        path: Store, or PLINK, VCF, BCF or EIGENSTRAT file, whose store is cached (default: the file of the data set).
        labels: Table of labels (see `genomes.labels`; default: the labels of the store).
        features: ``components`` (default), for a Gaussian likelihood, or ``counts`` of the variants, for a binomial one.
        num_components: Number of principal components of the training samples (int, default 20).
        min_frequency: Smallest frequency of the rarer allele of a variant, where a file is imported (float, default 0.01).
        label: Column of the labels, or None for no labels (default ``population``).
        held_out: Fraction of the samples for the test set (float, default 0.2); with 0 both sets have all samples.
        validation: Fraction of the training samples that is held out and takes the place of the test samples (float, default 0).
    """

    path: str | None = None
    labels: str | None = None
    features: str = "components"
    num_components: int = 20
    min_frequency: float = 0.01
    label: str | None = "population"
    held_out: float = 0.2
    validation: float = 0.0

    def __post_init__(self) -> None:
        _checks.choice(self.features, FEATURES, "genotypes.features")
        _checks.require(0 <= self.held_out < 1, "genotypes.held_out", "a share from 0 to below 1", self.held_out)


def load_genotypes(name: str, options: Genotypes, *, data_dir: Path | None = None, seed: int = 0) -> Dataset:
    """Load a data set of genotypes.

    Args:
        name: ``genomes`` for simulated genomes, or ``1kg`` for the 1000 Genomes Project: the files ``1kg_phase3.bed`` and
            ``1kg_phase3_samples.tsv`` in `data_dir` or its folder ``1kg``. With `options.path` only the name of the data set.
        options: Options of the data set.
        data_dir: Folder of data files.
        seed: Seed of the split and of the simulation (int, default 0).

    Raises:
        InputError: A file is missing or damaged, a sample has no label, or a column does not exist.
    """
    store = store_of(name, options, data_dir=data_dir, seed=seed)
    label = _label(store, options)
    parts = {"test_size": options.held_out, "seed": seed, "name": name, "validation": options.validation}
    if options.features == "counts":
        return genotypes_dataset(store, label, **parts)
    return components_dataset(store, label, n_components=options.num_components, **parts)[0]


def sample_tables(name: str, options: Genotypes, *, data_dir: Path | None = None, seed: int = 0) -> tuple[SampleTable, SampleTable]:
    """Tables of the training and of the test samples of `load_genotypes`, in the same order."""
    store = store_of(name, options, data_dir=data_dir, seed=seed)
    train, test = _split(store, _label(store, options), options.held_out, seed, options.validation)
    return store.samples.take(train.numpy()), store.samples.take(test.numpy())


def store_of(name: str, options: Genotypes, *, data_dir: Path | None = None, seed: int = 0) -> GenotypeStore:
    """Store of `load_genotypes`, with the labels of the table of its options."""
    store = _bare_store(name, options, data_dir, seed)
    if options.path is None or options.labels is None:
        return store
    samples, _ = attach(store.samples, read_labels(options.labels))
    return store.with_samples(samples)


def _label(store: GenotypeStore, options: Genotypes) -> str | None:
    """Column of the labels; none for the default one of a store without any."""
    known = store.samples.labels
    if options.label in (None, *known):
        return options.label
    if not known and options.label == Genotypes.label:
        tell("labels: the samples have none, so that nothing is compared with populations (labels=TABLE adds them)")
        return None
    _checks.choice(options.label, known, "dataset.genotypes.label")
    return options.label


def _bare_store(name: str, options: Genotypes, data_dir: Path | None, seed: int) -> GenotypeStore:
    if options.path is None:
        _checks.require(options.labels is None, "labels", "none without data=PATH", options.labels)
        return simulated_genomes(Simulation(seed=seed)) if name == "genomes" else _store_of_1kg(data_dir, options.min_frequency)
    path = Path(options.path).expanduser()
    if path.is_dir() and (is_store(path) or ending_of(path) is None):
        return GenotypeStore(path)
    file, ending = located(path)
    return _imported(file.name[: -len(ending)], file, None, options.min_frequency)


def _store_of_1kg(data_dir: Path | None, least: float) -> GenotypeStore:
    folders = candidates(data_dir, "1kg", "")
    bed = first(folders, _BED)
    _checks.require(bed is not None, "1kg", f"the file {_BED} and those beside it", searched(folders))
    return _imported("1kg", bed, bed.with_name(_LABELS), least)


def _imported(name: str, file: Path, labels: Path | None, least: float) -> GenotypeStore:
    """Cached store of the variants of a file with a minor allele frequency of at least `least`."""
    files = [*sorted(file.parent.glob(glob.escape(file.name.split(".")[0]) + ".*")), *([] if labels is None else [labels])]
    files = [each for path in files for each in (sorted(path.rglob("*")) if path.is_dir() and path == file else [path])]
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


def _colors(*arguments: Any) -> list[str] | None:
    # Not at the top, as above.
    from ddvi_fast.genomes.maps import colors

    return colors(*arguments)


def _keep(*arguments: Any) -> None:
    # Not at the top, as above.
    from ddvi_fast.genomes.people import keep

    keep(*arguments)


DATASETS = ("1kg", "genomes")
for _name in DATASETS:
    register(_name, _load)
    register_pictures(_name, _draw, _colors)
    register_files(_name, _keep)
