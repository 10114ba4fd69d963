"""Base class of posteriors with auxiliary latent variables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddvi_fast.posteriors.base import Posterior, frozen_parameters
from ddvi_fast.rng import Draws


class AuxiliaryPosterior(Posterior):
    """Base class of posteriors over `z` and auxiliary variables `u`, with `log_ratio = log r(u | z, x) - log q(u, z | x)`.

    A family implements `path_log_prob` and `reverse_log_prob` instead of `log_ratio`. The auxiliary model `r` is part of the target of
    inference (Ranganath et al. 2016), so a doubly reparametrized gradient must not hold it constant.
    """

    def path_log_prob(self, encoded: Any, path: Tensor) -> Tensor:
        """Compute `log q(u, z | x)` [K, N] in nats of latent paths [S, K, N, D], with the paths as constants."""
        raise NotImplementedError

    def reverse_log_prob(self, encoded: Any, path: Tensor) -> Tensor:
        """Compute `log r(u | z, x)` [K, N] in nats of latent paths [S, K, N, D]."""
        raise NotImplementedError

    def log_ratio(self, encoded: Any, path: Tensor) -> Tensor:
        return self.reverse_log_prob(encoded, path) - self.path_log_prob(encoded, path)

    def forward(self, x: Tensor, path: Tensor, draws: Draws | None = None, with_reverse: bool = True) -> Tensor:
        """Compute the log-ratio [K, N] as in `Posterior`, or `-log q(u, z | x)` unless `with_reverse`."""
        encoded = self.encode(x, draws)
        return self.log_ratio_of_unwhitened(encoded, path, self.log_ratio if with_reverse else self._without_reverse)

    def _without_reverse(self, encoded: Any, path: Tensor) -> Tensor:
        return -self.path_log_prob(encoded, path)

    def frozen_log_ratio(self, x: Tensor, path: Tensor, draws: Draws | None = None) -> Tensor:
        """Compute the log-ratio as in `Posterior`; the parameters of the auxiliary model are not held constant."""
        density = torch.func.functional_call(self, frozen_parameters(self), (x, path, draws), {"with_reverse": False})
        encoded = self.encode(x, draws)
        return density + self.reverse_log_prob(encoded, self.whitened_path(encoded, path))
