"""What the problems of `operations` share: inputs, sides with named gradients, noise for the compiled baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bench.problem import Side
from ddvi_fast import rng
from ddvi_fast.rng import Draws

FLOAT = 4  # bytes
DRAWS = Draws(7)  # of what the operations draw themselves


def normals(stream: int, *shape: int, device: torch.device) -> Tensor:
    """Inputs: standard normals that depend on nothing but their shape and `stream`."""
    rows = shape if len(shape) > 1 else (1, *shape)
    return rng.normal(Draws(1), rows, rng.OBSERVATION + stream, device=device).reshape(shape)


def tracked(inputs: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The inputs, those that take gradients as leaves of their own."""
    return {key: value.detach().clone().requires_grad_() if key in names else value for key, value in inputs.items()}


def simple(outputs: Callable[[], dict[str, Tensor]], leaves: Mapping[str, Tensor], names: Sequence[str]) -> Side:
    """A side whose gradients are those of named inputs."""
    return Side(outputs, [leaves[name] for name in names], lambda gradients: dict(zip(names, gradients, strict=True)))


def drawn_outside(compiled: bool, like: Tensor) -> Tensor | None:
    """Noise for the compiled baseline on a CPU: the normals that torch.compile makes inside a CPU kernel take a hundred times longer."""
    return torch.randn_like(like) if compiled and like.device.type == "cpu" else None
