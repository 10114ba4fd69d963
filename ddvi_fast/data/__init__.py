"""Data sets that live on the device as one tensor, and the order in which training walks through them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddvi_fast import _checks
from ddvi_fast.data.augment import flip
from ddvi_fast.data.batches import epoch_batches, epoch_order, num_batches
from ddvi_fast.data.cifar import find_full, load_cifar10
from ddvi_fast.data.dataset import Dataset, from_arrays
from ddvi_fast.data.digits import load_digits
from ddvi_fast.data.download import download_cifar10, download_idx
from ddvi_fast.data.idx import find_folder, load_idx

__all__ = ["DATASETS", "Dataset", "epoch_batches", "epoch_order", "flip", "folder_of", "from_arrays", "load", "num_batches"]


def load(
    name: str,
    data_dir: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
    limit: int | None = None,
    genotypes: Mapping[str, Any] | None = None,
) -> Dataset:
    """Load a data set by name.

    Args:
        name: ``"digits"`` (needs no files), ``"mnist"``, ``"fashion_mnist"``, ``"cifar10"``, or genotypes as principal components: ``"1kg"``
            and ``"genomes"`` (simulated, needs no files).
        data_dir: folder of the files; the environment variable ``DDVI_FAST_DATA`` sets the default.
        download: fetch what is missing into `data_dir` (a subset of CIFAR-10 counts as missing).
        seed: of the split, where the set has none of its own (digits, genomes), and of the simulation.
        limit: keep the first `limit` training and the first `limit` test examples.
        genotypes: of ``"1kg"`` and ``"genomes"``: fields of `data.genotypes.Genotypes`, for files of one's own and other features.

    Raises:
        InputError: unknown name (the nearest valid ones are named), files that are missing or broken.

    Example:
        >>> data = load("digits", limit=100)
        >>> data.size("train"), data.size("test"), data.num_classes
        (100, 100, 10)
    """
    reader = DATASETS[_checks.choice(name, DATASETS, "dataset")]
    own = [field for field in ("path", "labels") if (genotypes or {}).get(field) is not None]
    _checks.require(reader is None or not own, "data, labels", "none but for dataset=genomes and dataset=1kg", name)
    dataset = _genomes(name, folder_of(data_dir), seed, genotypes or {}) if reader is None else reader(name, folder_of(data_dir), download, seed)
    return dataset if limit is None else dataset.take(limit)


def _digits(name: str, data_dir: Path | None, download: bool, seed: int) -> Dataset:
    return load_digits(seed)


def _idx(name: str, data_dir: Path | None, download: bool, seed: int) -> Dataset:
    if download and find_folder(name, data_dir) is None:
        download_idx(name, data_dir)
    return load_idx(name, data_dir)


def _cifar10(name: str, data_dir: Path | None, download: bool, seed: int) -> Dataset:
    if download and find_full(data_dir) is None:
        download_cifar10(data_dir)
    return load_cifar10(data_dir)


def _genomes(name: str, data_dir: Path | None, seed: int, options: Mapping[str, Any]) -> Dataset:
    # Not at the top: reading images should not wait for what genotypes need.
    from ddvi_fast.genomes.dataset import Genotypes, load_genotypes

    return load_genotypes(name, Genotypes(**options), data_dir=data_dir, seed=seed)


def folder_of(data_dir: str | Path | None) -> Path | None:
    """The folder of files: `data_dir`, else what ``DDVI_FAST_DATA`` names, else None."""
    chosen = data_dir or os.environ.get("DDVI_FAST_DATA")
    return Path(chosen).expanduser() if chosen else None


# Genotypes have options that images have not.
DATASETS = {"digits": _digits, "mnist": _idx, "fashion_mnist": _idx, "cifar10": _cifar10, "1kg": None, "genomes": None}
