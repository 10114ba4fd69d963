"""Kinds of constraints: their bounds, what satisfies them, values on the boundary, and their description as JSON."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import StickBreakingTransform, Transform, biject_to, constraints
from torch.distributions.constraints import Constraint
from torch.nn import functional

from ddvi_fast import _checks

_PLAIN = {kind: getattr(constraints, kind) for kind in ("real", "simplex", "corr_cholesky", "lower_cholesky", "positive_definite")}
_BOUNDED = {
    "interval": ("lower_bound", "upper_bound"), "half_open_interval": ("lower_bound", "upper_bound"), "greater_than": ("lower_bound",),
    "greater_than_eq": ("lower_bound",), "less_than": ("upper_bound",),
}  # fmt: skip
_ROUNDING = torch.finfo(torch.float32).eps
EDGE = -math.log(_ROUNDING)  # unconstrained coordinate of a share that is one rounding away from 0 or 1


def called(argument: str, name: str) -> str:
    """An argument and the name of the parameter, if it has one, for messages."""
    return f"{argument}, {name}" if name else argument


class _StickBreaking(StickBreakingTransform):
    """Torch's map to a simplex, with a log-determinant that is finite, and has a finite gradient, where shares are too small for their type."""

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        left = torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device)
        broken = x - left.log()
        kept = functional.logsigmoid(-broken)  # of what is left of the stick
        return (functional.logsigmoid(broken) + kept.cumsum(-1)).sum(-1)


def transform_of(argument: str, kind: Any) -> Transform:
    try:
        transform = _StickBreaking() if type(kind) is type(constraints.simplex) else biject_to(kind)
    except (NotImplementedError, TypeError):
        _checks.fail(argument, "a constraint of torch.distributions.constraints that biject_to knows", kind)
    for part in _parts(kind):
        _, lower, upper = _bounds(part)
        for bound in (lower, upper):
            _checks.instance(bound, (int, float, Tensor, type(None)), argument, "bounds that are numbers or tensors")
        exact = [None if bound is None else torch.as_tensor(bound, dtype=torch.float64, device="cpu") for bound in (lower, upper)]
        single = [None if bound is None else bound.float() for bound in exact]
        _checks.require(_in_order(exact), argument, "finite bounds, the lower one below the upper one", str(part))
        _checks.require(_in_order(single), argument, "bounds that single precision holds and tells apart", str(part), "use other units or an offset")
    return transform


def _in_order(bounds: list[Tensor | None]) -> bool:
    """Whether a lower and an upper bound are finite and in order, as far as there are any."""
    lower, upper = bounds
    finite = all(bound is None or bool(bound.isfinite().all()) for bound in bounds)
    return finite and (lower is None or upper is None or bool((lower < upper).all()))


def free_shape(argument: str, kind: Constraint, transform: Transform, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the unconstrained entries of a parameter of `shape`."""
    sizes = all(isinstance(size, numbers.Integral) and size >= 0 for size in shape)
    try:
        free = tuple(transform.inverse_shape(torch.Size(shape))) if sizes else None
        fits = free is not None and tuple(transform(torch.zeros(2, *free, dtype=torch.float32, device="cpu")).shape) == (2, *shape)
    except (ValueError, TypeError, RuntimeError, AssertionError, IndexError):
        fits = False
    _checks.require(fits, argument, f"a shape that fits {kind}", list(shape))
    return free


def _parts(kind: Any) -> list[Any]:
    """The constraint itself and those of which it consists."""
    inner = [*getattr(kind, "cseq", ()), *([kind.base_constraint] if hasattr(kind, "base_constraint") else ())]
    return [kind, *(part for one in inner for part in _parts(one))]


def _bounds(kind: Any) -> tuple[str, Any, Any]:
    """Name, lower and upper bound of a constraint of single numbers; an empty name and None for any other."""
    for name, bounds in _BOUNDED.items():
        if type(kind) is type(getattr(constraints, name)(*(0.0, 1.0)[: len(bounds)])):
            return name, getattr(kind, "lower_bound", None), getattr(kind, "upper_bound", None)
    return "", None, None


def _elementwise(kind: Any) -> Any:
    """The constraint of single numbers of which `kind` consists."""
    return _elementwise(kind.base_constraint) if hasattr(kind, "base_constraint") else kind


def _as_bound(bound: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(bound, dtype=like.dtype, device=like.device)


def satisfied(kind: Any, value: Tensor) -> Tensor:
    """Whether values satisfy a constraint, up to the rounding of their type."""
    name, lower, upper = _bounds(_elementwise(kind))
    if not name:
        if type(kind) is type(constraints.simplex):  # torch allows the sum an error that many entries exceed in single precision
            return (value >= 0).all(-1) & ((value.sum(-1) - 1).abs() < 1e-6 + 2 * value.shape[-1] * torch.finfo(value.dtype).eps)
        return kind.check(value)
    allowed = torch.ones_like(value, dtype=torch.bool)
    if lower is not None:
        bound = _as_bound(lower, value)
        allowed &= value > bound if name == "greater_than" else value >= bound
    if upper is not None:
        bound = _as_bound(upper, value)
        allowed &= value <= bound if name == "interval" else value < bound
    return allowed


def off_the_boundary(kind: Any, value: Tensor) -> Tensor:
    """Move values on a closed boundary inside, by a rounding of single precision."""
    if type(kind) is type(constraints.simplex):
        on_it = (value <= 0).any(-1, keepdim=True)
        value = torch.where(on_it, value + _ROUNDING, value)
        return value / value.sum(-1, keepdim=True)  # the map takes the last entry for 1 minus the sum of the others
    name, lower, upper = _bounds(_elementwise(kind))
    if not name:
        return _by_parts(off_the_boundary, kind, value)
    tiny = torch.finfo(torch.float32).tiny
    if name in ("interval", "half_open_interval"):
        low, high = _as_bound(lower, value), _as_bound(upper, value)
        step = _ROUNDING * (high - low)
        value = torch.where(value >= high, high - step, value)
        return torch.where(value <= low, low + step, value)
    bound = _as_bound(upper if lower is None else lower, value)
    step = (_ROUNDING * bound.abs()).clamp(min=tiny)
    return torch.where(value >= bound, bound - step, value) if lower is None else torch.where(value <= bound, bound + step, value)


def held_inside(kind: Any, value: Tensor) -> Tensor:
    """Values in the support where rounding of the map has left it; finite where it has overflowed."""
    name, lower, upper = _bounds(_elementwise(kind))
    if not name:
        return _by_parts(held_inside, kind, value)
    limits = torch.finfo(value.dtype)
    low = torch.full_like(value, limits.min) if lower is None else _as_bound(lower, value).expand_as(value)
    high = torch.full_like(value, limits.max) if upper is None else _as_bound(upper, value).expand_as(value)
    if name == "greater_than":
        low = torch.where(low == 0, limits.tiny, torch.nextafter(low, high))
    if name in ("less_than", "half_open_interval"):
        high = torch.where(high == 0, -limits.tiny, torch.nextafter(high, low))
    return torch.minimum(torch.maximum(value, low), high)


def near_bounds(kind: Any, value: Tensor, part: float) -> Tensor | None:
    """Whether values are near a bound: nearer than `part` of the interval, or of the median distance from a single bound. None without bounds."""
    if type(kind) is type(constraints.simplex):
        return value < part
    name, lower, upper = _bounds(_elementwise(kind))
    if not name:
        return None
    gaps = [sign * (value - _as_bound(bound, value)) for sign, bound in ((1, lower), (-1, upper)) if bound is not None]
    if len(gaps) == 2:
        return torch.minimum(*gaps) < part * (gaps[0] + gaps[1])
    return gaps[0] < part * gaps[0].median(0).values


def limited(kind: Any) -> bool:
    """Whether all values that satisfy a constraint are finite and bounded, so that a constant density is proper."""
    return all(
        type(part) in (type(constraints.simplex), type(constraints.corr_cholesky)) or _bounds(part)[0] in ("interval", "half_open_interval")
        for part in _parts(kind)
        if len(_parts(part)) == 1
    )


def _by_parts(function: Callable[[Any, Tensor], Tensor], kind: Any, value: Tensor) -> Tensor:
    """Apply `function` to the parts of a `constraints.cat` or `constraints.stack`; any other value stays what it is."""
    if type(kind) is constraints.stack:
        return torch.stack([function(part, one) for part, one in zip(kind.cseq, value.unbind(kind.dim), strict=True)], kind.dim)
    if type(kind) is constraints.cat:
        return torch.cat([function(part, one) for part, one in zip(kind.cseq, value.split(kind.lengths, kind.dim), strict=True)], kind.dim)
    return value


def describe(name: str, kind: Any) -> dict[str, Any]:
    for plain, known in _PLAIN.items():
        if type(kind) is type(known):
            return {"constraint": plain}
    bounded, _, _ = _bounds(kind)
    if bounded:
        return {"constraint": bounded, "bounds": [_bound_state(getattr(kind, bound)) for bound in _BOUNDED[bounded]]}
    if type(kind) is constraints.independent:
        return {"constraint": "independent", "of": describe(name, kind.base_constraint), "axes": kind.reinterpreted_batch_ndims}
    if type(kind) in (constraints.cat, constraints.stack):
        state = {"of": [describe(name, part) for part in kind.cseq], "axis": kind.dim}
        return {"constraint": "stack", **state} if type(kind) is constraints.stack else {"constraint": "cat", **state, "lengths": kind.lengths}
    known = ", ".join([*_PLAIN, *_BOUNDED, "independent", "cat", "stack"])
    _checks.fail(called("support", name), f"one of {known}, to be saved", str(kind))


def _bound_state(bound: Any) -> Any:
    """A number, or the values and type of a tensor."""
    return {"values": bound.tolist(), "dtype": str(bound.dtype).removeprefix("torch.")} if isinstance(bound, Tensor) else float(bound)


def _bound_of(state: Any) -> Any:
    return torch.tensor(state["values"], dtype=getattr(torch, state["dtype"]), device="cpu") if isinstance(state, Mapping) else state


def build(entry: Mapping[str, Any]) -> Constraint:
    kind = entry["constraint"]
    if kind == "independent":
        return constraints.independent(build(entry["of"]), entry["axes"])
    if kind in ("cat", "stack"):
        parts = [build(part) for part in entry["of"]]
        return constraints.stack(parts, entry["axis"]) if kind == "stack" else constraints.cat(parts, entry["axis"], entry["lengths"])
    return getattr(constraints, kind)(*map(_bound_of, entry["bounds"])) if "bounds" in entry else getattr(constraints, kind)
