"""Distances between samples of a posterior and reference samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast import _checks, ops
from ddvi_fast.standardization import Columns

MMD_SIGMAS = (0.01, 0.1, 1.0, 10.0)  # squared kernel widths for a reference with variance 1


def c2st(samples: Tensor, reference: Tensor, seed: int = 0, folds: int = 5) -> float:
    """Compute the classifier two-sample test (Lopez-Paz and Oquab 2017): the accuracy of a classifier between samples and reference.

    The classifier is that of Lueckmann et al. (2021): a network with two hidden layers of 10 D units on standardized samples,
    cross-validated. The larger set is truncated to the size of the smaller. It needs scikit-learn.

    Args:
        samples: Samples [N, D].
        reference: Reference samples [M, D].
        seed: Seed of network and folds (int, default 0).
        folds: Number of folds (int, default 5).

    Returns:
        Accuracy from 0.5 (indistinguishable) to 1.

    Raises:
        InputError: If the shapes differ, or if there are fewer rows than folds.
    """
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    samples, reference = standardized(samples, reference)
    count, width = min(len(samples), len(reference)), 10 * reference.shape[1]
    _checks.require(count >= folds, "samples, reference", f"at least {folds} rows", count)
    draws = torch.cat((samples[:count], reference[:count])).numpy()
    labels = torch.arange(2, device="cpu").repeat_interleave(count).numpy()
    network = MLPClassifier((width, width), max_iter=500, early_stopping=False, n_iter_no_change=20, random_state=seed)
    return float(cross_val_score(network, draws, labels, cv=KFold(folds, shuffle=True, random_state=seed)).mean())


def mmd(samples: Tensor, reference: Tensor) -> float:
    """Compute the maximum mean discrepancy (see `ops.mmd`) between samples [N, D] and reference [M, D], standardized by the reference."""
    return float(ops.mmd(*(part.float() for part in standardized(samples, reference)), MMD_SIGMAS))


def moment_errors(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """Compute the largest error of a mean, in standard deviations of the reference, and the largest relative error of a standard deviation."""
    mean, deviation = reference.double().mean(0), reference.double().std(0)
    shift = ((samples.double().mean(0) - mean) / deviation).abs().max()
    return float(shift), float((samples.double().std(0) / deviation - 1).abs().max())


def standardized(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale both sets [.., D] by mean and standard deviation of the reference, in float64 on the CPU."""
    alike = samples.dim() == reference.dim() == 2 and samples.shape[1] == reference.shape[1]
    _checks.require(alike, "samples", f"samples [N, {reference.shape[-1]}]", samples)
    mean, deviation = reference.double().mean(0), reference.double().std(0)
    deviation = torch.where(Columns.of(reference).varies, deviation, 1.0)
    return tuple(((part.double() - mean) / deviation).cpu() for part in (samples, reference))
