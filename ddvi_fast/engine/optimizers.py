"""Choice of Adam: NVIDIA Apex's, DeepSpeed's or torch's fused one, all of them plain Adam within rounding."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.recipes.phases import Optimisation

CHOICES = ("auto", "apex", "deepspeed", "deepspeed_cpu", "torch")


@dataclass(frozen=True)
class Adam:
    """A kind of Adam.

    Args:
        name: One of `CHOICES` but ``auto``.
        note: Description of the choice for the log.
    """

    name: str
    note: str

    def make(self, groups: Iterable[dict[str, Any]], lr: float, device: torch.device) -> torch.optim.Optimizer:
        """An optimizer of parameter groups, without weight decay."""
        groups = list(groups)
        if self.name == "apex":
            return importlib.import_module("apex.optimizers").FusedAdam(groups, lr=lr, adam_w_mode=False)
        if self.name == "deepspeed":
            return importlib.import_module("deepspeed.ops.adam").FusedAdam(groups, lr=lr, adam_w_mode=False)
        if self.name == "deepspeed_cpu":
            return importlib.import_module("deepspeed.ops.adam").DeepSpeedCPUAdam(groups, lr=lr, adamw_mode=False)
        return torch.optim.Adam(groups, lr=lr, fused=True, capturable=device.type == "cuda")


def choose(choice: str, device: torch.device) -> Adam:
    """The kind of Adam that `choice` names. On a GPU ``auto`` is the first installed one of Apex's, DeepSpeed's and torch's; elsewhere torch's.

    Raises:
        InputError: The optimizer is not installed, or does not run on `device`.

    Example:
        >>> choose("auto", torch.device("cpu")).name
        'torch'
    """
    _checks.choice(choice, CHOICES, "optimiser")
    cuda = device.type == "cuda"
    reasons = {
        "apex": why_no_apex() if cuda else f"its kernels are CUDA's, and the device is {device}",
        "deepspeed": _why_no_deepspeed() if cuda else f"its kernels are CUDA's, and the device is {device}",
        "deepspeed_cpu": f"it runs on the CPU, and the device is {device}" if cuda else _why_no_deepspeed(),
        "torch": "",
    }
    if choice != "auto":
        _checks.require(not reasons[choice], "optimiser", "one that is installed", choice, reasons[choice])
        return Adam(choice, f"{choice}, as asked for")
    if not cuda:
        return Adam("torch", "torch's fused Adam")
    found = next(name for name in ("apex", "deepspeed", "torch") if not reasons[name])
    skipped = [f"{name}: {reasons[name]}" for name in ("apex", "deepspeed") if reasons[name]]
    return Adam(found, "; ".join([f"{found}'s fused Adam", *skipped]))


def why_no_apex() -> str:
    """Why NVIDIA Apex cannot be used, or the empty string. The package called apex on the public index is a web toolkit."""
    if importlib.util.find_spec("apex") is None:
        return "not installed"
    try:
        importlib.import_module("apex.optimizers").FusedAdam  # noqa: B018 - whether it is there
    except (ImportError, AttributeError):
        return "the installed apex is not NVIDIA's, which has apex.optimizers.FusedAdam"
    return "" if importlib.util.find_spec("amp_C") is not None else "installed without its CUDA extension amp_C"


def _why_no_deepspeed() -> str:
    return "" if importlib.util.find_spec("deepspeed") is not None else "not installed"


class UpdateAdam(torch.optim.Optimizer):
    """One optimizer made of several, one for each kind of update, which may share parameters. Only the active one steps.

    DeepSpeed has one optimizer per model. It replaces the parameters of each group by a flat part of them, so the members of a group
    must take part in the same updates: see `memberships`. State is stored under ``UPDATE.exp_avg`` and ``UPDATE.exp_avg_sq``, where
    DeepSpeed's functions for full states find it, and is made when it is first read.

    Args:
        groups: Parameter groups with ``params``, ``factor`` on the learning rate, ``updates`` (names of the updates that train them) and
            ``frozen`` (whether they are frozen now).
        adam: Kind of Adam.
        lr: Learning rate.
        device: Device of the parameters.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], adam: Adam, lr: float, device: torch.device) -> None:
        super().__init__(groups, {"lr": lr})
        names = dict.fromkeys(name for group in groups for name in group["updates"])
        self.active: str | None = None
        self._steppers = {name: adam.make([{"params": [torch.zeros(1, device=device)]}], lr, device) for name in names}
        self._defaults = {name: dict(stepper.param_groups[0]) for name, stepper in self._steppers.items()}
        # As torch keeps it: state is looked up by the tensor that DeepSpeed made of a group.
        self.state = _States(self._new_state)
        self.counts: dict[str, dict[int, int]] = {name: dict.fromkeys(range(len(groups)), 0) for name in names}
        for number, group in enumerate(self.param_groups):
            group["number"] = number

    def _new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        return {f"{name}.{key}": torch.zeros_like(parameter) for name in self._steppers for key in MOMENTS}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the parameters of the active update; without an active one nothing happens."""
        if self.active is None:
            return
        for group in self.param_groups:
            if self.active in group["updates"] and not group["frozen"]:
                self._step_group(group)

    def _step_group(self, group: dict[str, Any]) -> None:
        stepper, moving = self._steppers[self.active], [parameter for parameter in group["params"] if parameter.grad is not None]
        if not moving:
            return
        count = self.counts[self.active][group["number"]]
        # Apex and DeepSpeed count steps by group, torch by parameter.
        stepper.param_groups = [{**self._defaults[self.active], "params": moving, "lr": group["lr"], "step": count}]
        for parameter in moving:
            state = stepper.state[parameter]
            if not state:
                own = self.state[parameter]
                state.update({key: own[f"{self.active}.{key}"] for key in MOMENTS})
            state["step"] = torch.tensor(float(count), device=parameter.device) if isinstance(stepper, torch.optim.Adam) else count
        stepper.step()
        self.counts[self.active][group["number"]] = count + 1


MOMENTS = ("exp_avg", "exp_avg_sq")


class _States(dict):
    """State by tensor, made at the first look-up."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, parameter: Tensor) -> dict[str, Tensor]:
        self[parameter] = self._make(parameter)
        return self[parameter]


def by_factor(parameters: Iterable[nn.Parameter], names: Mapping[int, str], optimisation: Optimisation) -> list[dict[str, Any]]:
    """Parameter groups of an optimizer, one for each factor of the learning rate; `names` are those of the parameters by id."""
    members: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        members.setdefault(optimisation.factor(names[id(parameter)]), []).append(parameter)
    return [{"params": group, "factor": factor} for factor, group in members.items()]
