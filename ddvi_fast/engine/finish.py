"""The end of each update's loss on a device: its sum, the means of its terms, and which of them are not finite, without a read back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ddvi_fast import _backend
from ddvi_fast.dense import on_device
from ddvi_fast.objectives import Terms


class Finish:
    """Sums the terms of losses, and remembers on the device which terms were not finite.

    Args:
        device: Device of the losses.

    Attributes:
        found: 1.0 from the first loss on that is not finite, which makes Adam leave out its steps; a scalar on the device.
        one: The gradient of a loss, 1.0, a scalar on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.found, self.one = (torch.full((), value, device=device) for value in (0.0, 1.0))
        self._lost: dict[tuple[str, ...], Tensor] = {}
        self._constants: dict[tuple[float, ...], Tensor] = {}

    def __call__(self, terms: Terms) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the means of its terms."""
        values = list(terms.values.values())
        lost = self._lost_of(tuple(terms.values))
        rows = values[0].shape
        if on_device(values[0]) and len(rows) == 1 and all(value.shape == rows and value.dtype == torch.float32 for value in values):
            return self._fused(terms, lost)
        loss = terms.total()
        bad = torch.stack([~torch.isfinite(value.detach()).all() for value in values])
        lost.copy_(torch.maximum(lost, bad.float()))
        self.found.copy_(torch.maximum(self.found, torch.maximum(lost.any().float(), (~torch.isfinite(loss.detach())).float())))
        return loss, terms.means()

    def any_lost(self) -> bool:
        """Whether a loss was not finite; it waits for the device."""
        return bool(self.found)

    def lost(self) -> list[str]:
        """Names of the terms that were not finite."""
        flags = {name: bool(flag) for names, lost in self._lost.items() for name, flag in zip(names, lost, strict=True) if flag}
        return list(flags)

    def _lost_of(self, names: tuple[str, ...]) -> Tensor:
        if names not in self._lost:
            self._lost[names] = torch.zeros(len(names), device=self.found.device)
        return self._lost[names]

    def _fused(self, terms: Terms, lost: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        # A weight of zero on the host saves the gradient of its term.
        values = [value.detach() if _is_zero(terms.weights[name]) else value for name, value in terms.values.items()]
        matrix = values[0].unsqueeze(0) if len(values) == 1 else torch.stack(values)
        total, means = _Finish.apply(matrix.contiguous(), self._weights([terms.weights[name] for name in terms.values]), lost, self.found)
        return total, dict(zip(terms.values, means.unbind(), strict=True))

    def _weights(self, weights: list[float | Tensor]) -> Tensor:
        """The weights as a tensor; numbers of the host reach the device as arguments of launches, and are kept."""
        if any(isinstance(weight, Tensor) for weight in weights):
            return torch.stack([weight if isinstance(weight, Tensor) else self._constant((weight,))[0] for weight in weights])
        return self._constant(tuple(weights))

    def _constant(self, values: tuple[float, ...]) -> Tensor:
        if values in self._constants:
            return self._constants[values]
        made = torch.stack([torch.full((), value, device=self.found.device) for value in values])
        if len(self._constants) < _MOST:  # none is dropped, as a recorded step may read it
            self._constants[values] = made
        return made


_MOST = 64  # tuples of weights that are kept


class _Finish(torch.autograd.Function):
    """The kernels as an autograd function of the terms [K, N]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, lost: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        total, means = _backend.implementation("triton", "terms").forward(values, weights, lost, found)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(means)
        ctx.save_for_backward(weights)
        ctx.rows = values.shape[1]
        return total, means

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return _backend.implementation("triton", "terms").backward(upstream, *ctx.saved_tensors, ctx.rows), None, None, None


def _is_zero(weight: float | Tensor) -> bool:
    return not isinstance(weight, Tensor) and weight == 0
