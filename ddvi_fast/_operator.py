"""Helpers to register custom operators with torch.library: autograd, contiguity, refusal of second derivatives.

An operator cannot give None or one of its inputs back: what is absent is an empty tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _checks


class Operator:
    """An operator of `torch.library`, ``ddvi_fast::name``, called as one where somebody follows the operators that run.

    Its call costs as much as the kernels of a small batch do, so elsewhere the same computation runs as a plain autograd function.

    Args:
        schema: ``name(...) -> ...``.
        compute: on any device.
        fake: its version for shapes alone.
    """

    def __init__(self, schema: str, compute: Callable, fake: Callable) -> None:
        name, arguments = schema.split("(", 1)
        torch.library.define(f"ddvi_fast::{name}", f"({arguments}", tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(f"ddvi_fast::{name}", "default", compute)
        torch.library.register_fake(f"ddvi_fast::{name}", fake)
        self._overload = getattr(torch.ops.ddvi_fast, name).default
        self._compute, self._function, self._refuses = compute, None, False

    def __call__(self, *inputs: Any) -> Any:
        if watched(*inputs) or (self._refuses and torch.is_grad_enabled()):
            return self._overload(*inputs)
        if self._function is None or not torch.is_grad_enabled():
            return self._compute(*inputs)
        return self._function.apply(*inputs)

    def differentiate(self, setup: Callable, backward: Callable) -> None:
        """Give it its gradient. Upstream gradients that do not exist arrive as None, and no memory is filled with zeros for them."""

        def lazily(ctx: Any, inputs: tuple, output: Any) -> None:
            ctx.set_materialize_grads(False)
            setup(ctx, inputs, output)

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = self._compute(*inputs)
            lazily(ctx, inputs, output)
            return output

        torch.library.register_autograd(self._overload, backward, setup_context=lazily)
        # Not with a `setup_context` of its own, for which autograd inspects the signature of `forward` at every call.
        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._function = type(self._overload.name(), (torch.autograd.Function,), members)

    def first_derivative_only(self) -> None:
        """Let the gradient of a backward operator be an error: without a rule second derivatives would be silently zero."""

        def refuse(ctx: Any, *upstream: Any) -> None:
            _checks.fail("create_graph", "False, as the fused kernels have first derivatives only", True, "use the reference backend")

        torch.library.register_autograd(self._overload, refuse)
        self._refuses = True


def contiguous(*values: Tensor | None) -> list[Tensor | None]:
    """Operands as kernels read them."""
    return [None if value is None else value.contiguous() for value in values]


def filled(values: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """Gradients as an operator gives them: empty where nobody needs one."""
    return [like.new_empty(0) if value is None else value for value in values]


def kept(values: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    """Gradients as autograd takes them: None where nobody needs one."""
    return [value if need else None for value, need in zip(values, needed, strict=True)]


def shapes_of(needed: Sequence[bool], values: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """Fake gradients of some inputs, in the shape of each."""
    return [
        torch.empty(value.shape, dtype=like.dtype, device=like.device) if need else like.new_empty(0)
        for need, value in zip(needed, values, strict=True)
    ]


def watched(*inputs: Any) -> bool:
    """Whether somebody follows the operators that run: a compiler, a recording, inputs that are no plain tensors. Then kernels must be operators."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or any(map(_unusual, inputs))


def numbers(values: Sequence[float] | Tensor, argument: str, like: Tensor) -> Tensor:
    """Positive numbers as a tensor beside `like`; those of the host reach a device as arguments of kernels, without waiting for it."""
    if isinstance(values, Tensor):
        made = values.to(like)
    elif len(values) == 0 or like.device.type == "cpu":
        made = torch.tensor(values, dtype=like.dtype)
    else:
        made = torch.cat([torch.full((1,), value, dtype=like.dtype, device=like.device) for value in values])
    _checks.require(made.dim() == 1 and len(made) >= 1, argument, "a sequence of positive numbers", values)
    _checks.require(not _checks.readable(made) or bool((made > 0).all()), argument, "a sequence of positive numbers", values)
    return made


def _unusual(value: Any) -> bool:
    """Tensors of shapes alone, and those with dispatch of their own."""
    return isinstance(value, Tensor) and (value.is_meta or type(value) not in (Tensor, nn.Parameter))
