"""Record of a step whose loss or gradient was not finite: weights, batch and position, for a replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.non_finite import NonFinite
from ddvi_fast.objectives import Progress
from ddvi_fast.recipes.mapping import from_mapping

KIND = "ddvi_fast failed step"
_SHOWN = 8


@dataclass(frozen=True)
class State:
    """Plain values of a failed step."""

    kind: str
    config: dict[str, Any]
    step: int
    phase: int
    progress: list[Any]
    first_index: int
    what: Any
    names: list[str]
    rows: list[int]
    examples: list[int]


class FailedStep(NamedTuple):
    """Record of a failed step.

    Args:
        weights: Weights by name before the update that failed.
        batch: Inputs of the whole batch, augmented, [N, ...].
        indices: Indices of its rows in the training split, int64 [N].
        state: Plain values: configuration, step, phase, progress, draws, and what was not finite.
    """

    weights: dict[str, Tensor]
    batch: Tensor
    indices: Tensor
    state: dict[str, Any]

    @property
    def progress(self) -> Progress:
        """Position of the step in its phase."""
        return Progress(*self.state["progress"])


def write(path: Path, error: NonFinite, weights: Mapping[str, Tensor], batch: Tensor, first_index: int, config: Mapping[str, Any]) -> None:
    """Write the step that `error` met as a bundle.

    Args:
        path: a new folder, in the form of a checkpoint.
        error: with its info.
        weights: by name.
        batch: inputs of the whole batch [N, ...].
        first_index: draw of its first row.
        config: of the run.
    """
    info = error.info
    progress = [info.progress.epoch, info.progress.epochs, info.progress.num_steps]
    state = {
        "kind": KIND, "config": dict(config), "step": info.step, "phase": info.phase, "progress": progress, "first_index": first_index,
        "what": error.what, "names": error.names, "rows": error.rows, "examples": examples(error),
    }  # fmt: skip
    checkpoint.save(path, {**{f"weights/{name}": value for name, value in weights.items()}, "batch": batch, "indices": info.indices}, state)


def read(path: Path) -> FailedStep:
    """Read the record of a failed step.

    Raises:
        InputError: There is none, it is corrupt, or it is another checkpoint.
    """
    tensors, state = checkpoint.load(path)
    _checks.require(state.get("kind") == KIND, str(path), "the record of a failed step", "another checkpoint")
    _checks.require({"batch", "indices"} <= tensors.keys(), str(path), "tensors batch and indices", ", ".join(tensors) or "none")
    state = asdict(from_mapping(State, state, str(path)))
    numbers = [part for part in state["progress"] if part is not None]
    whole = len(state["progress"]) == 3 and len(numbers) >= 2 and all(type(part) in (int, float) for part in numbers)
    _checks.require(whole, f"{path}, progress", "epoch, epochs and steps", state["progress"])
    weights = {name.removeprefix("weights/"): value for name, value in tensors.items() if name.startswith("weights/")}
    return FailedStep(weights, tensors["batch"], tensors["indices"], state)


def examples(error: NonFinite) -> list[int]:
    """Indices in the training split of the rows with a term that is not finite."""
    return [int(error.info.indices[row]) for row in error.rows]


def describe(error: NonFinite) -> str:
    """The step, and what was not finite in it, in one line."""
    numbers = examples(error)
    shown = ", ".join(map(str, numbers[:_SHOWN])) + (f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else "")
    rows = f" at training example{'s' if len(numbers) > 1 else ''} {shown}" if numbers else ""
    return f"step {error.info.step + 1}: {error}{rows}"
