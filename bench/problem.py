"""One case of a benchmark: its inputs, the providers that compute it, the check that each provider must pass, and the work that it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddvi_fast import rng, use_backend
from ddvi_fast.rng import Draws
from ddvi_fast.testing import assert_within_budget, upstream_gradient

CHECKED_ROWS = 256
# Tolerances: relative to the largest value for float32 sums in another order, relative to the norm for two bf16 operands that are rounded.
FLOOR, FLOOR_BF16 = 1e-5, 4e-3
SOUND = 1e-3  # largest distance of float32 from float64, relative to the norm
KINKED = 0.01  # share of the elements of a gradient that kinks may change
FLOAT = 4  # bytes
DRAWS = Draws(7)  # of what the operations draw themselves

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Work:
    """Minimal work: floating-point operations of useful matrix products, bytes read and written, exponentials.

    Inputs are read once and outputs written once; what a backward pass computes again is not counted.
    """

    flops: float = 0.0
    bytes: float = 0.0
    exponentials: float = 0.0


@dataclass(frozen=True)
class Side:
    """One way to compute an operation.

    Args:
        outputs: Function that computes the named outputs.
        leaves: Tensors that take gradients.
        named: Function that gives the gradients of `leaves` their names.
    """

    outputs: Callable[[], Outputs]
    leaves: Sequence[Tensor]
    named: Callable[[Sequence[Tensor]], Outputs]


class Problem:
    """A case as `run`, `memory` and the device check use it.

    Args:
        device: Device of the inputs.
        backward: Whether forward and backward pass are computed, or the forward pass alone.
    """

    work: Work

    def __init__(self, device: torch.device, backward: bool) -> None:
        self.device, self.backward = device, backward

    def provider(self, name: str) -> Callable[[], object]:
        """The function to time."""
        raise NotImplementedError

    def check(self, name: str) -> None:
        """Raise an AssertionError if `provider(name)` computes wrong numbers."""
        raise NotImplementedError


class Operation(Problem):
    """A fused operation whose rows are independent of each other, except for gradients of shared tensors.

    Large problems are therefore checked quickly: the provider runs at full size with an upstream gradient that is zero except for the last
    rows, and the others compute those rows alone.

    A subclass sets `inputs`, `row_axis` (axis of the rows of each input and output that has rows), `tracked` (inputs that take gradients),
    `work`, and `modules` if the operation has weights; it defines `eager` and `ours`.
    """

    inputs: dict[str, Tensor]
    row_axis: Mapping[str, int]
    tracked: Sequence[str]
    modules: Mapping[str, nn.Module] = {}  # our network, by "float32" and "float64"

    def __init__(self, device: torch.device, backward: bool, rows: int) -> None:
        super().__init__(device, backward)
        self.rows, self.kept = rows, min(rows, CHECKED_ROWS)
        self._known: dict[str, Outputs] = {}

    def eager(self, wrap: Callable, compiled: bool) -> Callable[[Mapping[str, Tensor], Tensor | None], Outputs]:
        """The baseline, a function of inputs and noise; it draws if the noise is None. `wrap` compiles a function, or leaves it as it is."""
        raise NotImplementedError

    def ours(self, inputs: Mapping[str, Tensor], draws: Draws, module: nn.Module | None) -> Outputs:
        """The public operation."""
        raise NotImplementedError

    def noise(self, inputs: Mapping[str, Tensor], draws: Draws) -> Tensor | None:
        """The noise that `ours` draws; None if it draws none."""
        return None

    def eager_parameters(self) -> Sequence[nn.Parameter]:
        """Weights of the baseline."""
        return []

    def named_gradients(self, gradients: Sequence[Tensor]) -> Outputs:
        """Gradients of the baseline's weights under the names of ours."""
        return {}

    def provider(self, name: str) -> Callable[[], object]:
        side = self._our_side(self.inputs, DRAWS) if name.startswith("ours") else self._eager_side(self.inputs, name == "compiled", checked=False)
        bf16 = name.endswith("bf16")

        def forward() -> object:
            with torch.no_grad(), self._precision(bf16):
                return side.outputs()

        upstream = list(_upstream(forward()).values()) if self.backward else []

        def forward_and_backward() -> object:
            with self._precision(bf16):
                outputs = side.outputs()
            return torch.autograd.grad(list(outputs.values()), side.leaves, upstream)

        return forward_and_backward if self.backward else forward

    def check(self, name: str) -> None:
        bf16 = name.endswith("bf16")
        # The reference computes the noise of the others, and not the kernels under test.
        with use_backend("reference"):
            exact, plain = self._exact(), self._plain(bf16)
            require_sound(self._plain(bf16=False), exact)
            got = plain if name == "eager" else {}
            if name == "compiled":
                got = self._results(self._eager_side(self._last_rows(), compiled=True, checked=True))
        if name.startswith("ours"):
            got = self._results(self._our_side(self.inputs, DRAWS), bf16, self.kept)
        for key, value in got.items():
            compare(value, plain[key], exact[key], bf16, key)

    def _our_side(self, inputs: Mapping[str, Tensor], draws: Draws, kind: str = "float32") -> Side:
        leaves, module = self._leaves(inputs), self.modules.get(kind)
        weights = {} if module is None else dict(module.named_parameters())
        names = [*leaves, *weights]
        return Side(
            lambda: self.ours({**inputs, **leaves}, draws, module),
            [*leaves.values(), *weights.values()],
            lambda gradients: dict(zip(names, gradients, strict=True)),
        )

    def _eager_side(self, inputs: Mapping[str, Tensor], compiled: bool, checked: bool) -> Side:
        leaves = self._leaves(inputs)
        function = self.eager((lambda function: torch.compile(function, dynamic=False)) if compiled else (lambda function: function), compiled)
        noise = self.noise(inputs, self._last_draws()) if checked else None
        return Side(
            lambda: function({**inputs, **leaves}, noise),
            [*leaves.values(), *self.eager_parameters()],
            lambda gradients: {**dict(zip(leaves, gradients, strict=False)), **self.named_gradients(gradients[len(leaves) :])},
        )

    def _leaves(self, inputs: Mapping[str, Tensor]) -> Outputs:
        return {name: inputs[name].detach().clone().requires_grad_() for name in self.tracked}

    def _exact(self) -> Outputs:
        """The reference in float64, computed once."""
        if "exact" not in self._known:
            doubled = {key: value.double() if value.is_floating_point() else value for key, value in self._last_rows().items()}
            self._known["exact"] = self._results(self._our_side(doubled, self._last_draws(), "float64"))
        return self._known["exact"]

    def _plain(self, bf16: bool) -> Outputs:
        """Plain PyTorch in the provider's precision, computed once; its error sets the tolerance."""
        key = "bf16" if bf16 else "float32"
        if key not in self._known:
            self._known[key] = self._results(self._eager_side(self._last_rows(), compiled=False, checked=True), bf16)
        return self._known[key]

    def _results(self, side: Side, bf16: bool = False, kept: int | None = None) -> Outputs:
        """Outputs and gradients on the CPU; of a side that computes all rows, those of the last `kept` rows."""
        with torch.set_grad_enabled(self.backward), self._precision(bf16):
            outputs = side.outputs()
        found = {key: self._cut(key, value, kept) for key, value in outputs.items()}
        if self.backward:
            upstream = [self._padded(key, last, outputs[key]) for key, last in _upstream(found).items()]
            gradients = side.named(torch.autograd.grad(list(outputs.values()), side.leaves, upstream))
            found |= {f"gradient of {key}": self._cut(key, value, kept) for key, value in gradients.items()}
        return {key: value.detach().cpu() for key, value in found.items()}

    def _last_rows(self) -> Outputs:
        return {key: self._cut(key, value, self.kept) for key, value in self.inputs.items()}

    def _last_draws(self) -> Draws:
        return DRAWS.advance(self.rows - self.kept)

    def _cut(self, key: str, value: Tensor, kept: int | None) -> Tensor:
        """The last `kept` rows of a tensor that has rows."""
        axis = self.row_axis.get(key)
        return value if axis is None or kept is None else value.narrow(axis, value.shape[axis] - kept, kept)

    def _padded(self, key: str, last: Tensor, like: Tensor) -> Tensor:
        """`last` in its place among zeros of the shape of `like`."""
        full = torch.zeros_like(like)
        self._cut(key, full, None if last.shape == like.shape else self.kept).copy_(last)
        return full

    def _precision(self, bf16: bool) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def compare(got: Tensor, plain: Tensor, exact: Tensor, bf16: bool, name: str, floor: float = FLOOR, bf16_floor: float = FLOOR_BF16) -> None:
    """Raise unless `got` is at most about twice as far from `exact` as `plain` is.

    In float32 every element is compared. A state that is rounded to the other side of a kink changes the gradients of its row, so that of a
    gradient one element in a hundred may differ if the norm of the difference is at most `SOUND` of that of `exact`. In bf16 the norm alone is
    compared.
    """
    if not bf16:
        errors, allowed = (got - exact).abs(), 2 * (plain - exact).abs().max() + floor * exact.abs().max()
        few = (errors <= allowed).double().mean() >= 1 - KINKED and errors.norm() <= SOUND * exact.norm()
        if "gradient" not in name or not few:
            assert_within_budget(got, plain, exact, floor=floor, name=name)
        return
    error, allowed = (got - exact).norm(), 2 * (plain - exact).norm() + bf16_floor * exact.norm()
    assert error <= allowed, f"{name}: off by {float(error):.3g} in norm, allowed {float(allowed):.3g}"


def require_sound(plain: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> None:
    """Raise if the baseline itself is wrong, as its error would then allow anything. Norms are compared, because long chains amplify roundings."""
    for key, value in exact.items():
        error, allowed = (plain[key] - value).norm(), SOUND * value.norm()
        assert error <= allowed, f"{key} of the baseline: off by {float(error):.3g} in norm, allowed {float(allowed):.3g}"


def normals(stream: int, *shape: int, device: torch.device) -> Tensor:
    """Standard normal inputs that depend only on their shape and `stream`."""
    rows = shape if len(shape) > 1 else (1, *shape)
    return rng.normal(Draws(1), rows, rng.OBSERVATION + stream, device=device).reshape(shape)


def drawn_outside(compiled: bool, like: Tensor) -> Tensor | None:
    """Noise for the compiled baseline on a CPU: the normals that torch.compile makes inside a CPU kernel take a hundred times longer."""
    return torch.randn_like(like) if compiled and like.device.type == "cpu" else None


def _upstream(outputs: Mapping[str, Tensor]) -> Outputs:
    """Random upstream gradients, the same for every provider."""
    return {key: upstream_gradient(value.detach().float(), seed=number).to(value) for number, (key, value) in enumerate(outputs.items())}
