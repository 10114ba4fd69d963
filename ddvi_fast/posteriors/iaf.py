"""Inverse autoregressive flow posterior (Kingma et al. 2016), with the update of the released code."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid

from ddvi_fast import _checks
from ddvi_fast.networks import linear as make_linear
from ddvi_fast.posteriors.flows import Flow
from ddvi_fast.priors import Prior
from ddvi_fast.rng import Draws

_OPEN = 2.0  # added to the biases of the gates, so that a step starts near the identity (Kingma et al. 2016)


class AutoregressiveStep(nn.Module):
    """Autoregressive step `y = sigmoid(s) z + (1 - sigmoid(s)) t`; a masked network computes `s_i` and `t_i` from `z_j`, `j > i`.

    Args:
        latent_dim: Number of latent dimensions, D (int).
        context_dim: Size of the context, C (int), which enters the first layer.
        hidden_dim: Width of the three hidden layers (int, default 128).
        reverse: Reverse the order of the dimensions of y for the next step (bool, default False).
        draws: Position of the initial weights in the random stream (default `Draws(0)`).
        open_gates: Start near the identity (bool, default True). The released code starts with half-open gates.
    """

    @_checks.typed
    def __init__(
        self, latent_dim: int, context_dim: int, hidden_dim: int = 128, reverse: bool = False, draws: Draws = Draws(0), open_gates: bool = True
    ) -> None:
        super().__init__()
        self.latent_dim, self.context_dim, self.reverse = latent_dim, context_dim, reverse
        widths = [latent_dim, hidden_dim, hidden_dim, hidden_dim, 2 * latent_dim]
        self.layers = nn.ModuleList(make_linear(*pair, draws, layer) for layer, pair in enumerate(itertools.pairwise(widths)))
        self.context_layer = make_linear(context_dim, hidden_dim, draws, len(self.layers))
        if open_gates:
            with torch.no_grad():
                self.layers[-1].bias[:latent_dim] += _OPEN
        for layer, mask in enumerate(_masks(latent_dim, hidden_dim)):
            self.register_buffer(f"mask{layer}", mask, persistent=False)

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return y [.., N, D] and `log |det dy/dz|` [.., N] of `z` [.., N, D] with context [N, C]."""
        gate, shift = self._gate_and_shift(z, context)
        open_share = torch.sigmoid(gate)
        y = open_share * z + (1 - open_share) * shift
        return (y.flip(-1) if self.reverse else y), logsigmoid(gate).sum(-1)

    def inverse(self, y: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return z [.., N, D] and `log |det dy/dz|` [.., N] of `y` [.., N, D], one dimension after the other, the last first."""
        y = y.flip(-1) if self.reverse else y
        z = torch.zeros_like(y)
        for _ in range(self.latent_dim):  # after pass k the last k dimensions are correct
            gate, shift = self._gate_and_shift(z, context)
            open_share = torch.sigmoid(gate)
            z = (y - (1 - open_share) * shift) / open_share
        return z, logsigmoid(gate).sum(-1)

    def _gate_and_shift(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self._masked(0, z) + self.context_layer(context))
        for layer in (1, 2):
            hidden = torch.relu(self._masked(layer, hidden))
        return self._masked(3, hidden).chunk(2, dim=-1)

    def _masked(self, layer: int, x: Tensor) -> Tensor:
        return linear(x, self.layers[layer].weight * getattr(self, f"mask{layer}"), self.layers[layer].bias)


class IAF(Flow):
    """Diagonal Gaussian transformed by autoregressive steps, with the order of dimensions reversed after every second one (Kingma et al. 2016).

    Args:
        encoder: Network called as `encoder(x, draws)`, from x [N, ...] to [N, 2 D]: mean, then log-variance of the Gaussian.
        context_encoder: Network called as `context_encoder(x, draws)`, from x to [N, C]; None if the encoder's output ends with the
            context, [N, 2 D + C].
        latent_dim: Number of latent dimensions, D (int).
        context_dim: Size of the context, C (int, default 10).
        num_steps: Number of autoregressive steps (int, default 4).
        draws: Position of the initial weights in the random stream (default `Draws(0)`).
        open_gates: Start near the Gaussian (bool, default True). The released code starts with half-open gates.
        coordinates: Coordinates of the family, see `Posterior` (default ``latent``).
        prior: Prior of the latents, for the prior's coordinates.

    Raises:
        InputError: If `num_steps` is below 1.

    Example:
        >>> from ddvi_fast import networks
        >>> posterior = IAF(networks.MLP(5, [8], 4), networks.MLP(5, [8], 3), latent_dim=2, context_dim=3)
        >>> posterior.sample(torch.zeros(6, 5), num_samples=7).log_ratio.shape
        torch.Size([7, 6])
    """

    @_checks.typed
    def __init__(
        self, encoder: nn.Module, context_encoder: nn.Module | None, latent_dim: int, context_dim: int = 10, num_steps: int = 4,
        draws: Draws = Draws(0), open_gates: bool = True, coordinates: str = "latent", prior: Prior | None = None,
    ) -> None:  # fmt: skip
        _checks.at_least(1, latent_dim=latent_dim, context_dim=context_dim)
        steps = autoregressive_steps(latent_dim, context_dim, num_steps, draws, open_gates=open_gates)
        super().__init__(encoder, context_encoder, latent_dim, steps, coordinates, prior)


def autoregressive_steps(
    latent_dim: int, context_dim: int, num_steps: int, draws: Draws, hidden_dim: int = 128, open_gates: bool = True
) -> list[nn.Module]:
    """Make steps of which every second one reverses the order of the dimensions."""
    return [
        AutoregressiveStep(latent_dim, context_dim, hidden_dim, reverse=step % 2 == 1, draws=draws.importance(step), open_gates=open_gates)
        for step in range(num_steps)
    ]


def _masks(latent_dim: int, hidden_dim: int) -> list[Tensor]:
    """Masks of the four layers (Germain et al. 2015): output `i` depends on inputs `j > i` only."""
    inputs = torch.arange(latent_dim, 0, -1, device="cpu")
    hidden = torch.arange(hidden_dim, device="cpu") % max(1, latent_dim - 1) + 1
    outputs = inputs.repeat(2)
    first, inner = hidden.unsqueeze(1) >= inputs, hidden.unsqueeze(1) >= hidden
    # In one dimension the outputs depend on the context only, through the hidden units.
    last = (outputs.unsqueeze(1) > hidden) if latent_dim > 1 else torch.ones(2, hidden_dim, dtype=torch.bool, device="cpu")
    first = first if latent_dim > 1 else torch.zeros_like(first)
    return [mask.float() for mask in (first, inner, inner, last)]
