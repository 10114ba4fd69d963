"""The inverse autoregressive flow posterior (Kingma et al. 2016), with the released code's update."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid

from ddvi_fast.networks import linear as make_linear
from ddvi_fast.posteriors.flows import Flow
from ddvi_fast.rng import Draws

_OPEN = 2.0  # added to the initial gates: a step starts near the identity instead of halving what comes in (Kingma et al. 2016)


class AutoregressiveStep(nn.Module):
    """`y = sigmoid(s) z + (1 - sigmoid(s)) t`, where `s_i` and `t_i` are a masked network's outputs from `z_j`, `j > i`.

    The context enters the first layer. With `reverse` the dimensions of `y` are turned round for the next step.

    Args:
        latent_dim: D.
        context_dim: C.
        hidden_dim: width of the three hidden layers.
        reverse: turn the dimensions round.
        draws: where the initial weights are drawn.
        open_gates: start near the identity; else, as the released code does, halve what comes in.
    """

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
        """`(y, log |det dy/dz|)` of `z` [.., N, D] with context [N, C]: shapes [.., N, D] and [.., N]."""
        gate, shift = self._gate_and_shift(z, context)
        open_share = torch.sigmoid(gate)
        y = open_share * z + (1 - open_share) * shift
        return (y.flip(-1) if self.reverse else y), logsigmoid(gate).sum(-1)

    def inverse(self, y: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """`(z, log |det dy/dz|)` of `y`, one dimension after the other, the last first."""
        y = y.flip(-1) if self.reverse else y
        z = torch.zeros_like(y)
        for _ in range(self.latent_dim):  # pass k makes the last k dimensions right
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
    """A diagonal Gaussian carried through autoregressive steps, the dimensions turned round after every second one.

    Args:
        encoder, context_encoder, latent_dim: as in `Flow`.
        context_dim: C.
        num_steps: autoregressive steps.
        draws: where the initial weights are drawn.
        open_gates: start near the Gaussian; else, as the released code does, with half open gates.

    Example:
        >>> from ddvi_fast import networks
        >>> posterior = IAF(networks.MLP(5, [8], 4), networks.MLP(5, [8], 3), latent_dim=2, context_dim=3)
        >>> posterior.sample(torch.zeros(6, 5), num_samples=7).log_ratio.shape
        torch.Size([7, 6])
    """

    def __init__(
        self,
        encoder: nn.Module,
        context_encoder: nn.Module | None,
        latent_dim: int,
        context_dim: int = 10,
        num_steps: int = 4,
        draws: Draws = Draws(0),
        open_gates: bool = True,
    ) -> None:
        super().__init__(encoder, context_encoder, latent_dim, autoregressive_steps(latent_dim, context_dim, num_steps, draws, open_gates=open_gates))


def autoregressive_steps(
    latent_dim: int, context_dim: int, num_steps: int, draws: Draws, hidden_dim: int = 128, open_gates: bool = True
) -> list[nn.Module]:
    """Steps that turn the dimensions round after every second one."""
    return [
        AutoregressiveStep(latent_dim, context_dim, hidden_dim, reverse=step % 2 == 1, draws=draws.importance(step), open_gates=open_gates)
        for step in range(num_steps)
    ]


def _masks(latent_dim: int, hidden_dim: int) -> list[Tensor]:
    """Masks of the four layers (Germain et al. 2015): output `i` sees inputs `j > i` alone."""
    inputs = torch.arange(latent_dim, 0, -1)
    hidden = torch.arange(hidden_dim) % max(1, latent_dim - 1) + 1
    outputs = inputs.repeat(2)
    first, inner = hidden.unsqueeze(1) >= inputs, hidden.unsqueeze(1) >= hidden
    # In one dimension nothing may depend on anything but the context, which the hidden units carry.
    last = (outputs.unsqueeze(1) > hidden) if latent_dim > 1 else torch.ones(2, hidden_dim, dtype=torch.bool)
    first = first if latent_dim > 1 else torch.zeros_like(first)
    return [mask.float() for mask in (first, inner, inner, last)]
