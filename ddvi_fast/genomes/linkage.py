"""Pruning by linkage disequilibrium: removal of one of two highly correlated variants in windows along each chromosome."""

from __future__ import annotations

import numpy as np

from ddvi_fast.data.packing import MISSING
from ddvi_fast.genomes.staging import Staged


def prune(staged: Staged, variants: np.ndarray, samples: np.ndarray, minor: np.ndarray, most: float, window: int, step: int) -> np.ndarray:
    """Select the variants to remove.

    Windows of `window` variants of a chromosome start every `step` variants. Of a pair in a window whose squared correlation is above `most`,
    the variant with the rarer minor allele is removed, or the later one of two equally rare ones; missing calls count as the mean. Then no
    two remaining variants of a window have a squared correlation above `most`.

    Args:
        staged: Genotypes.
        variants, samples: Indices of the variants [V] and samples, in the order of the file.
        minor: Frequency of the rarer allele of each of the variants, [V].
        most: Largest squared correlation to keep.
        window, step: Length of the windows and distance between their starts, in variants.

    Returns:
        Mask of the variants to remove, bool [V].
    """
    removed = np.zeros(len(variants), bool)
    for places in _chromosomes(staged.variants.chromosome[variants]):
        for start in range(0, max(1, len(places) - window + step), step):
            here = places[start : start + window]
            here = here[~removed[here]]
            squared = _squared_correlations(staged.codes(variants[here], samples))
            removed[here[_losers(squared, minor[here], most)]] = True
    return removed


def _chromosomes(names: np.ndarray) -> list[np.ndarray]:
    """Indices of the variants of each chromosome, in the order of the file."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return [np.array(chosen) for chosen in places.values()]


def _squared_correlations(codes: np.ndarray) -> np.ndarray:
    """Squared correlations [V, V] of codes [V, N]; zero for a constant variant."""
    called = codes != MISSING
    values = np.where(called, codes, 0).astype(np.float32)
    mean = values.sum(1, keepdims=True) / np.maximum(called.sum(1, keepdims=True), 1)
    centred = np.where(called, values - mean, 0).astype(np.float32)
    length = np.sqrt((centred**2).sum(1, keepdims=True))
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    return (unit @ unit.T) ** 2


def _losers(squared: np.ndarray, minor: np.ndarray, most: float) -> np.ndarray:
    """Indices to remove: each variant, from the most common to the rarest, removes those linked to it."""
    lost = np.zeros(len(minor), bool)
    linked = squared > most
    for keeper in np.argsort(-minor, kind="stable"):
        if not lost[keeper]:
            linked[keeper, keeper] = False
            lost |= linked[keeper]
    return np.flatnonzero(lost)
