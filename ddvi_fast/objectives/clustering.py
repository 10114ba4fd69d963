"""Clustering: a prior around learned centres that keep apart, and whose example belongs where (docs/method.md, section 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, distributed
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.semisupervised import divergence_from_uniform
from ddvi_fast.objectives.weights import PriorGuide
from ddvi_fast.posteriors import Posterior
from ddvi_fast.posteriors.class_conditional import ClassConditional
from ddvi_fast.priors import Centres, Prior
from ddvi_fast.priors.centres import ETA
from ddvi_fast.rng import Draws

_ROWS = 1 << 14


class Clustering(Objective):
    """Any objective, plus a hinge that keeps the learned centres of its prior `eta` apart, and a pull to clusters of like size.

    Adds two terms to each update that trains the centres: `crowding` [C], for each centre the sum of `max(0, eta - distance)` over the
    others; and, where it has a weight, the scalar `balance`, the divergence in nats of the batch's mean `p(c | z)` from equally likely
    clusters, which is what the prior says. Without it small groups of outlying examples may take clusters of their own.

    Args:
        inner: what is minimised otherwise; for a mixture with a latent cluster, a `SemiSupervised` without labels.
        prior: that of its model.
        eta: distance below which centres repel each other.
        weight: of the hinge.
        balance: weight of the divergence.
        posterior: whose samples are balanced.
        guide: how blurred the prior is.
    """

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
        _checks.require(balance == 0 or posterior is not None, "posterior", "one whose samples are balanced", None)
        self.inner, self.prior, self.eta, self.weight = inner, prior, eta, weight
        self.balance, self.posterior, self.guide = balance, posterior, guide

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return self.inner.parameter_groups()

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        trained = {name for name, members in self.parameter_groups().items() if any(member is self.prior.raw for member in members)}
        for update in self.inner.updates(x, progress, draws):
            further = partial(self._further, update, x, progress, draws)
            yield replace(update, terms=further) if update.group in trained else update

    def _further(self, update: Update, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        terms, values, weights = update.terms(), {"crowding": self.prior.crowding(self.eta)}, {"crowding": self.weight}
        if self.balance > 0:
            values["balance"], weights["balance"] = self._imbalance(x, progress, draws), self.balance
        return Terms({**terms.values, **values}, {**terms.weights, **weights})

    def _imbalance(self, x: Tensor, progress: Progress, draws: Draws) -> Tensor:
        # The very samples of which a bound takes the first.
        z = self.posterior.sample(x, 1, draws).z[0]
        shares = self.guide.blurred(self.prior, progress).responsibilities(z).mean(0)
        return divergence_from_uniform(distributed.batch_mean(shares))


@torch.no_grad()
def assign(posterior: Posterior, prior: Prior, x: Tensor, draws: Draws | None = None, num_samples: int = 1) -> Tensor:
    """The cluster of each row of `x` [N, ...], int64 [N].

    With a latent cluster it is the most probable one under q(c | x); else the one whose centre is nearest to a posterior sample, to most
    of them if there are several (then the first such cluster).

    Raises:
        InputError: a prior that has no centres, and a posterior that knows no classes.
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
