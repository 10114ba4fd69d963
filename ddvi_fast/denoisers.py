"""Time-conditioned networks of the denoising chain."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.networks import uniform_
from ddvi_fast.precision import as_float32
from ddvi_fast.reference.chain import ChainWeights, denoise, time_rows
from ddvi_fast.rng import Draws


class ResidualMLP(nn.Module):
    """Four layers that each add a learned embedding of the timestep before their ReLU, then a linear layer to `D`.

    With a context the input is `[y, context]` and the first hidden layer is added to the third, as in the released code.

    Args:
        latent_dim: Number of latent dimensions D, at least 1.
        context_dim: Number of context columns C; 0 for an unconditional denoiser.
        num_steps: Number of timesteps T, at least 2.
        hidden_dim: Width H of the four layers (default 128).
        groups: Number G of independent networks side by side, such as class-conditional chains or seeds (default None: one network without
            a group axis).
        residual: Whether to add the first hidden layer to the third (default None: if there is a context).
        zero_output: Whether the last layer and the embeddings start at zero, so that an untrained chain only scales its state (default False).
        time_features: Number of slow cosines along the chain from which the embeddings are made, so that the steps of a long chain also
            learn from their neighbors; at most T are used (default None: a free embedding for each step).
        draws: Random numbers of the initial weights (default `Draws(0)`).

    Raises:
        InputError: A size is too small.

    Example:
        >>> denoiser = ResidualMLP(latent_dim=2, context_dim=3, num_steps=10, groups=4)
        >>> denoiser(torch.zeros(4, 5, 2), torch.zeros(4, 5, 3), torch.zeros(4, 5, dtype=torch.int64)).shape
        torch.Size([4, 5, 2])
    """

    @_checks.typed
    def __init__(
        self,
        latent_dim: int,
        context_dim: int,
        num_steps: int,
        hidden_dim: int = 128,
        groups: int | None = None,
        *,
        residual: bool | None = None,
        zero_output: bool = False,
        time_features: int | None = None,
        draws: Draws = Draws(0),
    ) -> None:
        super().__init__()
        _checks.require(latent_dim >= 1, "latent_dim", "at least 1", latent_dim)
        _checks.at_least(1, hidden_dim=hidden_dim)
        _checks.require(context_dim >= 0, "context_dim", "at least 0", context_dim)
        _checks.require(num_steps >= 2, "num_steps", "at least 2", num_steps)
        _checks.require(groups is None or groups >= 1, "groups", "None or at least 1", groups)
        _checks.require(time_features is None or time_features >= 1, "time_features", "None or at least 1", time_features)
        self.latent_dim, self.context_dim, self.num_steps = latent_dim, context_dim, num_steps
        self.hidden_dim, self.groups = hidden_dim, groups
        self.residual = context_dim > 0 if residual is None else residual
        lead, inputs = (() if groups is None else (groups,)), latent_dim + context_dim
        self.first = nn.Parameter(torch.zeros(*lead, hidden_dim, inputs, **as_float32))
        self.hidden = nn.Parameter(torch.zeros(*lead, 3, hidden_dim, hidden_dim, **as_float32))
        self.bias = nn.Parameter(torch.zeros(*lead, 4, hidden_dim, **as_float32))
        features = None if time_features is None else _cosines(num_steps, min(time_features, num_steps))
        self.register_buffer("time_features", features, persistent=False)
        self.embedding = nn.Parameter(torch.zeros(*lead, num_steps if features is None else features.shape[1], 4, hidden_dim, **as_float32))
        self.last = nn.Parameter(torch.zeros(*lead, latent_dim, hidden_dim, **as_float32))
        self.last_bias = nn.Parameter(torch.zeros(*lead, latent_dim, **as_float32))
        self._initialize(draws, zero_output)

    def _initialize(self, draws: Draws, zero_output: bool) -> None:
        """Draw weights as torch does for linear layers, hidden biases within 1/sqrt(H), and embeddings uniform in [0, 1), as the released code."""
        narrow, wide = 1 / math.sqrt(self.latent_dim + self.context_dim), 1 / math.sqrt(self.hidden_dim)
        bounds = {self.first: narrow, self.hidden: wide, self.bias: wide}
        if not zero_output:
            bounds |= {self.last: wide, self.last_bias: wide}
        for layer, (parameter, bound) in enumerate(bounds.items()):
            uniform_(parameter, -bound, bound, draws, layer)
        if not zero_output:
            alike = self.embedding if self.time_features is None else self.embedding[..., :1, :, :]  # all steps start alike
            uniform_(alike, 0, 1, draws, len(bounds) + 1)

    def chain_weights(self) -> ChainWeights:
        """The weights of the fused chain, with the biases folded into the time table."""
        embedding = self.embedding if self.time_features is None else torch.einsum("tf,...flh->...tlh", self.time_features, self.embedding)
        bias = self.bias if self.groups is None else self.bias.unsqueeze(-3)
        return ChainWeights(self.first, self.hidden, self.last, self.last_bias, embedding + bias)

    def check_context(self, context: Tensor | None) -> None:
        """Check that a context has the denoiser's width, or that there is none for a denoiser without context."""
        if self.context_dim == 0:
            _checks.require(context is None, "context", "None, for a denoiser without context", context)
        else:
            _checks.tensor(context, "context")
            fits = context.dim() >= 1 and context.shape[-1] == self.context_dim
            _checks.require(fits, "context", f"shape [.., N, {self.context_dim}]", context)

    def forward(self, y: Tensor, context: Tensor | None, t: Tensor) -> Tensor:
        """Predict at given states and timesteps.

        Args:
            y: States [.., N, D]; [G, .., N, D] for a grouped denoiser, like the other arguments.
            context: Contexts [.., N, C], or None for a denoiser without context.
            t: 0-based timesteps, int64 [.., N].

        Returns:
            Predictions of the shape of `y`.
        """
        self.check_context(context)
        weights = self.chain_weights()
        lead = y.shape[:1] if weights.grouped else ()
        flat = [None if value is None else value.reshape(*lead, -1, value.shape[-1]) for value in (y, context)]
        return denoise(*flat, weights, time_rows(weights.time_table, t.reshape(*lead, -1)), self.residual).reshape(y.shape)

    def extra_repr(self) -> str:
        names = ("latent_dim", "context_dim", "num_steps", "hidden_dim", "groups")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def _cosines(num_steps: int, count: int) -> Tensor:
    """The `count` slowest cosines over the steps of a chain, [num_steps, count]; the first is constant.

    Example:
        >>> _cosines(4, 2)
        tensor([[ 1.0000,  0.9239],
                [ 1.0000,  0.3827],
                [ 1.0000, -0.3827],
                [ 1.0000, -0.9239]])
    """
    place = (torch.arange(num_steps, **as_float32) + 0.5) / num_steps
    return torch.cos(math.pi * place.unsqueeze(1) * torch.arange(count, **as_float32))


class StepView:
    """A denoiser restricted to some of its timesteps, for a chain with fewer steps."""

    def __init__(self, denoiser: ResidualMLP, steps: Tensor) -> None:
        self._denoiser, self._steps = denoiser, steps
        self.num_steps = len(steps)

    def __getattr__(self, name: str):
        return getattr(self._denoiser, name)

    def at(self, part: slice) -> StepView:
        """The denoiser at a part of these steps."""
        return StepView(self._denoiser, self._steps[part])

    def chain_weights(self) -> ChainWeights:
        """The weights of the whole denoiser, with the chosen rows of the time table."""
        weights = self._denoiser.chain_weights()
        return weights._replace(time_table=weights.time_table[..., self._steps, :, :])

    def __call__(self, y: Tensor, context: Tensor | None, t: Tensor) -> Tensor:
        return self._denoiser(y, context, self._steps[t])
