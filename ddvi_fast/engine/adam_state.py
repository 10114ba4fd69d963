"""State of Adam by the names of parameters: the same in every engine, for any number of processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.engine.optimizers import MOMENTS

COUNT = "step"  # number of optimizer steps of a parameter, a float32 scalar


class AdamState:
    """Saves and restores the state of engines whose optimizers keep it by parameter, as torch's do."""

    objective: nn.Module
    _optimizers: dict[str, torch.optim.Optimizer]

    def state(self) -> dict[str, Tensor]:
        """``GROUP.PARAMETER.exp_avg``, ``.exp_avg_sq`` and ``.step`` of every parameter that has moved."""
        names = {parameter: name for name, parameter in self.objective.named_parameters()}
        found = {}
        for group, optimizer in self._optimizers.items():
            for options in optimizer.param_groups:
                for parameter in options["params"]:
                    if entry := optimizer.state.get(parameter):
                        found |= {f"{group}.{names[parameter]}.{key}": entry[key] for key in MOMENTS}
                        found[f"{group}.{names[parameter]}.{COUNT}"] = _count(entry, options)
        return found

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned, so that the next step is the same bit for bit.

        Raises:
            InputError: A name or shape does not fit the objective.
        """
        parameters = dict(self.objective.named_parameters())
        for (group, name), entry in by_parameter(tensors, self._optimizers, parameters).items():
            optimizer, parameter = self._optimizers[group], parameters[name]
            state = {key: entry[key].to(parameter.device, copy=True) for key in MOMENTS}
            plain = isinstance(optimizer, torch.optim.Adam)
            state["step"] = entry[COUNT].to(parameter.device, copy=True) if plain else int(entry[COUNT])
            optimizer.state[parameter] = state
            if not plain:  # Apex and DeepSpeed count steps by group
                for options in optimizer.param_groups:
                    if any(member is parameter for member in options["params"]):
                        options["step"] = int(entry[COUNT])


def by_parameter(tensors: Mapping[str, Tensor], groups: Mapping[str, object], parameters: Mapping[str, Tensor]) -> dict[tuple[str, str], dict]:
    """The entries of `AdamState.state` by group and parameter, checked against both."""
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for full, value in tensors.items():
        group, _, rest = full.partition(".")
        name, _, key = rest.rpartition(".")
        known = group in groups and name in parameters and key in (*MOMENTS, COUNT)
        _checks.require(known, "checkpoint, optimiser", f"states of {', '.join(groups)}", full)
        fits = value.shape == (() if key == COUNT else parameters[name].shape)
        _checks.require(fits, f"checkpoint, {full}", f"shape {list(parameters[name].shape)}", value)
        found.setdefault((group, name), {})[key] = value
    for (group, name), entry in found.items():
        _checks.require(len(entry) == len(MOMENTS) + 1, f"checkpoint, {group}.{name}", f"{', '.join(MOMENTS)} and {COUNT}", ", ".join(entry))
    return found


def _count(entry: Mapping[str, object], options: Mapping[str, object]) -> Tensor:
    count = entry.get("step", options.get("step"))
    return count if isinstance(count, Tensor) else torch.tensor(float(count), dtype=torch.float32, device="cpu")
