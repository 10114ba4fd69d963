"""The map out of the encoder's frame with the density that it changes, and the density of a standard normal start.

One launch on a device, plain PyTorch elsewhere.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _backend
from ddvi_fast._operator import Part
from ddvi_fast.dense import on_device


def standard_log_prob(u: Tensor) -> Tensor:
    """Compute log N(u; 0, I) [...] in nats of `u` [..., D]."""
    return -0.5 * u.square().sum(-1) - 0.5 * u.shape[-1] * math.log(2 * math.pi)


def fused_placement(encoded: Any, y: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor] | None:
    """`u = mean + exp(log_var / 2) y` of `y` [.., N, D], and `log_ratio + log N(u; 0, I) + sum(log_var) / 2` [.., N].

    They are None where the kernels cannot compute them.
    """
    mean, log_var = encoded.mean, encoded.log_var
    shaped = mean.shape == log_var.shape == y.shape[-mean.dim() :] and log_ratio.shape == y.shape[:-1]
    if not shaped or getattr(encoded, "frame_factor", None) is not None or not _fits(mean, log_var, y, log_ratio):
        return None
    width = y.shape[-1]
    u, ratio = _placed(*(value.reshape(-1, width) for value in (mean, log_var, y)), log_ratio.flatten())
    return u.view(y.shape), ratio.view(log_ratio.shape)


def less_standard_log_prob(path: Tensor, start: Tensor) -> Tensor:
    """`path - log N(start; 0, I)` [..] of starts [.., D]."""
    if not _fits(path, start) or path.shape != start.shape[:-1]:
        return path - standard_log_prob(start)
    return _less_standard(start.reshape(-1, start.shape[-1]), path.flatten()).view(path.shape)


def _fits(*values: Tensor) -> bool:
    return on_device(values[0]) and all(value.dtype == torch.float32 for value in values)


def _plain_placed(mean: Tensor, log_var: Tensor, y: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    u = (mean + torch.exp(0.5 * log_var) * y.unflatten(0, (-1, len(mean)))).flatten(0, 1)
    return u, (standard_log_prob(u) + log_ratio + 0.5 * log_var.sum(-1).repeat(len(u) // len(mean)))


def _forward(mean: Tensor, log_var: Tensor, y: Tensor, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    rows = (value if value.stride(1) == 1 else value.contiguous() for value in (mean, log_var))
    return _backend.implementation("triton", "frame").forward(*rows, y.contiguous(), log_ratio.contiguous())


def _backward(inputs, results, upstream, needed):
    _, log_var, y, _ = inputs
    log_var = log_var if log_var.stride(1) == 1 else log_var.contiguous()
    return *_backend.implementation("triton", "frame").backward(*upstream, log_var, y.contiguous(), results[0]), upstream[1]


_placed = Part("Placed", _plain_placed, _forward, _backward)
_less_standard = Part(
    "LessStandard",
    lambda start, path: path - standard_log_prob(start),
    lambda start, path: _backend.implementation("triton", "frame").standard(start.contiguous(), path.contiguous()),
    lambda inputs, results, upstream, needed: (upstream[0].unsqueeze(1) * inputs[0] if needed[0] else None, upstream[0]),
)
