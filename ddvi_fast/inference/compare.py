"""How far a posterior's draws are from reference draws of the same posterior."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast import _checks, ops

MMD_SIGMAS = (0.01, 0.1, 1.0, 10.0)  # squared widths, where the reference has variance 1


def c2st(samples: Tensor, reference: Tensor, seed: int = 0, folds: int = 5) -> float:
    """Accuracy at which a classifier tells draws [N, D] from reference draws [M, D] that it has not seen: 0.5 where they are alike.

    The two-sample test of Lopez-Paz and Oquab (2017) with the classifier of Lueckmann et al. (2021): a network of two hidden layers of 10 D
    units on standardised draws, cross-validated. The larger of the two sets is cut to the size of the other.
    """
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    samples, reference = standardised(samples, reference)
    count, width = min(len(samples), len(reference)), 10 * reference.shape[1]
    _checks.require(count >= folds, "samples, reference", f"at least {folds} rows", count)
    draws = torch.cat((samples[:count], reference[:count])).numpy()
    labels = torch.arange(2).repeat_interleave(count).numpy()
    network = MLPClassifier((width, width), max_iter=500, early_stopping=False, n_iter_no_change=20, random_state=seed)
    return float(cross_val_score(network, draws, labels, cv=KFold(folds, shuffle=True, random_state=seed)).mean())


def mmd(samples: Tensor, reference: Tensor) -> float:
    """Maximum mean discrepancy between draws standardised by the reference, kernels of four widths (see `ops.mmd`)."""
    return float(ops.mmd(*(part.float() for part in standardised(samples, reference)), MMD_SIGMAS))


def moment_errors(samples: Tensor, reference: Tensor) -> tuple[float, float]:
    """The largest error of a mean, in standard deviations of the reference, and the largest relative error of a standard deviation."""
    mean, deviation = reference.double().mean(0), reference.double().std(0)
    shift = ((samples.double().mean(0) - mean) / deviation).abs().max()
    return float(shift), float((samples.double().std(0) / deviation - 1).abs().max())


def standardised(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Both [.., D] shifted and scaled by mean and standard deviation of the reference, float64 on the host."""
    alike = samples.dim() == reference.dim() == 2 and samples.shape[1] == reference.shape[1]
    _checks.require(alike, "samples", f"draws [N, {reference.shape[-1]}]", samples)
    mean, deviation = reference.double().mean(0), reference.double().std(0)
    return tuple(((part.double() - mean) / deviation).cpu() for part in (samples, reference))
