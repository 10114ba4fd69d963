"""Constraints of parameters, and the map between constrained parameters and unconstrained vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints
from torch.distributions.constraints import Constraint

from ddvi_fast import _checks

Latents = Tensor | dict[str, Tensor]  # parameters of a model: one tensor [..., D], or named tensors [..., *shape]
_UNNAMED = ""  # name of a parameter vector without a name


class Support:
    """Constraints of a model's parameters, with the map to an unconstrained vector [..., D] and back.

    The map is `torch.distributions.biject_to` of each constraint.

    Args:
        constraint: Constraint of a parameter vector [..., dim]. For named parameters, a mapping from names to a constraint, or to a pair
            `(constraint, shape)`; the default shape is that of a scalar.
        dim: Length of a parameter vector without name (int).

    Raises:
        InputError: If torch has no map for a constraint, if `dim` is missing, or if the mapping is empty.

    Example:
        >>> support = Support({"mu": constraints.real, "tau": constraints.positive, "weights": (constraints.simplex, (3,))})
        >>> support.dim
        4
        >>> z, log_det = support.constrain(torch.zeros(5, 4))
        >>> z["tau"].shape, z["weights"][0].tolist(), log_det.shape
        (torch.Size([5]), [0.333..., 0.333..., 0.333...], torch.Size([5]))
    """

    def __init__(self, constraint: Constraint | Mapping[str, Any], dim: int | None = None) -> None:
        self.named = isinstance(constraint, Mapping)
        if not self.named:
            _checks.require(isinstance(dim, int) and dim >= 1, "dim", "the length of the parameter vector", dim)
        given = dict(constraint) if self.named else {_UNNAMED: (constraint, (dim,))}
        _checks.require(bool(given), "support", "at least one parameter", "none")
        self.constraints: dict[str, Constraint] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, entry in given.items():
            kind, shape = entry if isinstance(entry, tuple) else (entry, ())
            self.constraints[name], self.shapes[name] = kind, tuple(shape)
        self._transforms = {name: _transform(name, kind) for name, kind in self.constraints.items()}
        self._free = {name: tuple(self._transforms[name].inverse_shape(self.shapes[name])) for name in self.shapes}
        self._sizes = [math.prod(shape) for shape in self._free.values()]

    @property
    def dim(self) -> int:
        """Number of unconstrained coordinates, D."""
        return sum(self._sizes)

    def constrain(self, u: Tensor) -> tuple[Latents, Tensor]:
        """Map unconstrained vectors to parameters.

        Args:
            u: Unconstrained vectors [..., D].

        Returns:
            Parameters, and `log |d parameters / d u|` [...] in nats. For a constraint with fewer degrees of freedom than entries (a
            simplex), the volume is that of torch's free entries.
        """
        values, log_det = {}, u.new_zeros(u.shape[:-1])
        for (name, transform), part in zip(self._transforms.items(), u.split(self._sizes, -1), strict=True):
            free = part.reshape(*u.shape[:-1], *self._free[name])
            values[name] = transform(free)
            jacobian = transform.log_abs_det_jacobian(free, values[name])
            log_det = log_det + jacobian.reshape(*u.shape[:-1], -1).sum(-1)
        return (values if self.named else values[_UNNAMED]), log_det

    def unconstrain(self, z: Latents) -> Tensor:
        """Map parameters to unconstrained vectors [..., D].

        Raises:
            InputError: If names or shapes of `z` are not those of the support.
        """
        parts = []
        for name, value in self._checked(z).items():
            lead = value.shape[: value.dim() - len(self.shapes[name])]
            parts.append(self._transforms[name].inv(value).reshape(*lead, -1))
        return torch.cat(parts, -1)

    def flatten(self, z: Latents) -> Tensor:
        """Concatenate the entries of parameters to [..., entries]; a simplex of 3 has 3 entries, but 2 unconstrained coordinates."""
        return torch.cat([value.reshape(*value.shape[: value.dim() - len(self.shapes[name])], -1) for name, value in self._checked(z).items()], -1)

    def entries(self) -> list[str]:
        """Return the names of the entries of `flatten`, such as ``theta[3]``."""
        names = []
        for name, shape in self.shapes.items():
            places = torch.cartesian_prod(*[torch.arange(size) for size in shape]).reshape(-1, len(shape)).tolist() if shape else []
            names += [f"{name or 'z'}[{', '.join(map(str, place))}]" for place in places] if shape else [name]
        return names

    def _checked(self, z: Latents) -> dict[str, Tensor]:
        values = dict(z) if self.named and isinstance(z, Mapping) else {_UNNAMED: z}
        _checks.require(values.keys() == self.shapes.keys(), "z", f"a dictionary of {', '.join(self.shapes)}" if self.named else "a tensor", z)
        for name, shape in self.shapes.items():
            value = _checks.tensor(values[name], name or "z")
            fits = value.dim() >= len(shape) and value.shape[value.dim() - len(shape) :] == shape
            _checks.require(fits, name or "z", f"shape [..., {', '.join(map(str, shape))}]", value)
        return {name: values[name] for name in self.shapes}

    def state(self) -> dict[str, Any]:
        """Return a description of the support that can be written as JSON.

        Raises:
            InputError: If a constraint cannot be described.
        """
        described = {name: {**_describe(name, kind), "shape": list(self.shapes[name])} for name, kind in self.constraints.items()}
        return {"named": self.named, "parameters": described}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Support:
        """Make the support that `state` described."""
        built = {name: (_build(entry), tuple(entry["shape"])) for name, entry in state["parameters"].items()}
        return cls(built) if state["named"] else cls(built[_UNNAMED][0], built[_UNNAMED][1][0])


_PLAIN = {
    kind: getattr(constraints, kind) for kind in ("real", "real_vector", "positive", "nonnegative", "unit_interval", "simplex", "corr_cholesky",
                                                  "lower_cholesky", "positive_definite")
}  # fmt: skip
_BOUNDED = {
    "interval": ("lower_bound", "upper_bound"), "half_open_interval": ("lower_bound", "upper_bound"), "greater_than": ("lower_bound",),
    "greater_than_eq": ("lower_bound",), "less_than": ("upper_bound",),
}  # fmt: skip


def _transform(name: str, kind: Any) -> Transform:
    try:
        return biject_to(kind)
    except (NotImplementedError, TypeError):
        _checks.fail(f"support{f', {name}' if name else ''}", "a constraint of torch.distributions.constraints that biject_to knows", kind)


def _describe(name: str, kind: Constraint) -> dict[str, Any]:
    for plain, known in _PLAIN.items():
        if kind is known:
            return {"constraint": plain}
    for bounded, bounds in _BOUNDED.items():
        if type(kind) is getattr(constraints, bounded) and all(torch.as_tensor(getattr(kind, bound)).dim() == 0 for bound in bounds):
            return {"constraint": bounded, "bounds": [float(getattr(kind, bound)) for bound in bounds]}
    known = ", ".join([*_PLAIN, *_BOUNDED])
    _checks.fail(f"support{f', {name}' if name else ''}", f"one of {known}, with plain numbers for bounds, to be saved", kind)


def _build(entry: Mapping[str, Any]) -> Constraint:
    kind = entry["constraint"]
    return _PLAIN[kind] if kind in _PLAIN else getattr(constraints, kind)(*entry["bounds"])
