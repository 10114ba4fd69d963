"""Dynamic binarization: black and white pixels drawn from the shades of an image (Salakhutdinov and Murray 2008)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.data.dataset import Dataset

_SEED = 0  # the same test pixels in every run, whatever its seed
_ROWS = 1 << 13  # test examples drawn at a time


def binarize(images: Tensor, draws: rng.Draws) -> Tensor:
    """Draw each pixel, 1 with the probability that is its shade, else 0.

    Args:
        images: Shades in [0, 1], [B, ...].
        draws: Draws of which image `i` uses number ``draws.first_index + i``, so that the result does not depend on the batch.

    Returns:
        Pixels of the shape and dtype of `images`.

    Example:
        >>> binarize(torch.tensor([[0.0, 1.0, 0.5]]), rng.Draws(seed=0)).tolist()[0][:2]
        [0.0, 1.0]
    """
    _checks.require(images.dim() >= 2, "images", "shape [B, ...]", images)
    flat = images.flatten(1)
    return (rng.uniform(draws, tuple(flat.shape), rng.PIXELS, device=images.device) < flat).to(images.dtype).view_as(images)


def with_drawn_test(dataset: Dataset) -> Dataset:
    """Return the data with test (or validation) pixels drawn once, the same in every run; training examples keep their shades.

    Raises:
        InputError: The examples are no shades from 0 to 1.
    """
    low, high = dataset.value_range or (0.0, 0.0)
    shades = low == 0 and high == 1 and dataset.shift == 0 and not dataset.train_inputs.is_floating_point()
    _checks.require(shades, "dataset.binarize", "false, but for images with shades from 0 to 1", f"true for {dataset.name}")
    draws, black = rng.Draws(_SEED).lane("test_pixels"), round(1 / dataset.scale)
    parts = [
        (black * binarize(dataset.inputs(slice(first, first + _ROWS), "test"), draws.advance(first))).to(dataset.test_inputs.dtype)
        for first in range(0, dataset.size("test"), _ROWS)
    ]
    return replace(dataset, test_inputs=torch.cat(parts))
