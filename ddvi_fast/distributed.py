"""Processes of a run: rank and world size, parts of a batch, and reductions over the whole batch.

A batch of the run is cut into equal parts of consecutive rows, one for each process and accumulation step. Most losses are means over
independent rows, so the mean over a batch is the mean over its parts. Losses that couple rows (a discrepancy between samples, the mean
class probability, batch statistics) use `gathered` rows or a `batch_mean`, whose gradients cross processes as their values do.
"""

from __future__ import annotations

import datetime
import gc
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ddvi_fast import _checks
from ddvi_fast.rng import DeviceDraws, Draws

TIMEOUT = 300.0  # seconds after which a collective is given up


@dataclass(frozen=True)
class Part:
    """Part `index` of the `count` equal parts of a batch.

    Example:
        >>> Part(1, 4).rows(128)
        slice(32, 64, None)
    """

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> slice:
        """The rows of a whole batch that belong to this part.

        Raises:
            InputError: The batch cannot be cut into equal parts.
        """
        whole = batch_size % self.count == 0
        _checks.require(whole, "batch_size", f"a multiple of {self.count}, the number of processes times accumulation steps", batch_size)
        size = batch_size // self.count
        return slice(self.index * size, (self.index + 1) * size)


_part = Part()
_store: dist.Store | None = None


@contextmanager
def part_of_batch(part: Part) -> Iterator[None]:
    """Context whose code computes on `part` of a batch."""
    global _part
    before, _part = _part, part
    try:
        yield
    finally:
        _part = before


def current_part() -> Part:
    """The part of the batch that the current code computes on."""
    return _part


def whole_batch(rows: int, draws: Draws | DeviceDraws) -> tuple[int, Draws | DeviceDraws]:
    """Number of rows, and draws, of the whole batch, from those of the current part.

    Example:
        >>> with part_of_batch(Part(1, 4)):
        ...     whole_batch(32, Draws(0, 160))
        (128, Draws(seed=0, first_index=128))
    """
    return rows * _part.count, draws.advance(-_part.index * rows) if _part.index else draws


def gathered(x: Tensor) -> Tensor:
    """The rows of all parts of the batch in order, [count N, ...] from [N, ...], with gradients.

    Raises:
        InputError: Gradients are accumulated, so that some parts are not computed yet.
    """
    return x if _part.count == 1 else _Gather.apply(_joinable(x))


def batch_mean(x: Tensor) -> Tensor:
    """The mean over parts of a tensor of any shape, with its gradient; InputError as in `gathered`."""
    return x if _part.count == 1 else _Mean.apply(_joinable(x))


def _joinable(x: Tensor) -> Tensor:
    hint = "the loss couples the rows of a batch, and accumulated parts are computed one after another"
    _checks.require(_part.count == world_size(), "accumulation", "1", _part.count // world_size(), hint)
    return x


class _Gather(torch.autograd.Function):
    """Every process computes with all rows; the gradient of a row is the sum of its gradients in all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        total = upstream.clone()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


class _Mean(torch.autograd.Function):
    """Gradients are averaged over processes as values are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return mean_over_processes(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        return mean_over_processes(upstream)


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean over processes of a tensor that each of them has, without a gradient."""
    return x if world_size() == 1 else average_(x.clone())


def average_(x: Tensor) -> Tensor:
    """Replace a contiguous tensor by its mean over processes, in place, and return it."""
    if world_size() > 1:
        dist.all_reduce(x)
        x /= world_size()
    return x


def means_over_processes(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means over processes of scalars by name, in one collective; every process has the same names."""
    if world_size() == 1 or not values:
        return dict(values)
    return dict(zip(values, mean_over_processes(torch.stack(list(values.values()))).unbind(), strict=True))


def share(rows: int) -> slice:
    """This process's share of `rows` rows; shares need not be equal, and each row belongs to one process.

    Example:
        >>> share(10)
        slice(0, 10, None)
    """
    size = world_size()
    return slice(rows * rank() // size, rows * (rank() + 1) // size)


def collect(mine: Tensor, rows: int) -> Tensor:
    """All `rows` rows, [rows, ...], from the shares of the processes, in each of them; without a gradient."""
    if world_size() == 1:
        return mine
    longest = -(-rows // world_size())
    padded = mine.new_zeros(longest, *mine.shape[1:])
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    lengths = [rows * (number + 1) // world_size() - rows * number // world_size() for number in range(world_size())]
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def any_process(flag: bool) -> bool:
    """Whether `flag` holds in any process."""
    if world_size() == 1:
        return flag
    seen = torch.tensor([float(flag)], device=_exchange_device())
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return bool(seen)


def wait_for_all() -> None:
    """Wait until every process has called this function."""
    if world_size() > 1:
        any_process(False)


def rank() -> int:
    """Rank of this process; 0 in a run of one."""
    return dist.get_rank() if _started() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _started() else 1


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def speaks() -> bool:
    """Whether a launcher calls this process the first one; known before `start` and after `stop`, too."""
    return int(os.environ.get("RANK", "0")) == 0


def launched() -> bool:
    """Whether a launcher (torchrun, deepspeed, srun with its variables set) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(device: torch.device | str, timeout: float = TIMEOUT) -> None:
    """Join the other processes by the launcher's environment (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); nothing happens in a run of one.

    Args:
        device: Device of this process. Collectives use NCCL if every process has a GPU of its own, and gloo elsewhere.
        timeout: Time in seconds after which a collective that a peer does not reach is given up.
    """
    if not launched() or _started():
        return
    global _store
    # Torch loads this module with its first optimiser, and its functions' defaults are the group of that time: loaded after the
    # group, they would keep its threads alive past `stop`, where they race with the end of the interpreter and abort it.
    importlib.import_module("torch.distributed.nn.functional")
    if str(device).startswith("cuda"):
        torch.cuda.set_device(device)
    backend, limit = _backend_of(str(device)), datetime.timedelta(seconds=timeout)
    _store, number, size = next(dist.rendezvous("env://", timeout=limit))
    dist.init_process_group(backend, store=dist.PrefixStore("exchange", _store), rank=number, world_size=size, timeout=limit)


def _backend_of(device: str) -> str:
    """The library of the collectives: NCCL refuses two processes on one GPU."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return "nccl" if device.startswith("cuda") and here <= torch.cuda.device_count() else "gloo"


def stop() -> None:
    """Leave the other processes; the threads of collectives end here, unless a caller still holds a DeepSpeed engine."""
    global _store
    if _started():
        deepspeed = sys.modules.get("deepspeed.comm")  # it keeps references of its own, which this releases
        (deepspeed if deepspeed is not None and deepspeed.is_initialized() else dist).destroy_process_group()
        gc.collect()  # engines refer to themselves, and to the group
    _store = None


def store(name: str) -> dist.Store:
    """A key-value store of all processes under a name, by a connection of its own; only between `start` and `stop`."""
    return dist.PrefixStore(name, _store.clone())


def local_device(name: str) -> str:
    """The GPU of this process for the name ``cuda`` (``cuda:1``, say); other names as they are.

    Example:
        >>> local_device("cpu")
        'cpu'
    """
    if name != "cuda" or not launched():
        return name
    place, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    return f"cuda:{place % count if count else place}"


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


def _exchange_device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
