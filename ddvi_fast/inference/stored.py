"""Simulations that were made before, in arrays that may be larger than memory."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.inference.kinds import called
from ddvi_fast.inference.missing import require_usable
from ddvi_fast.inference.support import Latents, Support
from ddvi_fast.rng import Draws
from ddvi_fast.standardization import Moments

_BYTES = 1 << 23  # bytes of an array at a time
_HELD = 1 << 28  # largest number of bytes of all arrays that are taken into memory at once


class StoredSimulations:
    """Simulations in arrays, in place of a simulator: `simulate` draws rows of them in a random order, each once before any a second time.

    Args:
        source: Folder with `x.npy` and `z.npy`, or for named parameters a file `z.NAME.npy` of each; or a pair `(z, x)` of NumPy arrays, memory
            maps or tensors, `z` a dictionary for named parameters. Row i of all arrays is one simulation. Files are mapped to memory and read in
            parts, so that they may be larger than memory.

    Raises:
        InputError: If a file is missing or is not that of an array, or if the arrays are not of real numbers with equally many rows, at least 2.

    Example:
        >>> stored = StoredSimulations((np.arange(10.0).reshape(5, 2), np.zeros((5, 3))))
        >>> z, x = stored.simulate(4, Draws(seed=0))
        >>> len(stored), z.shape, x.shape
        (5, torch.Size([4, 2]), torch.Size([4, 3]))
    """

    def __init__(self, source: Any) -> None:
        z, x = _of_folder(_checks.path(source, "simulations")) if isinstance(source, (str, Path)) else _of_pair(source)
        self.named = isinstance(z, Mapping)
        self._z = {called("simulations, z", name): value for name, value in z.items()} if self.named else {"simulations, z": z}
        self._names, self._x = list(z) if self.named else [""], x
        for argument, value in (*self._z.items(), ("simulations, x", x)):
            _require_array(value, argument)
            _checks.require(len(value) == len(x), argument, f"{len(x)} rows, as x has", len(value))

    def __len__(self) -> int:
        return len(self._x)

    @property
    def in_memory(self) -> bool:
        """Whether all simulations are taken into memory at once."""
        return sum(value.nbytes for value in (self._x, *self._z.values())) <= _HELD

    @property
    def dim(self) -> int:
        """Length of parameter vectors without names."""
        (z,) = self._z.values()
        _checks.require(z.ndim == 2, "simulations, z", "parameters [n, D], or named ones", f"shape {list(z.shape)}")
        return int(z.shape[1])

    def simulate(self, n: int, draws: Draws) -> tuple[Latents, Tensor]:
        """Return `n` rows, those of `draws` in the shuffled order (`rng.shuffled`)."""
        order, back = rng.shuffled(draws, n, len(self)).sort()
        back = back.argsort()
        z = [_rows(value, order.numpy())[back] for value in self._z.values()]
        x = _rows(self._x, order.numpy())[back]
        self._let_go()
        return (dict(zip(self._names, z, strict=True)) if self.named else z[0]), x

    def moments(self, support: Support, missing: bool = False) -> tuple[Moments, Moments]:
        """Compute the moments of the unconstrained parameters and of the flattened data over all rows, in one pass of parts.

        Raises:
            InputError: If parameters are outside of the support, or if values are not finite; NaN is allowed in data with `missing`.
        """
        of_u, of_x = Moments(), Moments()
        for part in self._parts():
            z = {name: _rows(value, part) for name, value in zip(self._names, self._z.values(), strict=True)}
            of_u.add(support.unconstrain(z if self.named else z[""], f"simulations, z, rows {part.start} to {part.stop - 1}"))
            x = require_usable(_rows(self._x, part).flatten(1), f"simulations, x, rows {part.start} to {part.stop - 1}", missing)
            of_x.add(x)
            self._let_go()
        return of_u, of_x

    def _parts(self) -> Iterator[slice]:
        row = max(value[:1].nbytes for value in (self._x, *self._z.values()))
        size = max(1, _BYTES // max(1, row))
        for first in range(0, len(self), size):
            yield slice(first, min(len(self), first + size))

    def _let_go(self) -> None:
        """Release the pages of mapped files that were read; otherwise they count as memory of the process until the system needs it."""
        for value in (self._x, *self._z.values()):
            source = value
            while isinstance(source, np.ndarray):
                source = source.base
            if isinstance(source, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") and isinstance(value, np.memmap) and value.mode == "r":
                source.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class StoredModel:
    """Simulations that were made before, as the simulator of a model with or without a density of its own.

    Args:
        stored: The simulations.
        model: Model with `log_joint`, or None.
    """

    stored: StoredSimulations
    model: Any = None

    def __getattr__(self, name: str) -> Any:
        if name == "log_joint" and self.__dict__.get("model") is not None:
            return self.model.log_joint
        raise AttributeError(name)

    def simulate(self, n: int, draws: Draws) -> tuple[Latents, Tensor]:
        """Return rows of the stored simulations."""
        return self.stored.simulate(n, draws)


def _of_folder(folder: Path) -> tuple[Any, Any]:
    """Parameters and data in the files of a folder, mapped to memory."""
    named = {path.name[2:-4]: path for path in sorted(folder.glob("z.*.npy"))} if folder.is_dir() else {}
    plain, x = folder / "z.npy", folder / "x.npy"
    complete = x.is_file() and plain.is_file() != bool(named)
    _checks.require(complete, "simulations", "a folder with x.npy, and z.npy or z.NAME.npy for named parameters", str(folder))
    return ({name: _mapped(path) for name, path in named.items()} if named else _mapped(plain)), _mapped(x)


def _mapped(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        _checks.fail("simulations", "files of NumPy arrays", f"{path.name}: {_checks.one_line(error)}")


def _of_pair(source: Any) -> tuple[Any, Any]:
    pair = isinstance(source, (tuple, list)) and len(source) == 2
    _checks.require(pair, "simulations", "a folder, or a pair of arrays (z, x)", source)
    z, x = source
    return ({name: _array(value) for name, value in z.items()} if isinstance(z, Mapping) else _array(z)), _array(x)


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) and value.dtype != torch.bfloat16 else value


def _require_array(value: Any, argument: str) -> None:
    _checks.require(isinstance(value, np.ndarray), argument, "a NumPy array, a memory map or a tensor", value)
    _checks.require(value.dtype.kind in "fiub", argument, "real numbers", f"values of type {value.dtype}")
    _checks.require(value.ndim >= 1 and len(value) >= 2 and value[:1].size > 0, argument, "at least 2 rows of numbers", f"shape {list(value.shape)}")


def _rows(value: Any, rows: Any) -> Tensor:
    """Rows of an array as a tensor of its own: in single precision if the array holds no more, otherwise in double."""
    single = value.dtype.kind == "f" and value.dtype.itemsize <= 4
    return torch.from_numpy(np.array(value[rows], dtype=np.float32 if single else np.float64, order="C"))
