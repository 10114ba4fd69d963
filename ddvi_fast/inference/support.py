"""Constraints of parameters, and the map between constrained parameters and unconstrained vectors."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform
from torch.distributions.constraints import Constraint

from ddvi_fast import _checks
from ddvi_fast.inference import kinds

Latents = Tensor | dict[str, Tensor]  # parameters of a model: one tensor [..., D], or named tensors [..., *shape]
_UNNAMED = ""  # name of a parameter vector without a name


class Support:
    """Constraints of a model's parameters, with the map to an unconstrained vector [..., D] and back.

    The map is `torch.distributions.biject_to` of each constraint. Bounds may be numbers or tensors.

    Args:
        constraint: Constraint of a parameter vector [..., dim]. For named parameters, a mapping from names to a constraint, or to a pair
            `(constraint, shape)`; the default shape is that of a scalar.
        dim: Length of a parameter vector without name (int).

    Raises:
        InputError: If torch has no map for a constraint, if bounds are not in order, if a shape does not fit, if `dim` is missing, or if the
            mapping is empty.

    Example:
        >>> from torch.distributions import constraints
        >>> support = Support({"mu": constraints.real, "tau": constraints.positive, "weights": (constraints.simplex, (3,))})
        >>> support.dim
        4
        >>> z, log_det = support.constrain(torch.zeros(5, 4))
        >>> z["tau"].shape, z["weights"][0].tolist(), log_det.shape
        (torch.Size([5]), [0.333..., 0.333..., 0.333...], torch.Size([5]))
    """

    def __init__(self, constraint: Constraint | Mapping[str, Any], dim: int | None = None) -> None:
        self.named = isinstance(constraint, Mapping)
        if self.named:
            _checks.require(dim is None, "dim", "None, for named parameters", dim)
        else:
            whole = isinstance(dim, numbers.Integral) and not isinstance(dim, bool)
            _checks.require(whole and dim >= 1, "dim", "the length of the parameter vector", dim)
        given = dict(constraint) if self.named else {_UNNAMED: (constraint, (int(dim),))}
        _checks.require(bool(given), "support", "at least one parameter", "none")
        self.constraints: dict[str, Constraint] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._transforms: dict[str, Transform] = {}
        self._free: dict[str, tuple[int, ...]] = {}
        for name, entry in given.items():
            _checks.instance(name, str, "support", "names of parameters that are strings")
            kind, shape = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, ())
            self.constraints[name], self.shapes[name] = kind, tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
            self._transforms[name] = kinds.transform_of(kinds.called("support", name), kind)
            self._free[name] = kinds.free_shape(kinds.called("support", name), kind, self._transforms[name], self.shapes[name])
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
        if not log_det.numel():  # torch's maps do not take tensors without rows
            values = {name: u.new_zeros((*u.shape[:-1], *shape)) for name, shape in self.shapes.items()}
            return (values if self.named else values[_UNNAMED]), log_det
        for (name, transform), part in zip(self._transforms.items(), u.split(self._sizes, -1), strict=True):
            free = part.reshape((*u.shape[:-1], *self._free[name]))
            value = transform(free)
            log_det = log_det + _flat(transform.log_abs_det_jacobian(free, value), u.dim() - 1).sum(-1)
            values[name] = kinds.held_inside(self.constraints[name], value)
        return (values if self.named else values[_UNNAMED]), log_det

    def unconstrain(self, z: Latents, argument: str = "z") -> Tensor:
        """Map parameters to unconstrained vectors [..., D].

        A value on a closed boundary, which has no finite image, is taken as one at a distance of single precision's rounding.

        Args:
            z: Parameters.
            argument: Name of `z` in messages (default ``z``).

        Raises:
            InputError: If names or shapes of `z` are not those of the support, or if values are outside of it.
        """
        values = self._checked(z, argument)
        for name, value in values.items():
            inside = self._inside(name, value)
            outside = f"{int((~inside).sum())} of {inside.numel()} rows outside"
            _checks.require(bool(inside.all()), kinds.called(argument, name), f"values in {self.constraints[name]}", outside)
        return self._free_values(values)

    def locate(self, z: Latents) -> tuple[Tensor, Tensor]:
        """Map parameters to unconstrained vectors [..., D], with 0 for those outside the support, and tell whether they are inside [...].

        Raises:
            InputError: If names or shapes of `z` are not those of the support.
        """
        values = self._checked(z)
        inside = torch.stack([self._inside(name, value) for name, value in values.items()]).all(0)
        center, _ = self.constrain(torch.zeros(self.dim, dtype=torch.float64, device=inside.device))
        for name, value in values.items():
            usual = (center[name] if self.named else center).to(value)
            values[name] = torch.where(inside.reshape((*inside.shape, *(1 for _ in self.shapes[name]))), value, usual)
        return self._free_values(values).masked_fill(~inside.unsqueeze(-1), 0.0), inside

    def missing(self, z: Latents) -> Tensor:
        """Tell which parameters have a value that is NaN, bool [...]."""
        return self.flatten(z).isnan().any(-1)

    def _inside(self, name: str, value: Tensor) -> Tensor:
        """Whether parameters are finite and satisfy their constraint, bool [...]."""
        lead = value.dim() - len(self.shapes[name])
        finite = _flat(value.isfinite(), lead).all(-1)
        return _flat(kinds.satisfied(self.constraints[name], value), lead).all(-1) & finite if value.numel() else finite

    def _free_values(self, values: Mapping[str, Tensor]) -> Tensor:
        """Unconstrained vectors [..., D] of parameters inside the support, computed in float64, in the type of the parameters."""
        parts = []
        for name, value in values.items():
            if not value.numel():
                parts.append(value.new_zeros((*value.shape[: value.dim() - len(self.shapes[name])], math.prod(self._free[name]))))
                continue
            free = self._transforms[name].inv(kinds.off_the_boundary(self.constraints[name], value.double()))
            # Other maps, as that of a correlation matrix, have no finite image of values that rounding has put on the boundary.
            free = free.nan_to_num(nan=0.0, posinf=kinds.EDGE, neginf=-kinds.EDGE)
            parts.append(_flat(free, value.dim() - len(self.shapes[name])).to(value.dtype))
        return torch.cat(parts, -1)

    def flatten(self, z: Latents) -> Tensor:
        """Concatenate the entries of parameters to [..., entries]; a simplex of 3 has 3 entries, but 2 unconstrained coordinates."""
        return torch.cat([_flat(value, value.dim() - len(self.shapes[name])) for name, value in self._checked(z).items()], -1)

    def entries(self) -> list[str]:
        """Return the names of the entries of `flatten`, such as ``theta[3]``."""
        names = []
        for name, shape in self.shapes.items():
            places = torch.cartesian_prod(*[torch.arange(size, device="cpu") for size in shape]).reshape(-1, len(shape)).tolist() if shape else []
            names += [f"{name or 'z'}[{', '.join(map(str, place))}]" for place in places] if shape else [name]
        return names

    def coordinates(self) -> list[str]:
        """Return the names of the unconstrained coordinates: those of the entries if there are equally many, otherwise such as ``u[3]``."""
        names = self.entries()
        return names if len(names) == self.dim else [f"u[{place}]" for place in range(self.dim)]

    def _checked(self, z: Latents, argument: str = "z") -> dict[str, Tensor]:
        values = dict(z) if self.named and isinstance(z, Mapping) else {_UNNAMED: z}
        expected = f"a dictionary of {', '.join(self.shapes)}" if self.named else "a tensor"
        got = f"a dictionary of {', '.join(map(str, z))}" if isinstance(z, Mapping) else z
        _checks.require(values.keys() == self.shapes.keys(), argument, expected, got)
        for name, shape in self.shapes.items():
            value = _checks.valued(_checks.tensor(values[name], kinds.called(argument, name)), kinds.called(argument, name))
            fits = value.dim() >= len(shape) and value.shape[value.dim() - len(shape) :] == shape
            _checks.require(fits, kinds.called(argument, name), f"shape [..., {', '.join(map(str, shape))}]", value)
        leads = [list(values[name].shape[: values[name].dim() - len(shape)]) for name, shape in self.shapes.items()]
        _checks.require(all(lead == leads[0] for lead in leads), argument, "parameters with the same leading axes", " and ".join(map(str, leads)))
        return {name: values[name] for name in self.shapes}

    def state(self) -> dict[str, Any]:
        """Return a description of the support that can be written as JSON.

        Raises:
            InputError: If a constraint cannot be described.
        """
        described = {name: {**kinds.describe(name, kind), "shape": list(self.shapes[name])} for name, kind in self.constraints.items()}
        return {"named": self.named, "parameters": described}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Support:
        """Make the support that `state` described."""
        built = {name: (kinds.build(entry), tuple(entry["shape"])) for name, entry in state["parameters"].items()}
        return cls(built) if state["named"] else cls(built[_UNNAMED][0], built[_UNNAMED][1][0])


def _flat(value: Tensor, lead: int) -> Tensor:
    """Flatten all axes after the first `lead` to one, also of tensors without rows."""
    return value.reshape((*value.shape[:lead], math.prod(value.shape[lead:])))
