"""Clustering with a prior around learned centres (docs/method.md, section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, distributed
from ddvi_fast.objectives.annealing import PriorGuide
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.semisupervised import divergence_from_uniform
from ddvi_fast.posteriors import Posterior
from ddvi_fast.posteriors.class_conditional import ClassConditional
from ddvi_fast.priors import Centres, Prior
from ddvi_fast.priors.centres import ETA
from ddvi_fast.rng import Draws

_ROWS = 1 << 14  # posterior samples at a time


class Clustering(Objective):
    """An objective whose prior has learned centres, plus terms that keep the centres apart and the clusters balanced.

    Two terms are added to each update that trains the centres. `crowding` [C]: for each centre the sum of `max(0, eta - distance)` over the
    other centres. `balance` (a scalar, if it has a weight): the KL divergence in nats of the batch's mean `p(c | z)` from equally likely
    clusters; without it small groups of outliers may take clusters of their own.

    Args:
        inner: The objective without these terms; for a mixture with a latent cluster, a `SemiSupervised` without labels.
        prior: The prior of its model, a `priors.Centres`.
        eta: Distance below which centres repel each other (float, default 1.5).
        weight: Weight of `crowding` (float, default 1).
        balance: Weight of `balance` (float, default 0).
        posterior: Posterior whose samples are balanced. Required if `balance` is positive.
        guide: Smoothing of the prior while training, as of `inner`.

    Raises:
        InputError: If the prior has no learned centres, or if an argument is out of range or missing.
    """

    @_checks.typed
    def __init__(
        self, inner: Objective, prior: Prior, eta: float = ETA, weight: float = 1.0,
        balance: float = 0.0, posterior: Posterior | None = None, guide: PriorGuide = PriorGuide(),
    ) -> None:  # fmt: skip
        super().__init__()
        wanted = "learned centres around a base prior (priors.Centres)"
        _checks.require(isinstance(prior, Centres), "prior", wanted, f"a {type(prior).__name__} prior")
        _checks.require(weight >= 0, "clustering.spread_weight", "a number of at least 0", weight)
        _checks.require(eta > 0, "clustering.eta", "a positive distance", eta)
        _checks.require(balance >= 0, "clustering.balance", "a number of at least 0", balance)
        _checks.require(balance == 0 or posterior is not None, "posterior", "a posterior if balance > 0", None)
        self.inner, self.prior, self.eta, self.weight = inner, prior, eta, weight
        self.balance, self.posterior, self.guide = balance, posterior, guide

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return self.inner.parameter_groups()

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        trained = {name for name, members in self.parameter_groups().items() if any(member is self.prior.raw for member in members)}
        for update in self.inner.updates(x, progress, draws):
            extended = partial(self._extended_terms, update, x, progress, draws)
            yield replace(update, terms=extended) if update.group in trained else update

    def _extended_terms(self, update: Update, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        terms, values, weights = update.terms(), {"crowding": self.prior.crowding(self.eta)}, {"crowding": self.weight}
        if self.balance > 0:
            values["balance"], weights["balance"] = self._balance_term(x, progress, draws), self.balance
        return Terms({**terms.values, **values}, {**terms.weights, **weights})

    def _balance_term(self, x: Tensor, progress: Progress, draws: Draws) -> Tensor:
        if isinstance(self.posterior, ClassConditional):
            return divergence_from_uniform(distributed.batch_mean(self.posterior.log_class_probs(x, draws).exp().mean(0)))
        # The same draws as those of the bound, so the samples are equal.
        z = self.posterior.sample(x, 1, draws).z[0]
        shares = self.guide.blurred(self.prior, progress).responsibilities(z).mean(0)
        return divergence_from_uniform(distributed.batch_mean(shares))


@torch.no_grad()
def assign(posterior: Posterior, prior: Prior, x: Tensor, draws: Draws | None = None, num_samples: int = 1) -> Tensor:
    """Assign each row of `x` to a cluster.

    With a latent cluster this is the most probable one under q(c | x). Otherwise it is the cluster whose centre is nearest to a posterior
    sample; with several samples the majority decides (the first cluster wins ties).

    Args:
        posterior: The posterior.
        prior: The prior; a `priors.Centres` unless the posterior is a `ClassConditional`.
        x: Data [N, ...].
        draws: Position of the first row in the random stream. Default: `Draws(0)`.
        num_samples: Posterior samples per row (int, default 1).

    Returns:
        Clusters, int64 [N].

    Raises:
        InputError: If the prior has no centres and the posterior has no classes.
    """
    draws = Draws(0) if draws is None else draws
    latent = isinstance(posterior, ClassConditional)
    hint = "method=ddvi_clustering builds them"
    _checks.require(latent or isinstance(prior, Centres), "prior", "learned centres (priors.Centres)", f"a {type(prior).__name__} prior", hint)
    clusters = []
    rows = max(1, _ROWS // num_samples)
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        if latent:
            clusters.append(posterior.log_class_probs(part).argmax(-1))
        else:
            votes = prior.nearest(posterior.sample(part, num_samples, draws.advance(start)).z)
            clusters.append(nn.functional.one_hot(votes, prior.num_classes).sum(0).argmax(-1))
    return torch.cat(clusters) if clusters else torch.empty(0, dtype=torch.int64, device=x.device)
