"""Pruning by linkage disequilibrium: in windows along each chromosome, of two variants that say nearly the same one goes."""

from __future__ import annotations

import numpy as np

from ddvi_fast.data.packing import MISSING
from ddvi_fast.genomes.staging import Staged


def prune(staged: Staged, variants: np.ndarray, samples: np.ndarray, minor: np.ndarray, most: float, window: int, step: int) -> np.ndarray:
    """Which variants to remove.

    Each window takes the next `window` variants of a chromosome that are still there; the next one starts `step` further on. Of a pair
    whose squared correlation is above `most` the one with the rarer minor allele goes, the later one of two equally rare; missing calls
    count as the mean. Two variants that stay and shared a window are correlated by no more than `most`.

    Args:
        staged: the genotypes.
        variants, samples: indices, in the order of the file.
        minor: frequency of the rarer allele of each of `variants`.
        most: largest squared correlation that may stay.
        window, step: in variants.

    Returns:
        Mask over `variants`, True where one is removed.
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
    """Indices of each chromosome's variants, in the order in which they stand."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return [np.array(chosen) for chosen in places.values()]


def _squared_correlations(codes: np.ndarray) -> np.ndarray:
    """[V, V] of codes [V, N]; zero for a variant that does not vary."""
    called = codes != MISSING
    values = np.where(called, codes, 0).astype(np.float32)
    mean = values.sum(1, keepdims=True) / np.maximum(called.sum(1, keepdims=True), 1)
    centred = np.where(called, values - mean, 0).astype(np.float32)
    length = np.sqrt((centred**2).sum(1, keepdims=True))
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    return (unit @ unit.T) ** 2


def _losers(squared: np.ndarray, minor: np.ndarray, most: float) -> np.ndarray:
    """Indices to remove: the more common variants stay and remove what is linked to them."""
    lost = np.zeros(len(minor), bool)
    linked = squared > most
    for keeper in np.argsort(-minor, kind="stable"):
        if not lost[keeper]:
            linked[keeper, keeper] = False
            lost |= linked[keeper]
    return np.flatnonzero(lost)
