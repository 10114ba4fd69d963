"""Gradients of the denoiser's weights from the states and the gradients of its outputs: each step of each row by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast._operands import ChainOperands
from ddvi_fast.precision import narrowed, without_autocast
from ddvi_fast.reference.chain import ChainWeights


def weight_gradients(operands: ChainOperands, trajectory: Tensor, signs: Tensor, d_output: Tensor) -> tuple[Tensor, ...]:
    """Gradients of first, hidden, last, last_bias and time_table.

    Args:
        operands: Operands of the chain.
        trajectory: States [T + 1, .., R, D], start first.
        signs: Signs of the ReLUs, int32 [T, .., R, 4, H / 32], in the order of the trajectory.
        d_output: Gradients of the network's outputs [T, .., R, D], in the order of the trajectory.
    """
    weights = ChainWeights(*operands.differentiable.weights)
    with without_autocast(trajectory.device):
        if operands.starts is None:
            return _summed(operands, weights, trajectory[:-1], d_output)
        places = torch.arange(len(operands.order), device=trajectory.device)
        of_sorted = torch.searchsorted(operands.starts, places, right=True) - 1
        groups = torch.empty_like(operands.order).scatter(0, operands.order, of_sorted).unsqueeze(-1)
        parts = []
        for group in range(len(operands.starts) - 1):
            own = ChainWeights(*(weight[group] for weight in weights))
            parts.append(_summed(operands, own, trajectory[:-1], torch.where(groups == group, d_output, 0.0)))
        return tuple(torch.stack(values) for values in zip(*parts, strict=True))


def _summed(operands: ChainOperands, weights: ChainWeights, states: Tensor, d: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the weights of one network, or of several on a leading axis, from states and output gradients [T, .., R, D]."""
    context, hidden = operands.context, narrowed(weights.hidden, operands.precision)
    inputs = states if context is None else torch.cat((states, context.expand(*states.shape[:-1], -1)), -1)
    biases = weights.time_table.flip(-3).movedim(-3, 0).unsqueeze(-3)  # [T, .., 1, 4, H]

    def low(value: Tensor) -> Tensor:
        return narrowed(value, operands.precision)

    x1 = torch.relu(inputs @ weights.first.mT + biases[..., 0, :])
    x2 = torch.relu(low(x1) @ hidden[..., 0, :, :].mT + biases[..., 1, :])
    x3 = torch.relu(low(x2) @ hidden[..., 1, :, :].mT + biases[..., 2, :])
    joined = x3 + x1 if operands.residual else x3
    x4 = torch.relu(low(joined) @ hidden[..., 2, :, :].mT + biases[..., 3, :])
    d4 = d @ weights.last * (x4 > 0)
    d_joined = low(d4) @ hidden[..., 2, :, :]
    d3 = d_joined * (x3 > 0)
    d2 = low(d3) @ hidden[..., 1, :, :] * (x2 > 0)
    d1 = low(d2) @ hidden[..., 0, :, :]
    d1 = (d1 + d_joined if operands.residual else d1) * (x1 > 0)
    pairs = ((d2, x1), (d3, x2), (d4, joined))
    of_hidden = torch.stack([(low(gradient).mT @ low(x)).sum(0) for gradient, x in pairs], -3)
    of_table = torch.stack([gradient.sum(-2) for gradient in (d1, d2, d3, d4)], -2).flip(0).movedim(0, -3)
    return (d1.mT @ inputs).sum(0), of_hidden, (d.mT @ x4).sum(0), d.sum((0, -2)), of_table
