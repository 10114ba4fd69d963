"""Plain data parallelism: every process holds everything, and gradients are averaged in one exchange an update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ddvi_fast.engine.adam_state import AdamState
from ddvi_fast.engine.base import by_factor
from ddvi_fast.engine.sharded import ShardedEngine
from ddvi_fast.objectives import Objective
from ddvi_fast.recipes.phases import Optimisation


class ParallelEngine(AdamState, ShardedEngine):
    """One or several processes on parts of a batch, without DeepSpeed. Arguments are those of `ShardedEngine`."""

    def __init__(self, objective: Objective, optimisation: Optimisation, device: torch.device | str = "cpu", **options: Any) -> None:
        super().__init__(objective, optimisation, device, **options)
        self._parameters = objective.parameter_groups()
        names = {id(parameter): name for name, parameter in objective.named_parameters()}
        self._optimisers = {}
        for group, parameters in self._parameters.items():
            groups = by_factor(parameters, names, optimisation)
            self._optimisers[group] = self.adam.make(groups, optimisation.lr, self.device)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _move(self, group: str, rate: float) -> bool:
        moving = [parameter for parameter in self._parameters[group] if parameter.grad is not None]
        gradients = [parameter.grad for parameter in moving]
        self._average(gradients)
        if self.loss_scale is not None:
            torch._foreach_div_(gradients, self.loss_scale.value)
        norm = get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            if self.loss_scale is not None:
                self._forget_gradients()
            return False
        if self.optimisation.max_norm is not None:
            clip_grads_with_norm_(moving, self.optimisation.max_norm, norm)
        for options in self._optimisers[group].param_groups:
            options["lr"] = rate * options["factor"]
        self._optimisers[group].step()
        self._forget_gradients()
        return True

    def _forget_gradients(self) -> None:
        for parameter in self.objective.parameters():
            parameter.grad = None

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return self._optimisers
