"""What is kept of a step whose loss or gradient was not finite, so that it can be looked at: weights, the batch, and where it stood."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.base import NonFinite
from ddvi_fast.objectives import Progress

KIND = "ddvi_fast failed step"
_SHOWN = 8


class Bundle(NamedTuple):
    """A failed step as it was kept.

    Args:
        weights: by name, as they were before the update that failed.
        batch: the inputs of the whole batch as the objective saw them, [N, ...].
        indices: of its rows in the training split.
        state: plain values: configuration, step, phase, progress, draws, and what was found.
    """

    weights: dict[str, Tensor]
    batch: Tensor
    indices: Tensor
    state: dict[str, Any]

    @property
    def progress(self) -> Progress:
        """How far the phase had come."""
        return Progress(*self.state["progress"])


def write(path: Path, error: NonFinite, weights: Mapping[str, Tensor], batch: Tensor, first_index: int, config: Mapping[str, Any]) -> None:
    """Write the step that `error` met as a bundle.

    Args:
        path: a new folder, in the form of a checkpoint.
        error: with its place.
        weights: by name.
        batch: inputs of the whole batch [N, ...].
        first_index: draw of its first row.
        config: of the run.
    """
    place = error.place
    progress = [place.progress.epoch, place.progress.epochs, place.progress.num_steps]
    state = {
        "kind": KIND, "config": dict(config), "step": place.step, "phase": place.phase, "progress": progress, "first_index": first_index,
        "what": error.what, "names": error.names, "rows": error.rows, "examples": examples(error),
    }  # fmt: skip
    checkpoint.save(path, {**{f"weights/{name}": value for name, value in weights.items()}, "batch": batch, "indices": place.indices}, state)


def read(path: Path) -> Bundle:
    """Read a bundle.

    Raises:
        InputError: there is none, it is damaged, or it is a checkpoint of something else.
    """
    tensors, state = checkpoint.load(path)
    _checks.require(state.get("kind") == KIND, str(path), "the bundle of a failed step", "another checkpoint")
    weights = {name.removeprefix("weights/"): value for name, value in tensors.items() if name.startswith("weights/")}
    return Bundle(weights, tensors["batch"], tensors["indices"], state)


def examples(error: NonFinite) -> list[int]:
    """Numbers in the training split of the rows at fault."""
    return [int(error.place.indices[row]) for row in error.rows]


def describe(error: NonFinite) -> str:
    """Where and in what a step failed, in one line."""
    numbers = examples(error)
    shown = ", ".join(map(str, numbers[:_SHOWN])) + (f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else "")
    blamed = f" at training example{'s' if len(numbers) > 1 else ''} {shown}" if numbers else ""
    return f"step {error.place.step + 1}: {error}{blamed}"
