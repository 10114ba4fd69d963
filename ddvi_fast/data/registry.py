"""Registry of data sets by name; packages with other kinds of data add theirs with `register`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddvi_fast import _checks
from ddvi_fast.data.binarization import with_drawn_test
from ddvi_fast.data.cifar import find_full, load_cifar10
from ddvi_fast.data.dataset import Dataset
from ddvi_fast.data.digits import load_digits
from ddvi_fast.data.download import download_cifar10, download_idx
from ddvi_fast.data.folders import folder_of
from ddvi_fast.data.idx import find_folder, load_idx
from ddvi_fast.data.omniglot import load_omniglot
from ddvi_fast.data.validation import hold_out

Loader = Callable[..., Dataset]  # called as `loader(name, data_dir=..., download=..., seed=..., options=...)`


def load(
    name: str,
    data_dir: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
    limit: int | None = None,
    genotypes: Mapping[str, Any] | None = None,
    validation: float = 0.0,
    binarize: bool = False,
) -> Dataset:
    """Load a data set by name.

    Args:
        name: ``"digits"`` (needs no files), ``"mnist"``, ``"fashion_mnist"``, ``"omniglot"``, ``"cifar10"``, or after ``import ddvi_fast.genomes``
            genotypes, as principal components or counts: ``"1kg"`` and ``"genomes"`` (simulated, needs no files).
        data_dir: Folder of the files (default: the environment variable ``DDVI_FAST_DATA``).
        download: Whether to download missing files into `data_dir` (bool, default False). A subset of CIFAR-10 counts as missing.
        seed: Seed of the split, where the data set has none of its own (digits, genomes), and of the simulation (int, default 0).
        limit: Number of training and of test examples to keep, the first ones (int, default all).
        genotypes: Options of ``"1kg"`` and ``"genomes"``: the fields of `genomes.dataset.Genotypes`.
        validation: Fraction of the training examples that is held out and takes the place of the test set, in [0, 1) (float, default 0);
            always the same examples, with the classes in proportion.
        binarize: Whether the test pixels are black and white, drawn once from their shades (bool, default False). Training examples keep
            their shades; `binarize` draws the pixels of a batch.

    Raises:
        InputError: The name is unknown (the message names the nearest valid one) or not registered yet; files are missing or broken;
            `validation` leaves no training examples or holds out none; `binarize` with other data than images.

    Example:
        >>> data = load("digits", limit=100)
        >>> data.size("train"), data.size("test"), data.num_classes
        (100, 100, 10)
    """
    loader, options = DATASETS[_checks.choice(name, DATASETS, "dataset")], genotypes or {}
    if loader is None:
        _checks.fail("dataset", "a registered data set", name, f"`import {_PROVIDERS[name]}` registers it")
    own = [field for field in ("path", "labels") if options.get(field) is not None]
    _checks.require(not own or loader.__module__ != __name__, "data, labels", "none but for dataset=genomes and dataset=1kg", name)
    _checks.require(0 <= validation < 1, "dataset.validation", "a fraction of at least 0 and below 1", validation)
    dataset = loader(name, data_dir=folder_of(data_dir), download=download, seed=seed, options={**options, "validation": validation})
    # Features that are fitted to the training examples are fitted after the split, by the loader.
    dataset = dataset if dataset.validation else hold_out(dataset, validation)
    dataset = with_drawn_test(dataset) if binarize else dataset
    return dataset if limit is None else dataset.take(limit)


def register(name: str, loader: Loader) -> None:
    """Make a data set available to `load` under `name`; an earlier data set of that name is replaced.

    Args:
        name: Name of the data set.
        loader: Function called as ``loader(name, data_dir=..., download=..., seed=..., options=...)`` that returns a `Dataset`.
            One that holds out the fraction ``options["validation"]`` itself says so in `Dataset.validation`.
            It must be defined at the top of an importable module: worker processes import that module.

    Example:
        >>> from ddvi_fast.data import from_arrays
        >>> register("line", lambda name, seed, **_: from_arrays(name, [[0.0], [1.0], [2.0]], test_size=1, seed=seed))
        >>> load("line").size()
        2
        >>> del DATASETS["line"]
    """
    DATASETS[name] = loader


def registered_modules() -> tuple[str, ...]:
    """Names of the modules that have registered data sets; a new process imports them to know the same data sets."""
    return tuple({loader.__module__: None for loader in DATASETS.values() if loader is not None and loader.__module__ != __name__})


def _digits(name: str, *, seed: int, **_: Any) -> Dataset:
    return load_digits(seed)


def _idx(name: str, *, data_dir: Path | None, download: bool, **_: Any) -> Dataset:
    if download and find_folder(name, data_dir) is None:
        download_idx(name, data_dir)
    return load_idx(name, data_dir)


def _cifar10(name: str, *, data_dir: Path | None, download: bool, **_: Any) -> Dataset:
    if download and find_full(data_dir) is None:
        download_cifar10(data_dir)
    return load_cifar10(data_dir)


def _omniglot(name: str, *, data_dir: Path | None, download: bool, **_: Any) -> Dataset:
    return load_omniglot(data_dir)


# Data sets of other packages are named here, so that the message for one that is not registered can say what to import.
_PROVIDERS = {"1kg": "ddvi_fast.genomes", "genomes": "ddvi_fast.genomes"}
DATASETS: dict[str, Loader | None] = {
    "digits": _digits, "mnist": _idx, "fashion_mnist": _idx, "omniglot": _omniglot, "cifar10": _cifar10, **dict.fromkeys(_PROVIDERS),
}  # fmt: skip
