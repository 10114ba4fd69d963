"""Posteriors over more than the latents: what is drawn on the way is guessed back by an auxiliary model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddvi_fast.posteriors.base import Posterior
from ddvi_fast.rng import Draws


class AuxiliaryPosterior(Posterior):
    """`log_ratio = log r(u | z, x) - log q(u, z | x)` for auxiliary variables `u`: the rest of a latent path.

    A family writes `path_log_prob` and `reverse_log_prob` in place of `log_ratio`. The auxiliary model `r` belongs to the target, not to
    the posterior, so a doubly reparametrised gradient must not hold it fixed.
    """

    def path_log_prob(self, encoded: Any, path: Tensor) -> Tensor:
        """`log q(u, z | x)` [K, N] of a latent path [S, K, N, D], treating the path as data."""
        raise NotImplementedError

    def reverse_log_prob(self, encoded: Any, path: Tensor) -> Tensor:
        """`log r(u | z, x)` [K, N] of a latent path."""
        raise NotImplementedError

    def log_ratio(self, encoded: Any, path: Tensor) -> Tensor:
        return self.reverse_log_prob(encoded, path) - self.path_log_prob(encoded, path)

    def forward(self, x: Tensor, path: Tensor, draws: Draws | None = None, with_reverse: bool = True) -> Tensor:
        """As in `Posterior`; minus `log q` alone unless `with_reverse`."""
        encoded = self.encode(x, draws)
        return self.log_ratio(encoded, path) if with_reverse else -self.path_log_prob(encoded, path)

    def frozen_log_ratio(self, x: Tensor, path: Tensor, draws: Draws | None = None) -> Tensor:
        """As in `Posterior`, but the auxiliary model keeps its gradient."""
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        density = torch.func.functional_call(self, frozen, (x, path, draws), {"with_reverse": False})
        return density + self.reverse_log_prob(self.encode(x, draws), path)
