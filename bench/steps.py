"""Base of the training steps as problems: losses and gradients are compared with the baseline's for the same draws."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from bench.baselines.training import LEARNING_RATE, PlainStep
from bench.problem import FLOOR, Problem, compare, require_sound
from bench.weights import copy_denoiser, copy_perceptron, denoiser_gradients, linear_parameters
from ddvi_fast import networks, rng, use_backend
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.engine.engine import Engine
from ddvi_fast.objectives import Objective, Progress
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws

SEED = 3
GRADIENT_FLOOR = 10 * FLOOR  # gradients accumulate roundings of many steps and several networks
Losses = Iterable[tuple[str, Callable[[], Tensor]]]  # name of the update, and the function that computes its loss


class OurStep:
    """One batch through an `Engine`; every call is the next batch of the run.

    Args:
        objective: Objective to train.
        device: Device of the training.
        progress: Progress of the run that the objective's schedules use.
        bf16: Whether matrix products of networks and chain are in bf16 (bool, default False).
        capture: Whether the step is recorded and replayed (default: on a GPU).
    """

    def __init__(self, objective: Objective, device: torch.device, progress: Progress, bf16: bool = False, capture: bool | None = None) -> None:
        optimisation, precision = Optimisation(LEARNING_RATE, "constant", max_norm=None), "bf16" if bf16 else "float32"
        self.engine = Engine(objective.train(), optimisation, device, capture=capture, precision=precision)
        self.progress, self.draws = progress, Draws(SEED)

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        terms = self.engine.run(x, self.progress, self.draws)
        self.draws = self.draws.advance(len(x))
        return terms


class Step(Problem):
    """A training step as a case.

    A subclass sets `x`, a batch, and `progress`; it defines the objective, the baseline, and what both draw and compute. Dropout is off while they
    are compared.
    """

    x: Tensor
    progress: Progress
    gradient_floors: tuple[float, ...] = (GRADIENT_FLOOR,)  # of `problem.compare`

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, backward=True)
        self._known: dict[str, dict[str, Tensor]] = {}

    def objective(self) -> Objective:
        """Our objective with new weights, the same every time."""
        raise NotImplementedError

    def perceptrons(self, objective: Objective) -> Mapping[str, networks.MLP]:
        """Our dense networks under the baseline's names."""
        raise NotImplementedError

    def denoiser(self, objective: Objective) -> ResidualMLP:
        """Our denoiser."""
        raise NotImplementedError

    def given(self, objective: Objective) -> dict[str, Any]:
        """What our step draws, in the form that the baseline takes: a tree of tensors."""
        raise NotImplementedError

    def plain(self, objective: Objective) -> PlainStep:
        """The baseline with weights of its own."""
        raise NotImplementedError

    def plain_losses(self, step: Any, given: dict[str, Any]) -> Losses:
        """Losses of the baseline with these draws."""
        raise NotImplementedError

    def our_losses(self, objective: Any) -> Losses:
        """Losses of our objective."""
        raise NotImplementedError

    def baseline(self, objective: Objective, compiled: bool = False) -> PlainStep:
        """The baseline with our weights."""
        step, denoiser = self.plain(objective), self.denoiser(objective)
        for name, network in self.perceptrons(objective).items():
            copy_perceptron(network, getattr(step.networks, name))
        for group, target in enumerate(_denoisers(step.networks)):
            copy_denoiser(denoiser, target, None if denoiser.groups is None else group)
        return step.compiled() if compiled else step

    def provider(self, name: str) -> Callable[[], object]:
        objective, ours = self.objective(), name.startswith("ours")
        step = OurStep(objective, self.device, self.progress, name.endswith("bf16")) if ours else self.baseline(objective, name == "compiled").train()
        if self.device.type == "cuda":
            for _ in range(5):  # a captured step runs eagerly before it is recorded
                step(self.x)
        return lambda: step(self.x)

    def check(self, name: str) -> None:
        bf16, objective = name.endswith("bf16"), self.objective().eval()
        with use_backend("reference"):
            given = self.given(objective)
            exact = self._once("exact", lambda: self._plain_results(self.baseline(objective).double(), _doubled(given)))
            plain = self._once(f"plain {bf16}", lambda: self._plain_results(self.baseline(objective), given, bf16))
            if not bf16:
                require_sound(plain, exact)
            got = self._plain_results(self.baseline(objective, compiled=True), given) if name == "compiled" else plain
        if name.startswith("ours"):
            got = self._our_results(objective, bf16)
        for key, value in got.items():
            compare(value, plain[key], exact[key], bf16, key, *(self.gradient_floors if "gradient" in key else ()))

    def _once(self, key: str, compute: Any) -> dict[str, Tensor]:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def _plain_results(self, step: PlainStep, given: dict[str, Any], bf16: bool = False) -> dict[str, Tensor]:
        def gradients() -> dict[str, Tensor]:
            dense = {name: network for name, network in step.networks.named_children() if isinstance(network, nn.Sequential)}
            each = [denoiser_gradients(network, [parameter.grad for parameter in network.parameters()]) for network in _denoisers(step.networks)]
            merged = {name: torch.stack([one[name] for one in each]) if len(each) > 1 else each[0][name] for name in each[0]}
            found = _gradients({name: linear_parameters(network) for name, network in dense.items()})
            return found | {f"gradient of denoiser {name}": value for name, value in merged.items()}

        return self._results(step.eval(), self.plain_losses(step, given), gradients, bf16)

    def _our_results(self, objective: Objective, bf16: bool) -> dict[str, Tensor]:
        def gradients() -> dict[str, Tensor]:
            found = _gradients({name: list(network.parameters()) for name, network in self.perceptrons(objective).items()})
            return found | {f"gradient of denoiser {name}": value.grad for name, value in self.denoiser(objective).named_parameters()}

        return self._results(objective, self.our_losses(objective), gradients, bf16)

    def _results(self, module: nn.Module, losses: Losses, gradients: Callable[[], dict[str, Tensor]], bf16: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for update, loss in losses:
            module.zero_grad()
            # Without autocast's cache of weights: a step of the optimizer inside would leave old ones in it.
            with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False) if bf16 else contextlib.nullcontext():
                value = loss()
            value.backward()
            found |= {update: value.detach(), **{f"{update} {name}": gradient for name, gradient in gradients().items()}}
        return {name: value.cpu() for name, value in found.items()}


def images(rows: int, pixels: int, device: torch.device) -> Tensor:
    """A batch in [0, 1] that is mostly dark, like digits."""
    return rng.uniform(Draws(SEED), (rows, pixels), rng.OBSERVATION, device=device) ** 4


def perceptron(number: int, inputs: int, hidden: int, outputs: int, dropout: float = 0.0) -> networks.MLP:
    """Our dense network of two hidden layers; `number` selects its initial weights."""
    return networks.MLP(inputs, [hidden] * 2, outputs, activation="leaky_relu", dropout=dropout, draws=Draws(SEED).importance(number))


def _denoisers(networks: nn.Module) -> list[nn.Module]:
    return list(networks.denoisers) if hasattr(networks, "denoisers") else [networks.denoiser]


def _gradients(parameters: Mapping[str, list[nn.Parameter]]) -> dict[str, Tensor]:
    """Gradients by network and position: weight and bias of one layer after another."""
    return {f"gradient of {name} {i}": value.grad for name, values in parameters.items() for i, value in enumerate(values) if value.grad is not None}


def _doubled(given: dict[str, Any]) -> dict[str, Any]:
    return tree_map_only(Tensor, lambda value: value.double() if value.is_floating_point() else value, given)
