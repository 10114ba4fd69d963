"""The checkpoints of a run as it goes: written aside without holding training up, the last few kept, the best one too.

A checkpoint holds everything under names of the modules, never of a process or a ZeRO stage, so that any engine can go on from it.
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
    """A checkpoint that has been read: its name, tensors and state."""

    name: str
    tensors: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """Checkpoints ``step-00000100`` and ``best`` in a folder.

    A write that fails (a full disk) is told, and training goes on: what stood before stands. Only `wait` raises.

    Args:
        folder: of the checkpoints.
        keep: how many of the last ones stay.
        tell: where news for people go, a line at a time.

    Example:
        >>> import tempfile, torch
        >>> checkpoints = Checkpoints(Path(tempfile.mkdtemp()), keep=1)
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
        """Copy `tensors` to the host now, and write them while training goes on; waits for the write before this one."""
        self._join()
        self._copy(tensors)
        self._writer = threading.Thread(target=self._write, args=(f"{_PREFIX}{step:08d}", dict(state), best), name="checkpoint")
        self._writer.start()

    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        """Into memory that is kept from one checkpoint to the next: to be given fresh memory costs more than the copy."""
        kept, self._copies = self._copies, {}
        for name, value in tensors.items():
            copy = kept.get(name)
            if copy is None or copy.shape != value.shape or copy.dtype != value.dtype:
                copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
            self._copies[name] = copy.copy_(value.detach())

    def wait(self) -> None:
        """Until what has been saved is on the disk.

        Raises:
            OSError: the last write failed.
        """
        self._join()
        if self._failure is not None:
            raise self._failure

    def newest(self) -> Found | None:
        """The newest checkpoint that is whole, or None; tells of those that are not, and why."""
        for path in reversed(self._standing()):
            try:
                return Found(path.name, *checkpoint.load(path))
            except InputError as error:
                self._tell(f"checkpoint {path.name} cannot be used, the one before it is tried: {error}")
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
            for path in self._standing()[: -self.keep]:
                shutil.rmtree(path, ignore_errors=True)
            self._failure = None
        except OSError as error:
            self._failure = error
            for unfinished in (name, BEST):
                shutil.rmtree(checkpoint.partial(self.folder / unfinished), ignore_errors=True)
            stands = self._standing()
            left = f"{stands[-1].name} is intact" if stands else "there is none before it"
            self._tell(f"checkpoint {name} was not written ({error.strerror}): {left}")

    def _standing(self) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"{_PREFIX}*") if path.is_dir())


def tensors_of(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and persistent buffers of all modules, those that several share once, under the first of their names.

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
