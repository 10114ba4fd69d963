"""Embedding of several independent observations of the same parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.networks import MLP
from ddvi_fast.rng import Draws
from ddvi_fast.standardization import Columns


class SetEmbedding(nn.Module):
    """Network for sets of independent observations, for the argument `embedding` of `fit_posterior`.

    The features do not depend on the order of the observations, and their number may differ from one call to the next: in simulations, and in the
    data of the posterior. `simulate(n)` should draw a number for each call. The features are `h(s) + A s` with
    `s = (mean_i g(x_i), mean_i x_i, log m, 1 / m)` for m observations, networks g and h, and a matrix A (Zaheer et al. 2017): many observations
    determine parameters almost linearly. The columns of the observations are standardized by the first simulations.

    Args:
        inputs: Numbers of one observation, P (int). Data are [m, P], or [m] if it is 1; rows of them [N, m, P] or [N, m].
        features: Number of features (int, default 32).
        width: Width of the hidden layers and of the pooled vector (int, default 64).
        seed: Seed of the initial weights (int, default 0).

    Raises:
        InputError: If a size is no positive integer.

    Example:
        >>> embedding = SetEmbedding(inputs=2, features=8)
        >>> embedding(torch.zeros(5, 3, 2)).shape, embedding(torch.zeros(5, 100, 2)).shape
        (torch.Size([5, 8]), torch.Size([5, 8]))
    """

    def __init__(self, inputs: int, features: int = 32, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        sizes = {"inputs": inputs, "features": features, "width": width}
        self.inputs, features, width = (_checks.integer(size, name, 1) for name, size in sizes.items())
        draws = Draws(_checks.integer(seed, "seed"))
        self.each = MLP(self.inputs, [width], width, activation="silu", draws=draws)
        self.pooled = MLP(width + self.inputs + 2, [width], features, activation="silu", draws=draws.importance(1))
        self.linear = MLP(width + self.inputs + 2, [], features, draws=draws.importance(2))
        self.register_buffer("shift", torch.zeros(self.inputs, dtype=torch.float32, device="cpu"))
        self.register_buffer("scale", torch.ones(self.inputs, dtype=torch.float32, device="cpu"))

    def standardize(self, x: Tensor) -> None:
        """Take location and spread of the columns from observations [N, m, P] or [N, m]."""
        columns = Columns.of(self._observations(x).reshape(-1, self.inputs))
        self.shift.copy_(columns.center), self.scale.copy_(columns.scale)

    def forward(self, x: Tensor) -> Tensor:
        """Compute features [N, features] of observations [N, m, P] or [N, m].

        Raises:
            InputError: If the shape is another one, or if there are no observations.
        """
        x = (self._observations(x) - self.shift) / self.scale
        count = x.shape[1]
        number = x.new_tensor([count]).log(), x.new_tensor([1 / count])
        summary = torch.cat((self.each(x).mean(1), x.mean(1), torch.cat(number).expand(len(x), 2)), 1)
        return self.pooled(summary) + self.linear(summary)

    def _observations(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(-1) if x.dim() == 2 and self.inputs == 1 else x
        fits = x.dim() == 3 and x.shape[2] == self.inputs and x.shape[1] >= 1
        _checks.require(fits, "x", f"observations [N, m, {self.inputs}] with m >= 1", x)
        return x


def data_shape(x: Tensor, embedding: nn.Module | None) -> tuple[int | None, ...]:
    """Return the shape of the data of one of the rows `x`; None for the number of observations of a set."""
    return (None, *x.shape[2:]) if isinstance(embedding, SetEmbedding) else tuple(x.shape[1:])


def fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Tell whether data of `shape` are of the shape `wanted`, in which None is any number."""
    return len(shape) == len(wanted) and all(want is None or have == want for have, want in zip(shape, wanted, strict=True))


def shown(shape: Sequence[int | None]) -> str:
    """Return a shape for messages."""
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"
