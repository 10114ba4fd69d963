"""Readers of CIFAR-10: the original binary version, or a NumPy archive without pickles.

A record of the binary version is one label byte and 3,072 pixel bytes: the red, green and blue plane, each row by row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ddvi_fast import _checks
from ddvi_fast.data.archives import read_arrays
from ddvi_fast.data.dataset import Dataset
from ddvi_fast.data.folders import candidates, first, searched

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BINARY_FOLDER, ARCHIVE, SUBSET = "cifar-10-batches-bin", "cifar10.npz", "cifar10_subset.npz"
PYTHON_FOLDER = "cifar-10-batches-py"

_FOLDERS = ("", "cifar10")
_SHAPE = (3, 32, 32)
_RECORDS = 10_000  # in each of the six files of the binary version


def load_cifar10(data_dir: Path | None) -> Dataset:
    """Read CIFAR-10: uint8 [N, 3, 32, 32], as floats in [0, 1].

    Searches `data_dir` and ``data_dir/cifar10`` for ``cifar-10-batches-bin/`` and ``cifar10.npz`` (50,000 and
    10,000 images), then ``cifar10_subset.npz`` (the data set's name is then ``cifar10_subset``). An archive holds
    ``train_images`` and ``test_images``, uint8 [N, 32, 32, 3], and ``train_labels`` and ``test_labels``.

    Raises:
        InputError: There is no file, or only the pickled Python version; a file is truncated or corrupt, or has arrays of another shape.
    """
    path = find(data_dir)
    if path is None:
        _refuse(data_dir)
    name = "cifar10_subset" if path.name == SUBSET else "cifar10"
    train, train_labels, test, test_labels = _read_binary(path) if path.name == BINARY_FOLDER else _read_archive(path)
    return Dataset(
        name, train, train_labels, test, test_labels, num_classes=10,
        scale=1 / 255, value_range=(0.0, 1.0), class_names=CLASS_NAMES,
    )  # fmt: skip


def find_full(data_dir: Path | None) -> Path | None:
    """Folder or archive of the complete data set, or None."""
    folders = candidates(data_dir, *_FOLDERS)
    return first(folders, BINARY_FOLDER) or first(folders, ARCHIVE)


def find(data_dir: Path | None) -> Path | None:
    """Folder or archive of the complete data set, else of the subset, or None."""
    return find_full(data_dir) or first(candidates(data_dir, *_FOLDERS), SUBSET)


def _refuse(data_dir: Path | None) -> None:
    advice = f"download=true, or put the binary version there as {BINARY_FOLDER}/"
    folders = candidates(data_dir, *_FOLDERS)
    pickled = first(folders, PYTHON_FOLDER)
    if pickled is not None:
        _checks.fail("cifar10", "the binary version", f"the Python version, {pickled}", f"reading it would run its pickles; {advice}")
    _checks.fail("cifar10", f"{BINARY_FOLDER}/, {ARCHIVE} or {SUBSET}", searched(folders), advice)


def _read_binary(folder: Path) -> tuple[torch.Tensor, ...]:
    parts = [_read_records(folder / f"data_batch_{number}.bin") for number in range(1, 6)]
    train, train_labels = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return (train, train_labels, *_read_records(folder / "test_batch.bin"))


def _read_records(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    _checks.require(path.is_file(), "cifar10", f"the file {path.name} in {path.parent}", None)
    width = 1 + int(np.prod(_SHAPE))
    data = np.fromfile(path, np.uint8)
    _checks.require(len(data) == _RECORDS * width, str(path), f"{_RECORDS * width} bytes, {_RECORDS} records of {width}", len(data))
    records = torch.from_numpy(data).reshape(_RECORDS, width)
    return records[:, 1:].reshape(-1, *_SHAPE), records[:, 0].long()


def _read_archive(path: Path) -> tuple[torch.Tensor, ...]:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = read_arrays(path, names)
    return (*_split_of(path, "train", *arrays[:2]), *_split_of(path, "test", *arrays[2:]))


def _split_of(path: Path, split: str, images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    right = images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3)
    _checks.require(right, f"{path}: {split}_images", "uint8 of shape [N, 32, 32, 3]", f"{images.dtype} of shape {list(images.shape)}")
    one_each = labels.dtype.kind in "ui" and labels.shape == images.shape[:1]
    _checks.require(one_each, f"{path}: {split}_labels", f"{len(images)} integer labels", f"{labels.dtype} of shape {list(labels.shape)}")
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))
