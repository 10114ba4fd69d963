"""Metrics of a model and its posterior: bounds, latent and sample quality, clustering scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks, ops, priors, released_scale, rng
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.posteriors import Diffusion, Posterior
from ddvi_fast.posteriors.base import check_data
from ddvi_fast.rng import Draws

LATENT_NLL_BANDWIDTHS = (0.05, 0.8, 0.1, 0.3, 0.5)  # of the released code's metric
PRIOR_BANDWIDTHS = priors.base.KDE_BANDWIDTHS  # of the released code's prior density
MMD_SIGMAS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
NEIGHBOURS = 20

_ROWS = 1 << 14  # posterior samples (rows times K) held at a time
_VALUES = 1 << 24  # decoded values held at a time

Labels = Sequence[int] | Tensor


@torch.no_grad()
@_checks.typed
def elbo(model: LatentVariableModel, posterior: Posterior, x: Tensor, num_samples: int = 100, draws: Draws | None = None) -> Tensor:
    """Estimate the evidence lower bound `E_q[log w]` of each row (docs/method.md, section 2).

    Args:
        model: The latent-variable model.
        posterior: A posterior with a density.
        x: Data [N, ...], N >= 1.
        num_samples: Posterior samples per row, averaged (int, default 100). Memory does not depend on it.
        draws: Position of the first row in the random stream. Default: `Draws(0)`.

    Returns:
        Bounds [N] in nats.

    Raises:
        InputError: If the posterior or the prior has no density, or if `x` is empty or `num_samples` below 1.

    Example:
        >>> from ddvi_fast import likelihoods, networks, posteriors, priors
        >>> model = LatentVariableModel(priors.make("pinwheel"), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))
        >>> elbo(model, posteriors.Gaussian(networks.MLP(5, [8], 4), latent_dim=2), torch.rand(3, 5), num_samples=10).shape
        torch.Size([3])
    """
    check_data(x, posterior)
    _checks.require(len(x) >= 1, "x", "at least one example", x)
    total = x.new_zeros(len(x))
    for weights in _streamed_weights(model, posterior, x, num_samples, draws):
        total = total + weights.sum(0)
    return total / num_samples


@torch.no_grad()
@_checks.typed
def iwae_bound(model: LatentVariableModel, posterior: Posterior, x: Tensor, num_samples: int = 1000, draws: Draws | None = None) -> Tensor:
    """Estimate the importance-weighted bound `log (1/K) sum_k w_k` of each row (Burda et al. 2016).

    Args:
        model: The latent-variable model.
        posterior: A posterior with a density.
        x: Data [N, ...], N >= 1.
        num_samples: Importance samples per row, K (int, default 1000). Memory does not depend on it.
        draws: Position of the first row in the random stream. Default: `Draws(0)`.

    Returns:
        Bounds [N] in nats.

    Raises:
        InputError: If the posterior or the prior has no density, or if `x` is empty or `num_samples` below 1.
    """
    check_data(x, posterior)
    _checks.require(len(x) >= 1, "x", "at least one example", x)
    total = x.new_full((len(x),), -math.inf)
    for weights in _streamed_weights(model, posterior, x, num_samples, draws):
        total = torch.logaddexp(total, torch.logsumexp(weights, 0))
    return total - math.log(num_samples)


def _streamed_weights(model: LatentVariableModel, posterior: Posterior, x: Tensor, num_samples: int, draws: Draws | None) -> Iterator[Tensor]:
    """Log-weights [K', N] in chunks over K, equal to those of one large call."""
    rng.samples(num_samples)
    rows = min(_ROWS, _VALUES // max(1, math.prod(x.shape[1:])))
    draws, chunk = Draws(0) if draws is None else draws, max(1, rows // len(x))
    for first in range(0, num_samples, chunk):
        yield posterior.log_weights(model, x, min(chunk, num_samples - first), draws.importance(first))


@torch.no_grad()
@_checks.typed
def elbo_released(model: LatentVariableModel, posterior: Posterior, x: Tensor, draws: Draws | None = None, log_var_twice: bool = False) -> Tensor:
    """Compute the released code's "ELBO" of each row on its own scale; higher is better. It is not a bound, and not in nats.

    Reconstruction is averaged over pixels instead of summed, and the prior is its clamped kernel density estimate (docs/migration.md). A
    chain's log-ratio is averaged over latent dimensions. For a deterministic chain, which has none, it is minus the KL divergence of `y_T`
    from N(0, I) and of each step from the noising process.

    Args:
        model: The latent-variable model.
        posterior: A posterior with a density, or a deterministic chain.
        x: Data [N, ...].
        draws: Position of the first row in the random stream; one sample per row is drawn. Default: `Draws(0)`.
        log_var_twice: Use `log_var` in place of `log_var / 2` in `log q`, as the released code does without a chain (bool, default False).

    Returns:
        Values [N].

    Raises:
        InputError: If the posterior has no density and is not a chain.
    """
    check_data(x, posterior)
    draws = Draws(0) if draws is None else draws
    if isinstance(posterior, Diffusion) and not posterior.has_density:
        encoded = posterior.encode(x, draws)
        trajectory = posterior.latent_path(encoded, 1, draws)[:, 0]
        z = trajectory[-1]
        steps = released_scale.kl_per_step(posterior, encoded.context, trajectory).sum(0) / posterior.latent_dim
        ratio = -ops.gaussian_kl(encoded.mean, encoded.log_var) - steps
    else:
        posterior.require_density()
        sample = posterior.sample(x, 1, draws)
        z, ratio = sample.z[0], sample.log_ratio[0]
        if isinstance(posterior, Diffusion):
            ratio = ratio / posterior.latent_dim
        elif log_var_twice:
            ratio = ratio + released_scale.log_var_excess(released_scale.first_gaussian(posterior, x, draws)[1])
    return model.prior.log_prob_kde(z) + ratio - released_scale.pixel_mean(model, x, z, draws)


@torch.no_grad()
@_checks.typed
def encode(posterior: Posterior, x: Tensor, draws: Draws | None = None) -> Tensor:
    """Draw one posterior sample for each row of `x` [N, ...], the latents of the metrics below.

    Args:
        posterior: The posterior.
        x: Data [N, ...].
        draws: Position of the first row in the random stream. Default: `Draws(0)`.

    Returns:
        Latents [N, D].
    """
    check_data(x, posterior)
    _checks.require(len(x) >= 1, "x", "at least one example", x)
    draws = Draws(0) if draws is None else draws
    parts, start = [], 0
    for part in x.split(_ROWS):
        place = draws.advance(start)
        parts.append(posterior.sample_encoded(posterior.encode(part, place), 1, place).z[0])
        start += len(part)
    return torch.cat(parts)


@_checks.typed
def knn_accuracy(train_latents: Tensor, train_labels: Tensor, latents: Tensor, labels: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Compute the accuracy of a nearest-neighbour classifier of latents. It needs scikit-learn.

    Args:
        train_latents: Latents of the training data [M, D].
        train_labels: Their labels [M].
        latents: Latents to classify [N, D].
        labels: Their labels [N].
        neighbours: Number of neighbours that vote (int, default 20).

    Returns:
        Fraction of correct labels, from 0 to 1.

    Raises:
        InputError: If there are fewer training latents than `neighbours`.
    """
    from sklearn.neighbors import KNeighborsClassifier

    _checks.integer(neighbours, "neighbours", 1)
    for name, value in (("train_latents", train_latents), ("latents", latents)):
        _checks.finite(_checks.tensor(value, name, (None, None)), name)
    _checks.require(latents.shape[1] == train_latents.shape[1] and len(latents) > 0, "latents", f"shape [N, {train_latents.shape[1]}]", latents)
    _checks.require(len(train_latents) >= neighbours, "train_latents", f"at least {neighbours} rows", train_latents)
    _same_length(train_latents, train_labels, "train_labels")
    _same_length(latents, labels, "labels")
    classifier = KNeighborsClassifier(neighbours).fit(train_latents.cpu().numpy(), train_labels.cpu().numpy())
    return float(classifier.score(latents.cpu().numpy(), labels.cpu().numpy()))


@_checks.typed
def latent_nll(latents: Tensor, prior_samples: Tensor, bandwidths: Sequence[float] = LATENT_NLL_BANDWIDTHS) -> float:
    """Compute minus the mean log-density of prior samples under a kernel density estimate of the latents; low if latents cover the prior.

    Args:
        latents: Latents of data [N, D].
        prior_samples: Samples of the prior [M, D].
        bandwidths: Standard deviations of the Gaussian kernels, whose densities are averaged. Default: those of the released code.

    Returns:
        Nats; NaN if any value is not finite.
    """
    _checks.tensor(latents, "latents", (None, None))
    _checks.valued(_checks.tensor(prior_samples, "prior_samples", (None, latents.shape[1])), "prior_samples")
    _checks.same_device("latents", latents, prior_samples)
    _checks.require(len(prior_samples) > 0, "prior_samples", "at least one row", prior_samples)
    if not bool(latents.isfinite().all() & prior_samples.isfinite().all()):
        return math.nan  # latents at infinity would only be left out of the density
    return -float(ops.kde_log_density(prior_samples, latents, bandwidths).mean())


@_checks.typed
def mmd(samples: Tensor, data: Tensor, sigmas: Sequence[float] = MMD_SIGMAS) -> float:
    """Compute the maximum mean discrepancy between decoded prior samples and data (see `ops.mmd`).

    Args:
        samples: Decoded prior samples [M, ...].
        data: Data [N, ...], flattened like the samples.
        sigmas: Squared widths of the Gaussian kernels, which are summed. Default: those of the released code.
    """
    for name, value in (("samples", samples), ("data", data)):
        _checks.require(value.dim() >= 2, name, "shape [N, ...]", value)
    return float(ops.mmd(samples.flatten(1), data.flatten(1), sigmas))


@_checks.typed
def accuracy(labels: Tensor, predicted: Tensor) -> float:
    """Compute the fraction of examples whose predicted class, int64 [N], equals their label [N].

    Raises:
        InputError: If there are no labels, or if the shapes differ.
    """
    _checks.tensor(labels, "labels", floating=False)
    _checks.tensor(predicted, "predicted", floating=False)
    _checks.require(predicted.shape == labels.shape and len(labels) > 0, "predicted", f"shape {list(labels.shape)} with at least one", predicted)
    return float((predicted == labels).float().mean())


def cluster_scores(labels: Labels, clusters: Labels) -> dict[str, float]:
    """Compute `purity`, `completeness`, `nmi` and `clusters_used` (the number of clusters with members). It needs scikit-learn.

    Args:
        labels: True labels [N].
        clusters: Assigned clusters [N].

    Example:
        >>> cluster_scores([0, 0, 1, 1], [2, 2, 2, 5])["purity"]
        0.75
    """
    _same_partition(labels, clusters)
    scores = {"purity": purity(labels, clusters), "completeness": completeness(labels, clusters), "nmi": nmi(labels, clusters)}
    return scores | {"clusters_used": float(len(set(_array(clusters).tolist() if isinstance(clusters, Tensor) else clusters)))}


def purity(labels: Labels, clusters: Labels) -> float:
    """Compute the fraction of examples that have the most frequent label of their cluster."""
    from sklearn.metrics.cluster import contingency_matrix

    _same_partition(labels, clusters)
    table = contingency_matrix(_array(labels), _array(clusters))
    return float(table.max(axis=0).sum() / table.sum())


def completeness(labels: Labels, clusters: Labels) -> float:
    """Compute the completeness, from 0 to 1: 1 if all members of each label are in one cluster (Rosenberg and Hirschberg 2007)."""
    from sklearn.metrics import completeness_score

    _same_partition(labels, clusters)
    return float(completeness_score(_array(labels), _array(clusters)))


def nmi(labels: Labels, clusters: Labels) -> float:
    """Compute the mutual information of two partitions, normalized by the arithmetic mean of their entropies."""
    from sklearn.metrics import normalized_mutual_info_score

    _same_partition(labels, clusters)
    return float(normalized_mutual_info_score(_array(labels), _array(clusters)))


def _same_length(rows: Tensor, labels: Tensor, name: str) -> None:
    _checks.tensor(labels, name, (len(rows),), floating=False)
    _checks.require(not labels.is_floating_point(), name, "integers", labels)


def _same_partition(labels: Labels, clusters: Labels) -> None:
    """Check that both are one integer, or one name, for each of the same examples, of which there is at least one."""
    shapes = []
    for name, values in (("labels", labels), ("clusters", clusters)):
        array = np.asarray(_array(values))
        fits = array.ndim == 1 and len(array) > 0 and array.dtype.kind in "iubUSO"
        _checks.require(fits, name, "one integer for each example", values)
        shapes.append(array.shape)
    _checks.require(shapes[0] == shapes[1], "clusters", f"shape {list(shapes[0])}, as the labels", clusters)


def _array(values: Labels) -> Any:
    if not isinstance(values, Tensor):
        return values
    return _checks.valued(_checks.tensor(values, "labels, clusters", floating=False), "labels, clusters").detach().cpu().numpy()
