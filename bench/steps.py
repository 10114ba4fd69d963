"""A training step as a case: what is checked is its losses and all gradients, against the baseline's for the same draws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from bench.problem import FLOOR, Problem, compare, require_sound
from ddvi_fast import use_backend
from ddvi_fast.objectives import Objective

GRADIENT_FLOOR = 10 * FLOOR  # they pass many steps and several networks


class Step(Problem):
    """A family writes the five parts that `check` is made of. Without dropout, whose noise the baseline draws by itself.

    Args:
        device: where the inputs stand.
    """

    gradient_floors: tuple[float, ...] = (GRADIENT_FLOOR,)  # of `problem.compare`

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, backward=True)
        self._known: dict[str, dict[str, Tensor]] = {}

    def objective(self) -> Objective:
        """Ours, with fresh weights, the same every time."""
        raise NotImplementedError

    def given(self, objective: Objective) -> dict[str, Any]:
        """What our step draws, as the baseline takes it: a tree of tensors."""
        raise NotImplementedError

    def baseline(self, objective: Objective, compiled: bool = False) -> Any:
        """The step in plain PyTorch, with our weights."""
        raise NotImplementedError

    def baseline_results(self, step: Any, given: dict[str, Any], bf16: bool = False) -> dict[str, Tensor]:
        """Its losses and gradients on given draws, under the names of ours."""
        raise NotImplementedError

    def our_results(self, objective: Objective, bf16: bool) -> dict[str, Tensor]:
        """Losses, and gradients under names with the word gradient in them."""
        raise NotImplementedError

    def check(self, name: str) -> None:
        bf16, objective = name.endswith("bf16"), self.objective().eval()
        with use_backend("reference"):
            given = self.given(objective)
            exact = self._once("exact", lambda: self.baseline_results(self.baseline(objective).double(), _doubled(given)))
            plain = self._once(f"plain {bf16}", lambda: self.baseline_results(self.baseline(objective), given, bf16))
            if not bf16:
                require_sound(plain, exact)
            got = self.baseline_results(self.baseline(objective, compiled=True), given) if name == "compiled" else plain
        if name.startswith("ours"):
            got = self.our_results(objective, bf16)
        for key, value in got.items():
            compare(value, plain[key], exact[key], bf16, key, *(self.gradient_floors if "gradient" in key else ()))

    def _once(self, key: str, compute: Any) -> dict[str, Tensor]:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


def _doubled(given: dict[str, Any]) -> dict[str, Any]:
    return tree_map_only(Tensor, lambda value: value.double() if value.is_floating_point() else value, given)
