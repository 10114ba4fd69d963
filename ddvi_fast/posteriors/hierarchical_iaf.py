"""Hierarchical posterior with auxiliary latents above `z` and an inverse autoregressive flow at every level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, ops, rng
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors.auxiliary import AuxiliaryPosterior
from ddvi_fast.posteriors.base import Encoded, encode_with_context, require_encoders, split_mean_log_var, with_context
from ddvi_fast.posteriors.flows import inverse_transform, transform
from ddvi_fast.posteriors.iaf import autoregressive_steps
from ddvi_fast.priors import Prior
from ddvi_fast.rng import Draws


class Level(nn.Module):
    """One level `q(y | above, x)`: a Gaussian whose parameters depend on the level above and the context, transformed by autoregressive steps.

    Args:
        latent_dim: Number of latent dimensions, D (int).
        inputs: Size of the condition: the context, preceded by the level above if there is one (int).
        hidden_dim: Width of the hidden layers (int).
        num_steps: Number of autoregressive steps (int).
        draws: Position of the initial weights in the random stream.
        open_gates: Start near the Gaussian (bool, default True).
    """

    @_checks.typed
    def __init__(self, latent_dim: int, inputs: int, hidden_dim: int, num_steps: int, draws: Draws, open_gates: bool = True) -> None:
        super().__init__()
        self.head = MLP(inputs, [hidden_dim], 2 * latent_dim, draws=draws)
        self.steps = nn.ModuleList(autoregressive_steps(latent_dim, inputs, num_steps, draws.importance(1), hidden_dim, open_gates))

    def base(self, condition: Tensor, top: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the Gaussian; `top` [N, 2 D] or None is added to the network's output."""
        output = self.head(condition)
        return split_mean_log_var(output if top is None else output + top)


class HierarchicalIAF(AuxiliaryPosterior):
    """Hierarchical posterior `q(y_1, ..., y_L | x) = prod_l q(y_l | y_{l-1}, x)` with `z = y_L` and auxiliary levels above it.

    An auxiliary model `r(y_{l-1} | y_l, x)` (Ranganath et al. 2016, Maaloe et al. 2016) makes the bound one on log p(x), as for every other
    family: `log_ratio = sum_l log r(y_{l-1} | y_l, x) - sum_l log q(y_l | y_{l-1}, x)`.

    Args:
        encoder: Network called as `encoder(x, draws)`, from x [N, ...] to [N, 2 D]: mean, then log-variance of the
            Gaussian of `z`, to which the output of the level above is added.
        context_encoder: Network called as `context_encoder(x, draws)`, from x to [N, C]; None if the encoder's output ends with the
            context.
        latent_dim: Number of dimensions of every level, D (int).
        context_dim: Size of the context, C (int, default 10).
        num_levels: Number of levels including `z`, L (int, default 2).
        num_steps: Autoregressive steps of each level (int, default 2).
        hidden_dim: Width of all hidden layers (int, default 64).
        draws: Position of the initial weights in the random stream (default `Draws(0)`).
        open_gates: Start near the Gaussian (bool, default True), as in `IAF`.
        coordinates: Coordinates of the family, see `Posterior` (default ``latent``).
        prior: Prior of the latents, for the prior's coordinates.

    Raises:
        InputError: If `num_levels` is below 2 or `num_steps` below 1.

    Example:
        >>> from ddvi_fast import networks
        >>> posterior = HierarchicalIAF(networks.MLP(5, [8], 4), networks.MLP(5, [8], 3), latent_dim=2, context_dim=3)
        >>> sample = posterior.sample(torch.zeros(6, 5), num_samples=7)
        >>> sample.z.shape, sample.log_ratio.shape
        (torch.Size([7, 6, 2]), torch.Size([7, 6]))
    """

    @_checks.typed
    def __init__(
        self, encoder: nn.Module, context_encoder: nn.Module | None, latent_dim: int, context_dim: int = 10, num_levels: int = 2, num_steps: int = 2,
        hidden_dim: int = 64, draws: Draws = Draws(0), open_gates: bool = True,
        coordinates: str = "latent", prior: Prior | None = None,
    ) -> None:  # fmt: skip
        _checks.at_least(1, latent_dim=latent_dim, context_dim=context_dim, hidden_dim=hidden_dim, num_levels=num_levels)
        super().__init__(coordinates, prior)
        _checks.require(num_levels >= 2, "num_levels", "at least 2 (with 1 it is IAF)", num_levels)
        _checks.require(num_steps >= 1, "num_steps", "at least 1", num_steps)
        require_encoders(encoder=encoder, context_encoder=context_encoder)
        self.encoder, self.context_encoder, self.latent_dim = encoder, context_encoder, latent_dim
        widths = [context_dim] + [context_dim + latent_dim] * (num_levels - 1)
        places = [draws.importance(number * (num_steps + 2)) for number in range(num_levels)]
        self.levels = nn.ModuleList(
            Level(latent_dim, width, hidden_dim, num_steps, place, open_gates) for width, place in zip(widths, places, strict=True)
        )
        self.reverse = nn.ModuleList(
            MLP(context_dim + latent_dim, [hidden_dim], 2 * latent_dim, draws=place.importance(num_steps + 1)) for place in places[1:]
        )

    def encode(self, x: Tensor, draws: Draws | None = None) -> Encoded:
        """Return mean and log-variance [N, D] of the Gaussian of `z`, and the context [N, C]."""
        return encode_with_context(self, x, draws)

    def draw(self, encoded: Encoded, num_samples: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Draw samples as in `Posterior`, without inverting the flows."""
        path, log_q = self._descend(encoded, num_samples, draws)
        return path[-1], self.reverse_log_prob(encoded, path) - log_q

    def latent_path(self, encoded: Encoded, num_samples: int, draws: Draws) -> Tensor:
        """Draw all levels [L, K, N, D], `z` last."""
        return self._descend(encoded, num_samples, draws)[0]

    def path_log_prob(self, encoded: Encoded, path: Tensor) -> Tensor:
        total = torch.zeros_like(path[-1][..., 0])
        for number, level in enumerate(self.levels):
            condition = self._condition(encoded, None if number == 0 else path[number - 1])
            start, log_det = inverse_transform(level.steps, path[number], condition)
            total = total + ops.gaussian_log_prob(start, *self._base(encoded, number, condition)) - log_det
        return total

    def _descend(self, encoded: Encoded, num_samples: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """Draw the path [L, K, N, D] and compute its log-density [K, N]."""
        path: list[Tensor] = []
        log_q = torch.zeros((), dtype=encoded.mean.dtype, device=encoded.mean.device)
        for number, level in enumerate(self.levels):
            condition = self._condition(encoded, path[-1] if path else None)
            mean, log_var = self._base(encoded, number, condition)
            # z uses the stream START like the other families, the levels above it the next ones.
            stream = rng.START + len(self.levels) - 1 - number
            noise = rng.normal(draws, (num_samples, *encoded.mean.shape), stream, device=mean.device, dtype=mean.dtype)
            start = mean + torch.exp(0.5 * log_var) * noise
            y, log_det = transform(level.steps, start, condition)
            log_q = log_q + ops.gaussian_log_prob(start, mean, log_var) - log_det
            path.append(y)
        return torch.stack(path), log_q

    def reverse_log_prob(self, encoded: Encoded, path: Tensor) -> Tensor:
        """Compute `sum_l log r(y_{l-1} | y_l, x)` [K, N] in nats."""
        parts = [
            ops.gaussian_log_prob(above, *split_mean_log_var(net(self._condition(encoded, below))))
            for net, above, below in zip(self.reverse, path[:-1], path[1:], strict=True)
        ]
        return torch.stack(parts).sum(0)

    def _base(self, encoded: Encoded, number: int, condition: Tensor) -> tuple[Tensor, Tensor]:
        top = torch.cat(self.start(encoded), -1) if number == len(self.levels) - 1 else None
        return self.levels[number].base(condition, top)

    @staticmethod
    def _condition(encoded: Encoded, y: Tensor | None) -> Tensor:
        """The context [N, C], preceded by the level above, `y` [K, N, D], if there is one."""
        return encoded.context if y is None else with_context(y, encoded.context)
