"""Split of the gap between the evidence and the bound: amortisation, family, and steps of a chain (docs/method.md, section 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.evidence import log_evidence_quadrature
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import frozen
from ddvi_fast.posteriors import Posterior
from ddvi_fast.posteriors.chain import ChainPosterior
from ddvi_fast.posteriors.class_conditional import ClassConditional, ClassDiffusion, ClassEncoded, draw_classes
from ddvi_fast.precision import without_callers_autocast
from ddvi_fast.rng import Draws

__all__ = ["Gap", "split_gap"]

_UPDATES = 250  # of the encoder's output of each row
_RATES = (0.2, 0.001)  # first and last learning rate of these updates, with a geometric decay between them
_SAMPLES = 4  # posterior samples per row and update; one per class of a posterior with classes
_CHECKS, _CHECK_SAMPLES = 2, 50  # comparisons with the best output so far, and their posterior samples
_OWN_PATHS, _NOISED_PATHS = 2, 500  # paths per row of the chain, and of the noising process for each of them
_IWAE_SAMPLES = 2000  # of the bound that stands for the evidence
_ROWS = 1 << 14  # posterior samples (rows times samples) held at a time
_VALUES = 1 << 24  # decoded values held at a time
_STATES = 1 << 16  # states of paths held at a time


class Gap(NamedTuple):
    """Gap of each row of data and its parts, all [N] in nats: `total = amortisation + family + steps`.

    Attributes:
        evidence: log p(x), or a bound on it, see `exact`.
        elbo: ELBO of the posterior.
        refined: ELBO after the output of the encoders was optimized for each row.
        steps: Loss of a chain by its path, an estimate that is at most the true loss in expectation; zero for families with a tractable
            density, None for others, whose auxiliary variables count as `family`.
        steps_at_most: Estimate of the same loss that is at least the true one in expectation; both converge with the number of paths.
        exact: Whether `evidence` is a quadrature. Otherwise it is an importance-weighted bound, and `total` and `family` are at least the
            values given.
    """

    evidence: Tensor
    elbo: Tensor
    refined: Tensor
    steps: Tensor | None
    steps_at_most: Tensor | None
    exact: bool

    @property
    def total(self) -> Tensor:
        """The gap, `evidence - elbo`."""
        return self.evidence - self.elbo

    @property
    def amortisation(self) -> Tensor:
        """Loss by encoders that are shared by all data: what the bound gains by optimizing their output for each row."""
        return self.refined - self.elbo

    @property
    def family(self) -> Tensor:
        """What remains: the divergence of the best member of the family that was found from the exact posterior."""
        rest = self.evidence - self.refined
        return rest if self.steps is None else rest - self.steps

    def parts(self) -> dict[str, Tensor]:
        """Return `amortisation`, `family` and, unless it is None, `steps` by name."""
        steps = {} if self.steps is None else {"steps": self.steps}
        return {"amortisation": self.amortisation, "family": self.family, **steps}


@_checks.outside_inference_mode
@without_callers_autocast()
@torch.no_grad()
def split_gap(
    model: LatentVariableModel, posterior: Posterior, x: Tensor, *, resolution: int | None = 200, num_samples: int = 100, draws: Draws | None = None
) -> Gap:
    """Split the gap between the evidence and the ELBO of each row into amortisation, family and steps (Cremer et al. 2018).

    Amortisation is what the bound gains if mean, log-variance, context and class probabilities, the output of the encoders, are optimized
    for each row by Adam on the row's bound, with everything else fixed. It is evaluated with draws that the optimization does not use.
    Steps and family are those of the posterior optimized in this way, so that each of the three parts is at least 0 but for its estimate.

    Args:
        model: The latent-variable model.
        posterior: A posterior with a density.
        x: Data [N, ...], N >= 1.
        resolution: Resolution of the quadrature (int, default 200), see `evidence.log_evidence_quadrature`. With None, or with more than two
            latents, an importance-weighted bound of 2,000 samples of the optimized posterior stands for the evidence.
        num_samples: Posterior samples per row of each ELBO (int, default 100).
        draws: Position of the first row in the random stream. Default: `Draws(0)`. A row has the same result in any batch.

    Returns:
        The gap and its parts.

    Raises:
        InputError: If the posterior or the prior has no density, or if `x` is empty or `num_samples` below 1.

    Example:
        >>> from ddvi_fast import likelihoods, networks, posteriors, priors
        >>> model = LatentVariableModel(priors.make("gaussian", dim=2), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))
        >>> gap = split_gap(model, posteriors.Gaussian(networks.MLP(5, [8], 4), latent_dim=2), torch.rand(3, 5), resolution=60)
        >>> gap.total.shape, sorted(gap.parts())
        (torch.Size([3]), ['amortisation', 'family', 'steps'])
    """
    posterior.require_density(model.prior)
    _checks.tensor(x, "x")
    _checks.require(x.dim() >= 2 and len(x) >= 1, "x", "shape [N, ...] with N >= 1", x)
    _checks.require(num_samples >= 1, "num_samples", "at least 1", num_samples)
    draws = Draws(0) if draws is None else draws
    encoded = posterior.encode(x, draws)
    with frozen(model, posterior):
        best = refine(model, posterior, x, encoded, draws)
    steps, steps_at_most = path_loss(posterior, x, best, draws.lane("paths"))
    exact = resolution is not None and model.prior.dim <= 2
    if exact:
        evidence = log_evidence_quadrature(model, x, resolution=resolution)
    else:
        evidence = _importance_bound(model, posterior, x, best, draws)
    bounds = (_bound(model, posterior, x, output, num_samples, draws) for output in (encoded, best))
    return Gap(evidence, *bounds, steps, steps_at_most, exact)


@torch.no_grad()
def refine(model: LatentVariableModel, posterior: Posterior, x: Tensor, encoded: Any, draws: Draws) -> Any:
    """Optimize the output `encoded` of the encoders for each row of `x` [N, ...] by gradient ascent on its bound.

    Halfway and at the end each row keeps its best output so far, by a bound with the same draws each time.
    """
    best, height = encoded, _bound(model, posterior, x, encoded, _CHECK_SAMPLES, draws.lane("refinement_check"))
    leaves: list[Tensor] = []
    current = _with_parts(lambda part: _leaf(part, leaves), encoded)
    optimizer = torch.optim.Adam(leaves, lr=_RATES[0])
    samples = 1 if isinstance(posterior, ClassConditional) else _SAMPLES
    for update in range(1, _UPDATES + 1):
        fresh = draws.lane("refinement").importance(update * samples * _classes(posterior))
        with torch.enable_grad():
            loss = -_mean_log_weight(model, posterior, x, _normalized(current), samples, fresh).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = _RATES[0] * (_RATES[1] / _RATES[0]) ** (update / _UPDATES)
        optimizer.step()
        if update % (_UPDATES // _CHECKS) == 0:
            reached = _normalized(_with_parts(Tensor.detach, current))
            bound = _bound(model, posterior, x, reached, _CHECK_SAMPLES, draws.lane("refinement_check"))
            better = (bound > height).unsqueeze(-1)
            best = _with_parts(lambda new, old, better=better: torch.where(better, new, old), reached, best)
            height = torch.maximum(bound.nan_to_num(-math.inf), height)
    return best


@torch.no_grad()
def path_loss(posterior: Posterior, x: Tensor, encoded: Any, draws: Draws) -> tuple[Tensor | None, Tensor | None]:
    """Estimate `ELBO(q(u | x)) - ELBO(q(path | x)) = KL( q(path | u, x) || r(path | u) )` of each row of `x` [N, ...], [N] in nats.

    The density of a sample `u` is the mean of `q(path | x) / r(path | u)` over paths that the noising process `r` draws from `u`. With the
    sample's own path among them the mean log-density is too high and the loss too low, without it the reverse (Sobolev and Vetrov 2019).

    Returns:
        The low and the high estimate. Both are zero for families with a tractable density, and None for families without a noising process
        and for a `ClassDiffusion`.
    """
    family = posterior.family if isinstance(posterior, ClassConditional) else posterior
    if family.tractable:
        return x.new_zeros(len(x)), x.new_zeros(len(x))
    if not isinstance(family, ChainPosterior) or isinstance(family, ClassDiffusion):
        return None, None
    own, encoded = _own_paths(posterior, family, encoded, draws)
    weight, table = -family.log_ratio(encoded, own), family.coefficients().to(own)
    chunk, total = max(1, _STATES // own[..., 0].numel()), torch.full_like(weight, -math.inf)
    for first in range(0, _NOISED_PATHS, chunk):
        paths = _noised(table, own[-1], min(chunk, _NOISED_PATHS - first), draws.importance(first * len(weight)))
        total = torch.logaddexp(total, torch.logsumexp(-family.log_ratio(encoded, paths), 0))
    low = weight - torch.logaddexp(total, weight) + math.log(_NOISED_PATHS + 1)
    high = weight - total + math.log(_NOISED_PATHS)
    return low.mean(0), high.mean(0)


def _own_paths(posterior: Posterior, family: ChainPosterior, encoded: Any, draws: Draws) -> tuple[Tensor, Any]:
    """Paths [T + 1, K, N, D] of the family, and the output of its encoders that belongs to them: that of the drawn classes, if there are any."""
    if not isinstance(posterior, ClassConditional):
        return family.latent_path(encoded, _OWN_PATHS, draws), encoded
    chosen = posterior.family_of_class(encoded, draw_classes(encoded.log_probs, _OWN_PATHS, draws))
    return family.latent_path(chosen, 1, draws)[:, 0], chosen


def _noised(table: Tensor, y: Tensor, count: int, draws: Draws) -> Tensor:
    """Paths [T + 1, K', K, N, D] that the noising process of a chain's `table` [T, 5] draws from `y` [K, N, D], the noisiest state first."""
    states = [y.expand(count, *y.shape)]
    noise = rng.normal(draws, tuple(states[0].shape), rng.NOISE, planes=len(table), device=y.device, dtype=y.dtype)
    for row, added in zip(table, noise, strict=True):
        states.append(row[3] * states[-1] + row[4].sqrt() * added)
    return torch.stack(states[::-1])


def _bound(model: LatentVariableModel, posterior: Posterior, x: Tensor, encoded: Any, num_samples: int, draws: Draws) -> Tensor:
    """ELBO [N] of the posterior with the output `encoded` of its encoders."""
    classes, total = _classes(posterior), x.new_zeros(len(x))
    for first, count in _chunks(x, num_samples, classes):
        part = _mean_log_weight(model, posterior, x, encoded, count, draws.importance(first * classes))
        total = total + count / num_samples * part
    return total


def _mean_log_weight(model: LatentVariableModel, posterior: Posterior, x: Tensor, encoded: Any, num_samples: int, draws: Draws) -> Tensor:
    """Mean log-weight [N] of samples given `encoded`, with gradients; over classes it is an expectation instead of a mean of samples."""
    if not isinstance(posterior, ClassConditional):
        return _log_weights(model, posterior, x, encoded, num_samples, draws).mean(0)
    log_probs = encoded.log_probs.mT
    sample = posterior.sample_classes_encoded(encoded.family, num_samples, draws)
    bounds = (model.log_likelihood(x, sample.z) + sample.log_prior_ratio).mean(1)
    return (log_probs.exp() * (bounds - math.log(len(log_probs)) - log_probs)).sum(0)


def _importance_bound(model: LatentVariableModel, posterior: Posterior, x: Tensor, encoded: Any, draws: Draws) -> Tensor:
    """Importance-weighted bound [N] of the posterior with the output `encoded` of its encoders."""
    total = x.new_full((len(x),), -math.inf)
    for first, count in _chunks(x, _IWAE_SAMPLES, 1):
        weights = _log_weights(model, posterior, x, encoded, count, draws.importance(first))
        total = torch.logaddexp(total, torch.logsumexp(weights, 0))
    return total - math.log(_IWAE_SAMPLES)


def _log_weights(model: LatentVariableModel, posterior: Posterior, x: Tensor, encoded: Any, num_samples: int, draws: Draws) -> Tensor:
    """Log-weights [K, N] of samples given `encoded`, as `Posterior.log_weights`."""
    sample = posterior.sample_encoded(encoded, num_samples, draws)
    return model.log_likelihood(x, sample.z) + posterior.log_prior_ratio(model.prior, sample)


def _chunks(x: Tensor, num_samples: int, classes: int) -> Iterator[tuple[int, int]]:
    """First number and size of each chunk of `num_samples` samples that is held at a time, for every row of `x` and class."""
    rows = min(_ROWS, _VALUES // max(1, math.prod(x.shape[1:])))
    chunk = max(1, rows // (len(x) * classes))
    return ((first, min(chunk, num_samples - first)) for first in range(0, num_samples, chunk))


def _classes(posterior: Posterior) -> int:
    return posterior.num_classes if isinstance(posterior, ClassConditional) else 1


def _with_parts(function: Callable[..., Tensor], encoded: Any, *others: Any) -> Any:
    """`encoded` with every tensor that an encoder computed replaced by `function` of it and its counterparts in `others`."""
    if isinstance(encoded, Tensor):
        return function(encoded, *others)
    if not isinstance(encoded, tuple):
        return encoded
    names = getattr(encoded, "_fields", range(len(encoded)))
    columns = zip(names, encoded, *others, strict=True)
    fixed = ("x", "labels")  # the data themselves, and the classes
    parts = [values[0] if name in fixed else _with_parts(function, *values) for name, *values in columns]
    return type(encoded)(*parts) if hasattr(encoded, "_fields") else tuple(parts)


def _leaf(part: Tensor, leaves: list[Tensor]) -> Tensor:
    """A copy of `part` that takes gradients, and is appended to `leaves`."""
    leaves.append(part.detach().clone().requires_grad_())
    return leaves[-1]


def _normalized(encoded: Any) -> Any:
    """`encoded` with class probabilities that sum to one, if it has classes."""
    return encoded._replace(log_probs=torch.log_softmax(encoded.log_probs, -1)) if isinstance(encoded, ClassEncoded) else encoded
