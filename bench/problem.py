"""One operation at one size: inputs, the providers that compute it, the check that each must pass, and the work it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddvi_fast import use_backend
from ddvi_fast.testing import assert_within_budget, upstream_gradient

PROVIDERS = {
    "eager": "PyTorch, step by step",
    "compiled": "the same under torch.compile",
    "ours": "ddvi_fast, float32",
    "ours_bf16": "ddvi_fast, hidden layers in bf16",
}
CHECKED_ROWS = 256
# Relative to the largest value, for float32 sums in another order; relative to the length, for two bf16 operands that round.
FLOOR, FLOOR_BF16 = 1e-5, 4e-3
SOUND = 1e-3  # how near to float64 the baseline must be in float32


@dataclass(frozen=True)
class Work:
    """What must be done at the least: operations of useful matrix products, bytes in and out of memory, exponentials.

    Inputs are read once and outputs written once; what a backward pass recomputes does not count as useful.
    """

    flops: float = 0.0
    bytes: float = 0.0
    exponentials: float = 0.0


@dataclass(frozen=True)
class Side:
    """One way to compute: named outputs when called, the tensors that take gradients, and the names of those gradients."""

    outputs: Callable[[], dict[str, Tensor]]
    leaves: Sequence[Tensor]
    gather: Callable[[Sequence[Tensor]], dict[str, Tensor]]


class Problem:
    """What `run`, `memory` and the device check need to know of a case.

    Args:
        device: where the inputs stand.
        backward: forward and backward, or forward alone.
    """

    work: Work

    def __init__(self, device: torch.device, backward: bool) -> None:
        self.device, self.backward = device, backward

    def provider(self, name: str) -> Callable[[], object]:
        """What is timed."""
        raise NotImplementedError

    def check(self, name: str) -> None:
        """Raise an AssertionError if what `provider(name)` computes is wrong."""
        raise NotImplementedError


class Operation(Problem):
    """A fused operation whose rows do not depend on each other, except through gradients of what they share.

    So large problems can be checked against float64 quickly: the provider runs at full size with an upstream gradient that is zero
    but for the last rows, and the others compute those rows alone.

    A subclass sets `inputs`, `row_axis` (the axis of the rows, for those inputs and outputs that have rows) and `work`, and builds
    the three sides.
    """

    inputs: dict[str, Tensor]
    row_axis: Mapping[str, int]

    def __init__(self, device: torch.device, backward: bool, rows: int) -> None:
        super().__init__(device, backward)
        self.rows, self.kept = rows, min(rows, CHECKED_ROWS)
        self._known: dict[str, dict[str, Tensor]] = {}

    def eager(self, inputs: Mapping[str, Tensor], compiled: bool, checked: bool) -> Side:
        """The baseline; `checked` hands it the noise that the others draw."""
        raise NotImplementedError

    def ours(self) -> Side:
        """The public operation on all rows."""
        raise NotImplementedError

    def exact(self, inputs: Mapping[str, Tensor]) -> Side:
        """The specification on float64 inputs."""
        raise NotImplementedError

    def provider(self, name: str) -> Callable[[], object]:
        side = self.ours() if name.startswith("ours") else self.eager(self.inputs, name == "compiled", checked=False)
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
        # What the others are given in place of their own noise comes from the formula, not from the kernels under test.
        with use_backend("reference"):
            exact, plain = self._exact(), self._plain(bf16)
            require_sound(self._plain(bf16=False), exact)
            got = plain if name == "eager" else {}
            if name == "compiled":
                got = self._results(self.eager(self._last_rows(), compiled=True, checked=True))
        if name.startswith("ours"):
            got = self._results(self.ours(), bf16, self.kept)
        for key, value in got.items():
            compare(value, plain[key], exact[key], bf16, key)

    def _exact(self) -> dict[str, Tensor]:
        """The specification in float64, computed once."""
        if "exact" not in self._known:
            doubled = {key: value.double() if value.is_floating_point() else value for key, value in self._last_rows().items()}
            self._known["exact"] = self._results(self.exact(doubled))
        return self._known["exact"]

    def _plain(self, bf16: bool) -> dict[str, Tensor]:
        """Plain PyTorch in the provider's precision, computed once: its error is the yardstick."""
        key = "bf16" if bf16 else "float32"
        if key not in self._known:
            self._known[key] = self._results(self.eager(self._last_rows(), compiled=False, checked=True), bf16)
        return self._known[key]

    def _results(self, side: Side, bf16: bool = False, kept: int | None = None) -> dict[str, Tensor]:
        """Outputs and gradients, on the CPU; of a side that computes all rows, what concerns the last `kept` of them."""
        with torch.set_grad_enabled(self.backward), self._precision(bf16):
            outputs = side.outputs()
        found = {key: self._cut(key, value, kept) for key, value in outputs.items()}
        if self.backward:
            upstream = [self._padded(key, last, outputs[key]) for key, last in _upstream(found).items()]
            gradients = side.gather(torch.autograd.grad(list(outputs.values()), side.leaves, upstream))
            found |= {f"gradient of {key}": self._cut(key, value, kept) for key, value in gradients.items()}
        return {key: value.detach().cpu() for key, value in found.items()}

    def _last_rows(self) -> dict[str, Tensor]:
        return {key: self._cut(key, value, self.kept) for key, value in self.inputs.items()}

    def _cut(self, key: str, value: Tensor, kept: int | None) -> Tensor:
        """The last `kept` rows of what has rows."""
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

    In float32 every element counts. In bf16 the length of the whole does: a state that rounds to the other side of a kink changes
    single rows at will.
    """
    if not bf16:
        assert_within_budget(got, plain, exact, floor=floor, name=name)
        return
    error, allowed = (got - exact).norm(), 2 * (plain - exact).norm() + bf16_floor * exact.norm()
    assert error <= allowed, f"{name}: off by {float(error):.3g} in length, allowed {float(allowed):.3g}"


def require_sound(plain: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> None:
    """The yardstick itself must be right, as a wrong baseline would allow anything: in length, as long chains blow single roundings up."""
    for key, value in exact.items():
        error, allowed = (plain[key] - value).norm(), SOUND * value.norm()
        assert error <= allowed, f"{key} of the baseline: off by {float(error):.3g} in length, allowed {float(allowed):.3g}"


def _upstream(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Random upstream gradients, the same for every provider."""
    return {key: upstream_gradient(value.detach().float(), seed=number).to(value) for number, (key, value) in enumerate(outputs.items())}
