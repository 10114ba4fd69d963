"""Augmentation of training images on the device, from the counter-based generator."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast import _checks, rng


def flip(images: Tensor, draws: rng.Draws) -> Tensor:
    """Mirror each image left to right with probability one half.

    Args:
        images: Images [B, ..., W] whose last axis runs from left to right.
        draws: Draws of which image `i` uses number ``draws.first_index + i``, so that the result does not depend on the batch.

    Example:
        >>> images = torch.arange(4.0).repeat(6, 1)
        >>> mirrored = flip(images, rng.Draws(seed=0))
        >>> bool((mirrored[2:] == flip(images[2:], rng.Draws(seed=0, first_index=2))).all())
        True
    """
    _checks.require(images.dim() >= 2, "images", "shape [B, ..., W]", images)
    bit = rng.words(draws, (len(images), 1), rng.AUGMENT, images.device) >> 31
    chosen = bit.bool().reshape(-1, *(1,) * (images.dim() - 1))
    return torch.where(chosen, images.flip(-1), images)
