"""Encoders and decoders, and how weights start: from counter-based draws, never from a hidden generator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, rng
from ddvi_fast.rng import Draws

ACTIVATIONS = {"relu": torch.relu, "leaky_relu": lambda x: nn.functional.leaky_relu(x, 0.2), "silu": nn.functional.silu, "tanh": torch.tanh}


def uniform_(parameter: Tensor, low: float, high: float, draws: Draws, layer: int) -> None:
    """Fill `parameter` [..] from U(low, high), from its own stream: `INITIAL + layer`."""
    flat = rng.uniform(draws, (1, parameter.numel()), rng.INITIAL + layer)
    with torch.no_grad():
        parameter.copy_((low + (high - low) * flat).view_as(parameter))


def linear(inputs: int, outputs: int, draws: Draws, layer: int, zero: bool = False) -> nn.Linear:
    """A linear layer with torch's default distribution, U(+-1/sqrt(inputs)), or zeros."""
    module = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = 0.0 if zero else 1 / math.sqrt(inputs)
    uniform_(module.weight, -bound, bound, draws, 2 * layer)
    uniform_(module.bias, -bound, bound, draws, 2 * layer + 1)
    return module


def take_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [...] of `table` [M, W], as [..., W].

    Plain indexing would add up its gradient from several threads at once, in an order that changes from run to run.
    """
    return nn.functional.embedding(index, table)


def dropout(x: Tensor, rate: float, draws: Draws | None, layer: int) -> Tensor:
    """Drop each value with probability `rate`; without draws (evaluation) nothing is dropped."""
    if draws is None or rate == 0:
        return x
    kept = rng.uniform(draws, tuple(x.shape), rng.DROPOUT + layer, device=x.device, dtype=x.dtype) >= rate
    return x * kept / (1 - rate)


class MLP(nn.Module):
    """A plain multilayer perceptron on flattened inputs.

    Args:
        inputs, hidden, outputs: widths.
        activation: ``relu``, ``leaky_relu`` (slope 0.2), ``silu`` or ``tanh``.
        dropout: rate after each hidden layer, in force only where `forward` is given draws.
        draws: where the initial weights are drawn; networks of one model need different ones.
        zero_output: start the last layer at zero.

    Example:
        >>> MLP(64, [256, 256], 4)(torch.zeros(3, 8, 8)).shape
        torch.Size([3, 4])
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        activation: str = "relu",
        dropout: float = 0.0,
        draws: Draws = Draws(0),
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        self.activation = _checks.choice(activation, ACTIVATIONS, "activation")
        _checks.require(0 <= dropout < 1, "dropout", "a rate in [0, 1)", dropout)
        self.dropout, self.inputs = dropout, inputs
        widths = [inputs, *hidden, outputs]
        last = len(widths) - 2
        self.layers = nn.ModuleList(
            linear(before, after, draws, layer, zero=zero_output and layer == last)
            for layer, (before, after) in enumerate(itertools.pairwise(widths))
        )

    def forward(self, x: Tensor, draws: Draws | None = None) -> Tensor:
        """[N, ...] flattened to [N, inputs] -> [N, outputs]; leading axes are kept if the last one already is `inputs` wide."""
        hidden = x if x.shape[-1] == self.inputs else x.flatten(1)
        for index, layer in enumerate(self.layers[:-1]):
            hidden = dropout(ACTIVATIONS[self.activation](layer(hidden)), self.dropout, draws, index)
        return self.layers[-1](hidden)
