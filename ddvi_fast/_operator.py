"""Helpers to register custom operators with torch.library: autograd, fake tensors, contiguity."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _checks


class Operator:
    """A custom operator ``ddvi_fast::name``, which runs as a plain autograd function where nothing needs the dispatcher.

    The dispatch of a custom operator costs as much as the kernels of a small batch, so it is left out where `needs_dispatch` allows it.

    Args:
        schema: Schema ``name(...) -> ...`` of torch.library; the last argument is the backend.
        compute: Function of the schema's arguments, which gets contiguous tensors. A result may be None. The dispatcher and autograd take no
            None, so that with them it becomes an empty tensor.
        fake: Version of `compute` for fake tensors.
        backward: Function that computes gradients. Its arguments are those of the schema without the backend, the results named by `saved`,
            the upstream gradients of the differentiable results (None where there is none), flags that say which gradients are needed,
            and the backend. It returns a gradient or None for each of `gradients_of`. It becomes the operator ``ddvi_fast::name_backward``.
        gradients_of: Names of the arguments that have a gradient.
        saved: Positions of the results that `backward` reads.
        constant: Positions of the results that have no gradient.
    """

    def __init__(
        self,
        schema: str,
        compute: Callable,
        fake: Callable,
        backward: Callable | None = None,
        gradients_of: Sequence[str] = (),
        saved: Sequence[int] = (),
        constant: Sequence[int] = (),
    ) -> None:
        name, arguments = schema.split("(", 1)
        torch.library.define(f"ddvi_fast::{name}", f"({arguments}", tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(f"ddvi_fast::{name}", "default", self._run)
        torch.library.register_fake(f"ddvi_fast::{name}", fake)
        self._overload = getattr(torch.ops.ddvi_fast, name).default
        self._compute, self._function, self._refuses = compute, None, False
        if backward is not None:
            self._saved, self._constant = saved, constant
            self._define_backward(name, arguments.split(")")[0].split(", "), backward, gradients_of)

    def __call__(self, *inputs: Any) -> Any:
        if needs_dispatch(*inputs) or (self._refuses and torch.is_grad_enabled()):
            return self._overload(*inputs)
        if self._function is None or not torch.is_grad_enabled():
            return self._compute(*contiguous(*inputs))
        return self._function.apply(*inputs)

    def _run(self, *inputs: Any) -> Any:
        """The results for the dispatcher and for autograd, which take no None."""
        results = self._compute(*contiguous(*inputs))
        if isinstance(results, Tensor) or not any(value is None for value in results):
            return results
        like = _first_tensor(inputs)
        return type(results)(like.new_empty(0) if value is None else value for value in results)

    def _define_backward(self, name: str, arguments: list[str], backward: Callable, gradients_of: Sequence[str]) -> None:
        """Define the backward operator, and the autograd rule that calls it."""
        positions = [[argument.split()[1] for argument in arguments].index(each) for each in gradients_of]
        upstream_names = [f"Tensor? upstream_{i}" for i in range(len(self._overload._schema.returns)) if i not in self._constant]
        parts = [*arguments[:-1], *(f"Tensor result_{i}" for i in self._saved), *upstream_names]

        def fake(*inputs: Any) -> list[Tensor]:
            needed, like = inputs[-2], _first_tensor(inputs)
            return [_fake_gradient(inputs[position], like) if need else like.new_empty(0) for position, need in zip(positions, needed, strict=True)]

        schema = f"{name}_backward({', '.join(parts)}, bool[] needed, str backend) -> Tensor[]"
        operator = Operator(schema, lambda *inputs: list(backward(*inputs)), fake)
        operator._refuse_gradient()

        def differentiate(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
            gradients: list[Tensor | None] = [None] * len(arguments)
            given = [value for i, value in enumerate(upstream) if i not in self._constant]
            if any(value is not None for value in given):
                needed, saved = [ctx.needs_input_grad[position] for position in positions], ctx.saved_tensors
                tensors, kept = saved[: len(arguments)], saved[len(arguments) :]
                *inputs, backend = (other if value is None else value for value, other in zip(tensors, ctx.others, strict=True))
                found = operator(*inputs, *kept, *given, needed, backend)
                for position, need, value in zip(positions, needed, found, strict=True):
                    gradients[position] = value if need else None
            return tuple(gradients)

        def forward(ctx: Any, *inputs: Any) -> Any:
            inputs = tuple(contiguous(*inputs))  # also kept, so that the backward pass need not copy again
            output = self._run(*inputs)
            self._save(ctx, inputs, output)
            return output

        torch.library.register_autograd(self._overload, differentiate, setup_context=self._save)
        # Without a `setup_context` of its own, for which autograd would inspect the signature of `forward` at every call.
        members = {"forward": staticmethod(forward), "backward": staticmethod(differentiate)}
        self._function = type(self._overload.name(), (torch.autograd.Function,), members)

    def _save(self, ctx: Any, inputs: tuple, output: Any) -> None:
        """Keep the inputs and the `saved` results for the backward pass; missing upstream gradients stay None instead of zeros."""
        results = output if isinstance(output, tuple) else (output,)
        ctx.set_materialize_grads(False)
        if self._constant:
            ctx.mark_non_differentiable(*(results[i] for i in self._constant))
        tensors = [value if isinstance(value, Tensor) else None for value in inputs]
        ctx.save_for_backward(*tensors, *(results[i] for i in self._saved))
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]

    def _refuse_gradient(self) -> None:
        """Make the gradient of a backward operator an error: without a rule, second derivatives would be zero without a warning."""

        def refuse(ctx: Any, *upstream: Any) -> None:
            _checks.fail("create_graph", "False, as the fused kernels have first derivatives only", True, "use the reference backend")

        torch.library.register_autograd(self._overload, refuse)
        self._refuses = True


class Part:
    """A small part of a training step on a device: kernels for its values and first derivatives, in place of many launches.

    Args:
        name: Name of its node in the graph of autograd.
        plain: The same in plain PyTorch, which has derivatives of every order: a function of tensors, and of constants that follow them.
        forward: Function of the same arguments that launches kernels; it returns as many results.
        backward: Function `(inputs, results, upstream, needed)` that launches kernels. The upstream gradients may be None, the others are
            contiguous; `needed` says which tensors need a gradient. It returns a gradient or None for each of the tensors.
        constant: Positions of the results that have no gradient.
    """

    def __init__(self, name: str, plain: Callable, forward: Callable, backward: Callable, constant: Sequence[int] = ()) -> None:
        def run(ctx: Any, *inputs: Any) -> Any:
            found = forward(*inputs)
            results = found if isinstance(found, tuple) else (found,)
            ctx.set_materialize_grads(False)
            ctx.mark_non_differentiable(*(results[i] for i in constant))
            ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in inputs), *results)
            ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
            return found

        def differentiate(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
            kept, needed = ctx.saved_tensors[: len(ctx.others)], ctx.needs_input_grad
            inputs = [other if value is None else value for value, other in zip(kept, ctx.others, strict=True)]
            if all(value is None for value in upstream):
                return (None,) * len(inputs)
            if torch.is_grad_enabled():  # a second derivative
                return _plain_gradients(plain, inputs, upstream, needed)
            given = [None if value is None else value.contiguous() for value in upstream]
            found = backward(inputs, ctx.saved_tensors[len(ctx.others) :], given, needed)
            return *found, *(None,) * (len(inputs) - len(found))

        members = {"forward": staticmethod(run), "backward": staticmethod(differentiate)}
        self._function: Any = type(name, (torch.autograd.Function,), members)

    def __call__(self, *inputs: Any) -> Any:
        return self._function.apply(*inputs)


def _plain_gradients(plain: Callable, inputs: Sequence[Any], upstream: Sequence[Tensor | None], needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Gradients of a function in plain PyTorch, which can be differentiated again."""
    results = plain(*inputs)
    pairs = zip(results if isinstance(results, tuple) else (results,), upstream, strict=True)
    outputs, given = zip(*((result, value) for result, value in pairs if value is not None and result.requires_grad), strict=True)
    wanted = [value for value, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(outputs, wanted, given, create_graph=True, allow_unused=True))
    return tuple(next(found) if need else None for need in needed)


def contiguous(*values: Any) -> list[Any]:
    """The same values, with contiguous tensors."""
    return [value.contiguous() if type(value) not in _NUMBERS and isinstance(value, Tensor) else value for value in values]


def broadcast_shapes(*shapes: Sequence[int]) -> torch.Size:
    """`torch.broadcast_shapes` without its cost, which is that of many tensor operations."""
    if torch.compiler.is_compiling():
        return torch.broadcast_shapes(*shapes)
    result = [1] * max(map(len, shapes), default=0)
    for shape in shapes:
        for axis in range(-len(shape), 0):
            if shape[axis] != 1 and result[axis] not in (1, shape[axis]):
                return torch.broadcast_shapes(*shapes)  # which raises
            result[axis] = shape[axis] if result[axis] == 1 else result[axis]
    return torch.Size(result)


def needs_dispatch(*inputs: Any) -> bool:
    """Whether operators must run through torch's dispatcher: under a compiler, a dispatch mode, or with tensors that are not plain ones."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    for value in inputs:  # `any` of a generator takes twice as long
        kind = type(value)
        if kind is Tensor or kind is nn.Parameter:
            if value.is_meta:
                return True
        elif kind not in _NUMBERS and isinstance(value, Tensor):
            return True
    return False


_NUMBERS = frozenset((type(None), bool, int, float, str))  # for a quick answer: asking whether a number is a tensor takes longer


def positive_tensor(values: Sequence[float] | Tensor, argument: str, like: Tensor) -> Tensor:
    """Positive numbers as a 1-D tensor of the dtype and device of `like`.

    Numbers from the host reach a device as kernel arguments, without a synchronization.
    """
    expected = "a sequence of positive numbers"
    if isinstance(values, Tensor):
        made = _checks.valued(_checks.tensor(values, argument, floating=False), argument).to(like)
    elif isinstance(values, (str, bytes, dict, set, frozenset)) or not hasattr(values, "__len__") or not all(_positive(value) for value in values):
        _checks.fail(argument, expected, values)
    elif len(values) == 0 or like.device.type == "cpu":
        made = torch.tensor(values, dtype=like.dtype, device=like.device)
    else:
        made = torch.cat([torch.full((1,), value, dtype=like.dtype, device=like.device) for value in values])
    _checks.require(made.dim() == 1 and len(made) >= 1, argument, expected, values)
    _checks.require(not _checks.readable(made) or bool((made > 0).all()), argument, expected, values)
    return made


def _positive(value: Any) -> bool:
    if type(value) is float:  # which the general question takes long to find out
        return 0 < value < math.inf
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 < value < math.inf


def _first_tensor(values: Sequence[Any]) -> Tensor:
    return next(value for value in values if isinstance(value, Tensor))


def _fake_gradient(value: Tensor, like: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=like.dtype, device=like.device)
