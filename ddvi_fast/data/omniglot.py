"""Reader of Omniglot from two NumPy archives, rescaled to 28 x 28 pixels.

An archive holds ``images``, boolean [characters, drawings, 105, 105], true on the paper and false on the strokes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, rng
from ddvi_fast.data.archives import read_arrays
from ddvi_fast.data.dataset import Dataset
from ddvi_fast.data.folders import candidates, first, searched

TRAIN, TEST = "images_background.npz", "images_evaluation.npz"

_FOLDERS = ("omniglot", "")
_MEASURED, _SIZE = 105, 28  # pixels of a side
_SEED = 0  # the same order in every run
_ROWS = 1024  # images rescaled at a time


def load_omniglot(data_dir: Path | None) -> Dataset:
    """Read Omniglot (Lake et al. 2015): uint8 [N, 28, 28] without labels, as floats in [0, 1], 1 on the strokes.

    The 19,280 drawings of the 964 background characters are the training set, and the 13,180 of the 659 evaluation characters, all of them
    other characters, the test set, as Lake et al. divide them. It is not the division of Burda et al. (2016), 24,345 and 8,070 drawings, whose
    indices these files do not have: bounds are not comparable with those published on it. Images are averaged down by PyTorch's bilinear
    interpolation with antialiasing, and stand in a fixed random order, so that the first ones are of all characters.

    Searches ``data_dir/omniglot`` and `data_dir` for ``images_background.npz`` and ``images_evaluation.npz``.

    Raises:
        InputError: A file is missing or corrupt, or has an array of another shape.
    """
    folder = find(data_dir)
    if folder is None:
        _checks.fail("omniglot", f"the files {TRAIN} and {TEST}", searched(candidates(data_dir, *_FOLDERS)), "put them there")
    train, test = (_read(folder / name) for name in (TRAIN, TEST))
    return Dataset("omniglot", train, None, test, None, scale=1 / 255, value_range=(0.0, 1.0))


def find(data_dir: Path | None) -> Path | None:
    """First folder with the training images, or None."""
    path = first(candidates(data_dir, *_FOLDERS), TRAIN)
    return None if path is None else path.parent


def _read(path: Path) -> Tensor:
    _checks.require(path.is_file(), "omniglot", f"the file {path.name} in {path.parent}", None)
    (images,) = read_arrays(path, ["images"])
    right = images.dtype == bool and images.ndim == 4 and images.shape[2:] == (_MEASURED, _MEASURED)
    expected = f"boolean of shape [characters, drawings, {_MEASURED}, {_MEASURED}]"
    _checks.require(right, f"{path}: images", expected, f"{images.dtype} of shape {list(images.shape)}")
    strokes = ~torch.from_numpy(images).flatten(0, 1)
    order = rng.permutation(rng.Draws(_SEED).lane("split"), len(strokes))
    return torch.cat([_rescaled(strokes[part]) for part in order.split(_ROWS)])


def _rescaled(strokes: Tensor) -> Tensor:
    """Images bool [N, 105, 105] as shades from 0 to 255, uint8 [N, 28, 28]."""
    images = strokes.unsqueeze(1).float()
    smaller = nn.functional.interpolate(images, size=(_SIZE, _SIZE), mode="bilinear", antialias=True, align_corners=False)
    return (255 * smaller.squeeze(1)).round().to(torch.uint8)
