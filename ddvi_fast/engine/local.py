"""One process, one device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ddvi_fast import _checks, rng
from ddvi_fast.engine.adam_state import AdamState
from ddvi_fast.engine.base import NonFinite, bad_rows, bad_terms, by_factor
from ddvi_fast.engine.captured import CapturedStep, CudaGraph, DeviceProgress, Recording
from ddvi_fast.networks import MLP
from ddvi_fast.objectives import Objective, Progress, Terms
from ddvi_fast.precision import products_in
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws

_PRECISIONS = ("float32", "bf16")  # fp16 needs the scale on the loss that other engines have


class LocalEngine(AdamState):
    """Adam on the parameters of one objective, one optimiser for each of its groups.

    Args:
        objective: what is minimised; it moves to `device`.
        optimisation: learning rates and clipping.
        device: where to train.
        capture: record the training step once and replay it; by default on a GPU, unless a module is not `recordable`.
        compile_networks: let `torch.compile` fuse what lies between the matrix products of the dense networks.
        precision: of matrix products of networks and chain, ``float32`` or ``bf16``; densities, sums, parameters and Adam are float32.
        make_recording: how a step is recorded.

    Raises:
        NonFinite: a loss or, where it is clipped, a gradient that is not finite, naming what is to blame; at once on the CPU, from
            `check` on a device, which leaves its parameters as they were before that step.
    """

    def __init__(
        self,
        objective: Objective,
        optimisation: Optimisation,
        device: torch.device | str = "cpu",
        *,
        capture: bool | None = None,
        compile_networks: bool = False,
        precision: str = "float32",
        make_recording: Callable[[], Recording] = CudaGraph,
    ) -> None:
        self.objective, self.optimisation, self.device = objective.to(device), optimisation, torch.device(device)
        self._products = products_in(_checks.choice(precision, _PRECISIONS, "precision"), self.device)
        recordable = all(getattr(module, "recordable", True) for module in objective.modules())
        _checks.require(recordable or not capture, "capture", "false or null, for a posterior whose steps ask the device for numbers", capture)
        capture = self.device.type == "cuda" and recordable if capture is None else capture
        # Reading each loss back would stall a device, so there the losses are watched where they are.
        self._watches = capture or self.device.type != "cpu"
        self._captured = CapturedStep(self._run, self.device, make_recording) if capture else None
        self._parameters = objective.parameter_groups()
        names = {id(parameter): name for name, parameter in objective.named_parameters()}
        self._optimisers = {group: self._adam(parameters, names) for group, parameters in self._parameters.items()}
        self._lost: dict[str, Tensor] = {}
        self._rows = 0  # of the batch at hand
        if compile_networks:
            for module in objective.modules():
                if isinstance(module, MLP):
                    module.compile()

    def _adam(self, parameters: list[nn.Parameter], names: dict[int, str]) -> torch.optim.Adam:
        """Adam with one parameter group for each factor of the learning rate."""
        groups = by_factor(parameters, names, self.optimisation)
        return torch.optim.Adam(groups, lr=self.optimisation.lr, fused=True, capturable=self.device.type == "cuda")

    def run(self, x: Tensor, progress: Progress, draws: Draws) -> dict[str, Tensor]:
        """All updates of one batch; returns the terms' means, those of the last where an update is repeated."""
        return (self._captured or self._run)(x, progress, draws)

    def _run(self, x: Tensor, progress: Progress | DeviceProgress, draws: Draws | rng.DeviceDraws) -> dict[str, Tensor]:
        means: dict[str, Tensor] = {}
        self._rows = len(x)
        for update in self.objective.updates(x, progress, draws):
            with self._products():
                terms = update.terms()
            self.step(update.group, terms, progress)
            means.update(terms.means())
        return means

    def step(self, group: str, terms: Terms, progress: Progress | DeviceProgress) -> Tensor:
        """One optimiser step of `group`; returns the loss."""
        optimiser, loss = self._optimisers[group], terms.total()
        if self._watches:
            optimiser.found_inf, optimiser.grad_scale = self._watch(terms, loss), None
        elif not torch.isfinite(loss):
            raise NonFinite("loss", bad_terms(terms), bad_rows(terms, self._rows).nonzero().flatten().tolist())
        for parameter in self._parameters[group]:  # what zero_grad does, without its bookkeeping
            parameter.grad = None
        loss.backward()
        if self.optimisation.max_norm is not None:
            norm = get_total_norm([parameter.grad for parameter in self._parameters[group] if parameter.grad is not None])
            if not self._watches and not torch.isfinite(norm):
                raise NonFinite("gradient", [name for name, value in self.objective.named_parameters() if _spoilt(value)])
            clip_grads_with_norm_(self._parameters[group], self.optimisation.max_norm, norm)
        rate = progress.varying(self._rate)
        for options in optimiser.param_groups:
            options["lr"] = rate * options["factor"]
        optimiser.step()
        return loss.detach()

    def _rate(self, progress: Progress) -> float:
        return self.optimisation.rate(progress.fraction)

    def _watch(self, terms: Terms, loss: Tensor) -> Tensor:
        """Notes which terms are not finite; 1.0 from the first such loss on, which tells Adam to stand still."""
        for name, value in {**terms.values, _THE_SUM: loss}.items():
            if name not in self._lost:
                self._lost[name] = torch.zeros((), dtype=torch.bool, device=self.device)
            self._lost[name].logical_or_(~torch.isfinite(value.detach()).all())
        return torch.stack(list(self._lost.values())).any().float()

    def check(self) -> None:
        """Raise if a loss since the last check was not finite."""
        if self._lost and bool(torch.stack(list(self._lost.values())).any()):
            raise NonFinite("loss", [name for name, lost in self._lost.items() if lost and name != _THE_SUM])

    def refresh(self) -> None:
        """Something in the objective changed between steps, such as what is frozen: a recorded step is void."""
        if self._captured is not None:
            self._captured.forget()

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return self._optimisers


_THE_SUM = "the sum"


def _spoilt(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
