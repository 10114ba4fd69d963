"""Data sets held on the device as one tensor a split, and the order in which training visits their examples."""

from __future__ import annotations

from ddvi_fast.data.augment import flip
from ddvi_fast.data.batches import epoch_batches, epoch_order, num_batches
from ddvi_fast.data.binarization import binarize
from ddvi_fast.data.dataset import Dataset, from_arrays
from ddvi_fast.data.folders import folder_of
from ddvi_fast.data.registry import DATASETS, load, register, registered_modules

__all__ = [
    "DATASETS", "Dataset", "binarize", "epoch_batches", "epoch_order", "flip", "folder_of", "from_arrays", "load", "num_batches", "register",
    "registered_modules",
]  # fmt: skip
