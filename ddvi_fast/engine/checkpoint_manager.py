"""Checkpoints of a run in progress: written in the background, the last few kept, and the best one.

A checkpoint holds everything under names of the modules, never of a process or a ZeRO stage, so that any engine can resume from it.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast._checks import InputError
from ddvi_fast.engine import checkpoint

_PREFIX, BEST = "step-", "best"


class Found(NamedTuple):
    """A checkpoint that was read: its name, tensors and state."""

    name: str
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointManager:
    """Checkpoints ``step-00000100`` and ``best`` in a folder, written by a thread while training continues.

    A write that fails (a full disk) is reported, and earlier checkpoints remain. Only `wait` raises.

    Args:
        folder: Folder of the checkpoints.
        keep: Number of recent checkpoints to keep (int, default 2).
        tell: Function that is called with each message, a line of text.

    Example:
        >>> import tempfile, torch
        >>> checkpoints = CheckpointManager(Path(tempfile.mkdtemp()), keep=1)
        >>> for step in (100, 200):
        ...     checkpoints.save(step, {"w": torch.ones(2)}, {"step": step})
        >>> checkpoints.wait()
        >>> checkpoints.newest().name, sorted(path.name for path in checkpoints.folder.iterdir())
        ('step-00000200', ['step-00000200'])
    """

    def __init__(self, folder: Path, keep: int = 2, tell: Callable[[str], None] = print) -> None:
        _checks.require(keep >= 1, "checkpoint_keep", "at least 1", keep)
        self.folder, self.keep, self._tell = folder, keep, tell
        self._writer: threading.Thread | None = None
        self._failure: OSError | None = None
        self._copies: dict[str, Tensor] = {}

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], best: bool = False) -> None:
        """Copy `tensors` to the host now, and write them while training continues; waits for the previous write."""
        self._join()
        self._copy(tensors)
        self._writer = threading.Thread(target=self._write, args=(f"{_PREFIX}{step:08d}", dict(state), best), name="checkpoint")
        self._writer.start()

    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy into buffers that are kept between checkpoints: allocating them costs more than the copy."""
        kept, self._copies = self._copies, {}
        for name, value in tensors.items():
            copy = kept.get(name)
            if copy is None or copy.shape != value.shape or copy.dtype != value.dtype:
                copy = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=value.is_cuda)
            self._copies[name] = copy.copy_(value.detach())

    def wait(self) -> None:
        """Wait until what has been saved is on the disk.

        Raises:
            OSError: The last write failed.
        """
        self._join()
        if self._failure is not None:
            raise self._failure

    def newest(self) -> Found | None:
        """The newest checkpoint that is intact, or None; reports those that are not, and why."""
        for path in reversed(self._present()):
            try:
                found = Found(path.name, *checkpoint.load(path))
                checkpoint.require_numbers(found.tensors)
                return found
            except InputError as error:
                self._tell(f"checkpoint {path.name} is corrupt ({error}); falling back to the previous one")
        return None

    def _join(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _write(self, name: str, state: dict[str, Any], best: bool) -> None:
        try:
            checkpoint.save(self.folder / name, self._copies, state)
            if best:
                checkpoint.link(self.folder / name, self.folder / BEST)
            for path in self._present()[: -self.keep]:
                shutil.rmtree(path, ignore_errors=True)
            self._failure = None
        except OSError as error:
            self._failure = error
            for unfinished in (name, BEST):
                shutil.rmtree(checkpoint.partial(self.folder / unfinished), ignore_errors=True)
            present = self._present()
            left = f"the latest is {present[-1].name}" if present else "there is no earlier one"
            self._tell(f"checkpoint {name} could not be written ({error.strerror}); {left}")

    def _present(self) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"{_PREFIX}*") if path.is_dir())


def tensors_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and persistent buffers of all modules by name. A tensor that several modules share has the first of its names.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> sorted(tensors_of({"decoder": layer, "objective": nn.Sequential(layer, nn.Linear(1, 1, bias=False))}))
        ['decoder.weight', 'objective.1.weight']
    """
    seen: set[int] = set()
    found = {}
    for prefix, module in modules.items():
        for name, value in module.state_dict(keep_vars=True).items():
            if isinstance(value, Tensor) and id(value) not in seen:
                seen.add(id(value))
                found[f"{prefix}.{name}"] = value
    return found
