"""One process, one device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ddvi_fast import _checks
from ddvi_fast.engine.base import Optimisation
from ddvi_fast.objectives import Objective, Terms


class LocalEngine:
    """Adam on the parameters of one objective, one optimiser for each of its groups.

    Raises:
        InputError: a loss that is not finite, naming the terms to blame.
    """

    def __init__(self, objective: Objective, optimisation: Optimisation, device: torch.device | str = "cpu") -> None:
        self.objective, self.optimisation, self.device = objective.to(device), optimisation, torch.device(device)
        self._parameters = objective.parameter_groups()
        names = {id(parameter): name for name, parameter in objective.named_parameters()}
        self._optimisers = {group: self._adam(parameters, names) for group, parameters in self._parameters.items()}

    def _adam(self, parameters: list[nn.Parameter], names: dict[int, str]) -> torch.optim.Adam:
        """Adam with one parameter group for each factor of the learning rate."""
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_factor.setdefault(self.optimisation.factor(names[id(parameter)]), []).append(parameter)
        groups = [{"params": members, "factor": factor} for factor, members in by_factor.items()]
        return torch.optim.Adam(groups, lr=self.optimisation.lr, fused=True)

    def step(self, group: str, terms: Terms, fraction: float) -> Tensor:
        loss = terms.total()
        if not torch.isfinite(loss):
            self._refuse(terms)
        optimiser = self._optimisers[group]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.optimisation.max_norm is not None:
            clip_grad_norm_(self._parameters[group], self.optimisation.max_norm)
        for options in optimiser.param_groups:
            options["lr"] = self.optimisation.rate(fraction) * options["factor"]
        optimiser.step()
        return loss.detach()

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return self._optimisers

    @staticmethod
    def _refuse(terms: Terms) -> None:
        bad = [name for name, value in terms.values.items() if not torch.isfinite(value).all()]
        _checks.fail("loss", "a finite number", f"NaN or infinity in {', '.join(bad) or 'the sum'}", "a smaller lr or max_norm may help")
