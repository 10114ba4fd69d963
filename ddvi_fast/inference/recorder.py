"""Checkpoints and progress of a fit, stage by stage."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.checkpoint_manager import CheckpointManager
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.progress import display
from ddvi_fast.inference.averaged import Averaged
from ddvi_fast.standardization import tell

_KIND, _SETTINGS = "ddvi_fast fit", "settings"
_WRITTEN = 20  # checkpoints of a stage
_SHOWN = 0.2  # seconds between two updates of the display, which reads a loss from the device
_CLOSE = 1e-4  # relative difference of values that another processor may compute


class Recorder:
    """What a fit shows while it runs, and keeps for another call with the same arguments.

    Args:
        progress: Whether to show the progress on standard error (bool, default False).
        folder: Folder of the checkpoints, or None (default) for none.
        settings: Settings of the fit, plain values by name.

    Raises:
        InputError: If the folder holds a fit with other settings or files of another kind, or if it is damaged.
    """

    def __init__(self, progress: bool = False, folder: Path | None = None, settings: Mapping[str, Any] | None = None) -> None:
        self.progress, self.folder = progress, folder
        if folder is not None:
            self._open(folder, json.loads(json.dumps(dict(settings or {}))))

    def _open(self, folder: Path, settings: dict[str, Any]) -> None:
        path = folder / _SETTINGS
        if not folder.exists() or not any(folder.iterdir()):
            checkpoint.save(path, {}, {"kind": _KIND, "settings": settings})
            return
        _checks.require(path.is_dir(), "checkpoint", "a new or empty folder, or that of an earlier call", f"{folder} with other files")
        _, state = checkpoint.load(path)
        _checks.require(state.get("kind") == _KIND, "checkpoint", "the folder of a fit", str(folder))
        kept = state["settings"]
        for name, value in settings.items():
            _checks.require(kept.get(name) == value, "checkpoint", f"a fit with {name}={value}", f"one with {name}={kept.get(name)}", str(folder))

    def kept(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return tensors that `make` computes, or those that an earlier call kept under `name`."""
        if self.folder is None:
            return make()
        path = self.folder / name
        if not path.exists():
            checkpoint.save(path, made := make(), {})
            return made
        return checkpoint.load(path)[0]

    def require_same(self, name: str, make: Callable[[], dict[str, Tensor]]) -> None:
        """Require that `make` computes what it did in an earlier call, but for rounding: values by which one knows a model."""
        if self.folder is None:
            return
        made = {part: value.detach().cpu() for part, value in make().items()}
        for part, value in sorted(self.kept(name, lambda: made).items()):
            found = made.get(part)
            hint = "another model, or one with random numbers of its own"
            _checks.require(_alike(found, value), "checkpoint", f"a model with the {part} of the earlier call", "others", hint)

    def stage(self, name: str, steps: int) -> Stage:
        """Return the record of a stage of so many steps."""
        return Stage(name, steps, self.progress, None if self.folder is None else self.folder / name)


class Stage:
    """Record of one training of a fit: a display, and checkpoints from which it continues bit for bit.

    Args:
        name: Name of the stage.
        steps: Largest number of its steps (int).
        progress: Whether to show them.
        folder: Folder of its checkpoints, or None.
    """

    def __init__(self, name: str, steps: int, progress: bool, folder: Path | None) -> None:
        self.name, self.steps = name, steps
        self._checkpoints = None if folder is None else CheckpointManager(folder, tell=tell)
        self._progress, self._display, self._shown = progress, display("off", sys.stderr, steps), 0.0

    def restore(self, engine: Engine, averaged: Averaged | None) -> tuple[list[Tensor], bool]:
        """Continue from the newest intact checkpoint: return the losses so far, and whether the stage has ended."""
        found = None if self._checkpoints is None else self._checkpoints.newest()
        losses, ended = [], False
        if found is not None:
            parts = _by_part(found.tensors)
            checkpoint.load_modules(found.tensors, {"objective": engine.objective})
            engine.load_state(parts.get("adam", {}))
            if averaged is not None:
                averaged.load_state(parts["averaged"])
            _set_generators(parts["generators"], found.state, engine.device)
            losses, ended = list(found.tensors["losses"].to(engine.device)), bool(found.state["ended"])
        self._display = display("auto" if self._progress else "off", sys.stderr, self.steps, len(losses))
        return losses, ended

    def after_step(self, engine: Engine, averaged: Averaged | None, losses: Sequence[Tensor]) -> None:
        """Show a step that has been taken, and write a checkpoint where one is due."""
        count = len(losses)
        if self._progress and (count == self.steps or time.monotonic() - self._shown > _SHOWN):
            self._display.update(count, self.name, {"loss": float(losses[-1])})
            self._shown = time.monotonic()
        if count % max(1, self.steps // _WRITTEN) == 0:
            self._save(engine, averaged, losses, ended=False)

    def end(self, engine: Engine, averaged: Averaged | None, losses: Sequence[Tensor]) -> None:
        """Write the last checkpoint, and wait for it."""
        self._save(engine, averaged, losses, ended=True)
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def close(self) -> None:
        """End the display, and wait for what is being written."""
        self._display.close()
        if self._checkpoints is not None:
            with suppress(OSError):  # which has been told
                self._checkpoints.wait()

    def _save(self, engine: Engine, averaged: Averaged | None, losses: Sequence[Tensor], ended: bool) -> None:
        if self._checkpoints is None:
            return
        generators, state = _generators(engine.device)
        tensors = {
            **checkpoint.module_tensors({"objective": engine.objective}),
            **{f"adam.{name}": value for name, value in engine.state().items()},
            **({} if averaged is None else {f"averaged.{name}": value for name, value in averaged.state().items()}),
            **{f"generators.{name}": value for name, value in generators.items()},
            "losses": torch.stack(list(losses)),
        }
        # A stage that has ended has one checkpoint more than its steps, because the weights are those that were chosen in the end.
        self._checkpoints.save(len(losses) + ended, tensors, {**state, "ended": ended})


def _alike(found: Tensor | None, value: Tensor) -> bool:
    """Whether tensors are equal but for rounding, in units of their size."""
    if found is None or found.shape != value.shape:
        return False
    size = float(value.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).abs().max()) if value.numel() else 0.0
    return torch.allclose(found.double(), value.double(), rtol=_CLOSE, atol=_CLOSE * size, equal_nan=True)


def _by_part(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by the part of their name before the first dot."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    return parts


def _generators(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """States of the global generators, from which embeddings and densities may draw: those of torch as tensors, the others as plain values."""
    tensors = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    of_numpy: Any = np.random.get_state()
    name, words, *rest = of_numpy
    version, own, gauss = random.getstate()
    return tensors, {"numpy": [name, words.tolist(), *rest], "python": [version, list(own), gauss]}


def _set_generators(tensors: Mapping[str, Tensor], state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["cuda"], device)
    name, words, *rest = state["numpy"]
    np.random.set_state((name, np.array(words, np.uint32), *rest))
    version, own, gauss = state["python"]
    random.setstate((version, tuple(own), gauss))
