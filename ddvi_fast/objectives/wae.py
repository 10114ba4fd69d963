"""The Wasserstein autoencoder with a maximum mean discrepancy penalty (Tolstikhin et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from ddvi_fast import _checks, distributed, ops
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.objectives.base import Objective, Progress, Terms, Update
from ddvi_fast.objectives.pairs import PairFit, Sleep, with_pairs
from ddvi_fast.posteriors import Posterior
from ddvi_fast.rng import Draws

SIGMAS = (0.01, 0.1, 1.0)  # squared kernel widths per latent dimension


class WAE(Objective):
    """`-E_q[ log p(x|z) ] + weight MMD(q(z), p(z))^2` (Tolstikhin et al. 2018). It is not a bound.

    Terms: `reconstruction` = -log p(x|z) (nats per example), and `mmd`, the squared maximum mean discrepancy between the batch's latents
    and as many prior samples under a sum of Gaussian kernels (a scalar).

    Args:
        model: The latent-variable model. Its prior is only sampled and may have no density.
        posterior: Any posterior family; its density is not used.
        weight: Weight of the squared discrepancy, in nats (float, default 1000).
        sigmas: Squared kernel widths. Default: (0.01, 0.1, 1) times the number of latents.
        sleep: Settings of the terms that fit the class of a `ClassConditional` and the decoder to pairs, or None (default).

    Raises:
        InputError: If `weight` is not positive.

    Example:
        >>> import torch
        >>> from ddvi_fast import likelihoods, networks, posteriors, priors
        >>> model = LatentVariableModel(priors.make("swiss_roll"), networks.MLP(2, [8], 5), likelihoods.make("bernoulli"))
        >>> WAE(model, posteriors.Gaussian(networks.MLP(5, [8], 4), latent_dim=2))(torch.rand(4, 5)).shape
        torch.Size([])
    """

    @_checks.typed
    def __init__(
        self, model: LatentVariableModel, posterior: Posterior, weight: float = 1000.0, sigmas: Sequence[float] | None = None,
        sleep: Sleep | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _checks.require(weight > 0, "weight", "a positive number", weight)
        self.model, self.posterior, self.weight = model, posterior, weight
        self.pair_fit = None if sleep is None else PairFit(model, posterior, sleep)
        self.sigmas = [posterior.latent_dim * sigma for sigma in SIGMAS] if sigmas is None else list(sigmas)

    def updates(self, x: Tensor, progress: Progress, draws: Draws) -> Iterator[Update]:
        yield Update("wake", lambda: self.wake_terms(x, draws))

    def wake_terms(self, x: Tensor, draws: Draws) -> Terms:
        """Compute the terms of a batch `x` [N, ...]."""
        encoded = self.posterior.encode(x, draws)
        z = self.posterior.sample_encoded(encoded, 1, draws).z[0]
        rows, first = distributed.whole_batch(len(z), draws)
        target = self.model.prior.sample(rows, draws=first, dtype=z.dtype, device=z.device)
        values = {"reconstruction": -self.model.log_likelihood(x, z), "mmd": ops.mmd(distributed.gathered(z), target, self.sigmas).square()}
        return with_pairs(Terms(values, {"reconstruction": 1.0, "mmd": self.weight}), self.pair_fit, x, encoded, draws)
