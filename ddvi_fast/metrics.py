"""What is reported of a model and its posterior. Bounds are nats per example; streaming keeps memory constant in K."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ddvi_fast import _checks, ops
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.paper import defects
from ddvi_fast.paper import objectives as released
from ddvi_fast.posteriors import Diffusion, Posterior
from ddvi_fast.rng import Draws

LATENT_NLL_BANDWIDTHS = (0.05, 0.8, 0.1, 0.3, 0.5)  # of the released code's metric
PRIOR_BANDWIDTHS = (0.005, 0.008, 0.01, 0.03, 0.05)  # of its prior density
MMD_SIGMAS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
NEIGHBOURS = 20

_ROWS = 1 << 14  # chain rows (examples times samples) held at a time
_VALUES = 1 << 24  # decoded values held at a time


@torch.no_grad()
def elbo(model: LatentVariableModel, posterior: Posterior, x: Tensor, num_samples: int = 100, draws: Draws | None = None) -> Tensor:
    """The evidence lower bound `E_q[log w]` of each row, nats [N], averaged over `num_samples` draws."""
    total = x.new_zeros(len(x))
    for weights in _streamed_weights(model, posterior, x, num_samples, draws):
        total = total + weights.sum(0)
    return total / num_samples


@torch.no_grad()
def iwae_bound(model: LatentVariableModel, posterior: Posterior, x: Tensor, num_samples: int = 1000, draws: Draws | None = None) -> Tensor:
    """`log (1/K) sum_k w_k` of each row, nats [N] (Burda et al. 2016), by an online log-sum-exp over K samples."""
    total = x.new_full((len(x),), -math.inf)
    for weights in _streamed_weights(model, posterior, x, num_samples, draws):
        total = torch.logaddexp(total, torch.logsumexp(weights, 0))
    return total - math.log(num_samples)


def _streamed_weights(model: LatentVariableModel, posterior: Posterior, x: Tensor, num_samples: int, draws: Draws | None) -> Iterator[Tensor]:
    """Log-weights [K', N] in chunks of K, which draw the very samples that one large call would."""
    _checks.require(num_samples >= 1, "num_samples", "at least 1", num_samples)
    _checks.require(len(x) >= 1, "x", "at least one example", x)
    rows = min(_ROWS, _VALUES // max(1, math.prod(x.shape[1:])))
    draws, chunk = Draws(0) if draws is None else draws, max(1, rows // len(x))
    for first in range(0, num_samples, chunk):
        yield posterior.log_weights(model, x, min(chunk, num_samples - first), draws.importance(first))


@torch.no_grad()
def elbo_released(model: LatentVariableModel, posterior: Posterior, x: Tensor, draws: Draws | None = None, log_var_twice: bool = False) -> Tensor:
    """The released code's "ELBO" of each row, [N], on its own scale; higher is better.

    Reconstruction is averaged over pixels instead of summed and the prior is its clamped kernel estimate (docs/migration.md). A chain's
    ratio is averaged over latent dimensions; for a deterministic one, which has none, it is minus the divergence of `y_T` from
    N(0, I) and of each step from the noising process, as the released code reports it. Not nats, and no bound.

    Args:
        model, posterior: what is judged.
        x: data [N, ...].
        draws: of the one sample a row.
        log_var_twice: count `log_var` in place of its half in `log q`, as the released code does without a chain.

    Raises:
        InputError: a family without either.
    """
    draws = Draws(0) if draws is None else draws
    if isinstance(posterior, Diffusion) and not posterior.has_density:
        encoded = posterior.encode(x, draws)
        trajectory = posterior.latent_path(encoded, 1, draws)[:, 0]
        z = trajectory[-1]
        steps = released.kl_per_step(posterior, encoded.context, trajectory).sum(0) / posterior.latent_dim
        ratio = -ops.gaussian_kl(encoded.mean, encoded.log_var) - steps
    else:
        posterior.require_density()
        sample = posterior.sample(x, 1, draws)
        z, ratio = sample.z[0], sample.log_ratio[0]
        if isinstance(posterior, Diffusion):
            ratio = ratio / posterior.latent_dim
        elif log_var_twice:
            ratio = ratio + defects.log_var_excess(defects.first_gaussian(posterior, x, draws)[1])
    return model.prior.log_prob_kde(z) + ratio - released.pixel_mean(model, x, z, draws)


@torch.no_grad()
def encode(posterior: Posterior, x: Tensor, draws: Draws | None = None) -> Tensor:
    """One posterior sample for each row of `x`, [N, D]: the latents that the metrics below are about."""
    draws = Draws(0) if draws is None else draws
    parts, start = [], 0
    for part in x.split(_ROWS):
        parts.append(posterior.sample(part, 1, draws.advance(start)).z[0])
        start += len(part)
    return torch.cat(parts)


def knn_accuracy(train_latents: Tensor, train_labels: Tensor, latents: Tensor, labels: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Share of `latents` [N, D] whose label a vote of the nearest training latents [M, D] gets right."""
    from sklearn.neighbors import KNeighborsClassifier

    _checks.require(len(train_latents) >= neighbours, "train_latents", f"at least {neighbours} rows", train_latents)
    classifier = KNeighborsClassifier(neighbours).fit(train_latents.cpu().numpy(), train_labels.cpu().numpy())
    return float(classifier.score(latents.cpu().numpy(), labels.cpu().numpy()))


def latent_nll(latents: Tensor, prior_samples: Tensor, bandwidths: Sequence[float] = LATENT_NLL_BANDWIDTHS) -> float:
    """Minus the mean log-density, nats, of prior samples [M, D] under a kernel density of the latents [N, D]: low if they cover the prior."""
    return -float(ops.kde_log_density(prior_samples, latents, bandwidths).mean())


def mmd(samples: Tensor, data: Tensor, sigmas: Sequence[float] = MMD_SIGMAS) -> float:
    """Maximum mean discrepancy between decoded prior samples and data, both [.., ...] flattened (see `ops.mmd`)."""
    return float(ops.mmd(samples.flatten(1), data.flatten(1), sigmas))


def accuracy(labels: Tensor, predicted: Tensor) -> float:
    """Share of examples [N] whose predicted class is their label."""
    _checks.require(predicted.shape == labels.shape and len(labels) > 0, "predicted", f"shape {list(labels.shape)} with at least one", predicted)
    return float((predicted == labels).float().mean())


def cluster_scores(labels: Sequence[int] | Tensor, clusters: Sequence[int] | Tensor) -> dict[str, float]:
    """Purity, completeness and normalised mutual information of clusters against labels, and how many clusters have members.

    Example:
        >>> cluster_scores([0, 0, 1, 1], [2, 2, 2, 5])["purity"]
        0.75
    """
    scores = {"purity": purity(labels, clusters), "completeness": completeness(labels, clusters), "nmi": nmi(labels, clusters)}
    return scores | {"clusters_used": float(len(set(_array(clusters).tolist() if isinstance(clusters, Tensor) else clusters)))}


def purity(labels: Sequence[int] | Tensor, clusters: Sequence[int] | Tensor) -> float:
    """Share of examples that belong to the commonest label of their cluster."""
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(_array(labels), _array(clusters))
    return float(table.max(axis=0).sum() / table.sum())


def completeness(labels: Sequence[int] | Tensor, clusters: Sequence[int] | Tensor) -> float:
    """How far all members of a label share a cluster, in [0, 1] (Rosenberg and Hirschberg 2007)."""
    from sklearn.metrics import completeness_score

    return float(completeness_score(_array(labels), _array(clusters)))


def nmi(labels: Sequence[int] | Tensor, clusters: Sequence[int] | Tensor) -> float:
    """Normalised mutual information of two partitions, arithmetic mean of their entropies below."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(_array(labels), _array(clusters)))


def _array(values: Sequence[int] | Tensor):
    return values.cpu().numpy() if isinstance(values, Tensor) else values
