"""Reader of MNIST and Fashion-MNIST in IDX files, plain or compressed by gzip.

An IDX file is a big-endian header (two zero bytes, a type code, the number of axes, the size of each axis) and then the
values. These sets consist of unsigned bytes: 3 axes for images, 1 for labels.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ddvi_fast import _checks
from ddvi_fast.data.dataset import Dataset
from ddvi_fast.data.folders import first, searched

_UNSIGNED_BYTE = 0x08
_GZIP = 16 + zlib.MAX_WBITS  # zlib's flag for a gzip header and trailer

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist


@dataclass(frozen=True)
class IdxSource:
    """Places of a data set (sub-folders of the data folder, system folders), its classes, and advice where it is missing."""

    folders: tuple[str, ...]
    class_names: tuple[str, ...]
    system_folders: tuple[Path, ...] = ()
    advice: str = "download=true, or put the four IDX files there"


SOURCES = {
    "mnist": IdxSource(("mnist", "MNIST"), tuple(str(digit) for digit in range(10))),
    "fashion_mnist": IdxSource(
        ("fashion_mnist", "fashion-mnist", "FashionMNIST"),
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        (DEBIAN_FASHION_MNIST,),
        "download=true, or on Debian: apt install dataset-fashion-mnist",
    ),
}


def load_idx(name: str, data_dir: Path | None) -> Dataset:
    """Read ``"mnist"`` or ``"fashion_mnist"``: uint8 [N, 28, 28], as floats in [0, 1], the original training and test sets.

    Searches ``data_dir/NAME``, ``data_dir/NAME/raw`` and `data_dir`; for Fashion-MNIST also the folder of Debian's package.

    Raises:
        InputError: A file is missing, truncated or corrupt, has another magic number, or labels and images differ in length.
    """
    folder = find_folder(name, data_dir)
    if folder is None:
        _checks.fail(name, "the file train-images-idx3-ubyte(.gz)", searched(_candidates(name, data_dir)), SOURCES[name].advice)
    train, train_labels = _read_split(folder, "train", name)
    test, test_labels = _read_split(folder, "t10k", name)
    return Dataset(
        name, train, train_labels, test, test_labels, num_classes=10,
        scale=1 / 255, value_range=(0.0, 1.0), class_names=SOURCES[name].class_names,
    )  # fmt: skip


def find_folder(name: str, data_dir: Path | None) -> Path | None:
    """First folder with the training images of `name`, or None."""
    return next((folder for folder in _candidates(name, data_dir) if first([folder], *_file_names("train", "images"))), None)


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """Read one IDX file of unsigned bytes with `num_axes` axes, compressed if its name ends in ``.gz``: uint8 [sizes].

    Raises:
        InputError: The file is truncated or corrupt, has another magic number, or bytes after the end.
    """
    data, complete = _read_bytes(path)
    header = 4 + 4 * num_axes
    _checks.require(len(data) >= header, str(path), f"at least {header} bytes of IDX data", len(data), "the file is cut short")
    magic, wanted = int.from_bytes(data[:4], "big"), (_UNSIGNED_BYTE << 8) + num_axes
    _checks.require(magic == wanted, str(path), f"magic number {wanted} (unsigned bytes, axes: {num_axes})", magic)
    shape = [int(size) for size in np.frombuffer(data, ">u4", num_axes, offset=4)]
    expected = header + int(np.prod(shape, dtype=object))
    what = "the file is cut short" if len(data) < expected else "bytes after the end"
    _checks.require(len(data) == expected, str(path), f"{expected} bytes of IDX data for sizes {shape}", len(data), what)
    _checks.require(complete, str(path), "a complete gzip file", "one without its end", "the file is cut short")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _candidates(name: str, data_dir: Path | None) -> list[Path]:
    source, folders = SOURCES[name], []
    if data_dir is not None:
        folders = [data_dir / sub / inner for sub in source.folders for inner in ("", "raw")]
        # Both sets use the same file names: a folder named after the other set is not ours.
        others = {sub for other, rest in SOURCES.items() if other != name for sub in rest.folders}
        if others.isdisjoint({data_dir.name, data_dir.parent.name if data_dir.name == "raw" else ""}):
            folders.append(data_dir)
    return [*folders, *source.system_folders]


def _file_names(part: str, kind: str) -> list[str]:
    axes = "idx3" if kind == "images" else "idx1"
    return [f"{part}-{kind}{dot}{axes}-ubyte{suffix}" for suffix in ("", ".gz") for dot in ("-", ".")]


def _read_split(folder: Path, part: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    paths = []
    for kind in ("images", "labels"):
        path = first([folder], *_file_names(part, kind))
        _checks.require(path is not None, name, f"the file {_file_names(part, kind)[0]}(.gz) in {folder}", None, SOURCES[name].advice)
        paths.append(path)
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    _checks.require(len(labels) == len(images), str(paths[1]), f"{len(images)} labels, one for each image of {paths[0].name}", len(labels))
    # Copied because a bytes object's memory is read-only, which torch tensors cannot be.
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def _read_bytes(path: Path) -> tuple[bytes, bool]:
    """Content of a file, and whether a compressed one is complete (so that the message for a truncated file can tell its length)."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        _checks.fail(str(path), "a readable file", error.strerror)
    if path.suffix != ".gz":
        return raw, True
    stream = zlib.decompressobj(_GZIP)
    try:
        return stream.decompress(raw), stream.eof
    except zlib.error as error:
        _checks.fail(str(path), "a gzip file", f"corrupt data: {error}")
