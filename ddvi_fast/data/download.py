"""Downloads of image data sets by torchvision, for the readers of this package.

torchvision checks the md5 sum of each file. CIFAR-10 is a pickled archive there: torchvision alone unpickles it, after that check, and
this package writes and reads a NumPy archive without pickles.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ddvi_fast import _checks, _files
from ddvi_fast.data import cifar


def download_idx(name: str, data_dir: Path | None) -> None:
    """Download ``"mnist"`` or ``"fashion_mnist"`` into ``data_dir/MNIST/raw`` or ``data_dir/FashionMNIST/raw``."""
    root = _root(name, data_dir)
    _fetch(name, {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}[name], root, train=True)


def download_cifar10(data_dir: Path | None) -> None:
    """Download CIFAR-10 and write ``data_dir/cifar10/cifar10.npz``."""
    root = _root("cifar10", data_dir)
    train, test = (_fetch("cifar10", "CIFAR10", root, train=train) for train in (True, False))
    with _files.replacing(root / "cifar10" / cifar.ARCHIVE) as fresh, fresh.open("wb") as file:
        np.savez(
            file, train_images=train.data, train_labels=np.asarray(train.targets, np.uint8),
            test_images=test.data, test_labels=np.asarray(test.targets, np.uint8),
        )  # fmt: skip


def _root(name: str, data_dir: Path | None) -> Path:
    _checks.require(data_dir is not None, "data_dir", f"a folder to download {name} into", None, "or set DDVI_FAST_DATA")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _checks.fail("data_dir", "a folder that can be written to", f"{data_dir}: {error.strerror}")
    return data_dir


def _fetch(name: str, class_name: str, root: Path, train: bool) -> Any:
    torchvision_datasets = _torchvision_datasets(name, root)
    try:
        return getattr(torchvision_datasets, class_name)(root=str(root), train=train, download=True)
    except Exception as error:  # no network, no space, a changed file: torchvision raises many kinds
        _checks.fail("download", f"{name} in {root}", _checks.one_line(error), "put the files there by hand")


def _torchvision_datasets(name: str, root: Path) -> ModuleType:
    try:
        import torchvision.datasets
    except Exception as error:  # beside some builds of torch its import fails with a RuntimeError about an operator
        hint = f"put the files of {name} into {root} by hand"
        _checks.fail("download", "a torchvision that can be imported here", _checks.one_line(error), hint)
    return torchvision.datasets
