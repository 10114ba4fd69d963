"""Several processes, one batch: who this process is, which part of the batch it holds, and what needs the whole of it.

A batch of the run is cut into equal parts of consecutive rows, one for each process and accumulation step. Rows do not know of each
other, so the mean over a batch is the mean over its parts; losses that couple rows (a discrepancy between samples, the mean
class probability, batch statistics) ask for `gathered` rows or a `batch_mean`, whose gradients cross processes as their values do.
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

TIMEOUT = 300.0  # seconds that a process waits for its peers


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
        """The rows of a whole batch that it holds.

        Raises:
            InputError: the batch does not fall into equal parts.
        """
        whole = batch_size % self.count == 0
        _checks.require(whole, "batch_size", f"a multiple of {self.count}, processes times accumulation steps", batch_size)
        size = batch_size // self.count
        return slice(self.index * size, (self.index + 1) * size)


_part = Part()
_store: dist.Store | None = None


@contextmanager
def part_of_batch(part: Part) -> Iterator[None]:
    """What runs inside computes on `part` of a batch."""
    global _part
    before, _part = _part, part
    try:
        yield
    finally:
        _part = before


def current_part() -> Part:
    """What `part_of_batch` says."""
    return _part


def whole_batch(rows: int, draws: Draws | DeviceDraws) -> tuple[int, Draws | DeviceDraws]:
    """Rows and draws of the whole batch, from those of the part at hand.

    Example:
        >>> with part_of_batch(Part(1, 4)):
        ...     whole_batch(32, Draws(0, 160))
        (128, Draws(seed=0, first_index=128))
    """
    return rows * _part.count, draws.advance(-_part.index * rows) if _part.index else draws


def gathered(x: Tensor) -> Tensor:
    """The rows of all parts of the batch in order, [count N, ...] from [N, ...], with their gradients.

    Raises:
        InputError: some parts are yet to come, because gradients are accumulated.
    """
    return x if _part.count == 1 else _Gather.apply(_joinable(x))


def batch_mean(x: Tensor) -> Tensor:
    """The mean over parts of a tensor of any shape, with its gradient; InputError as in `gathered`."""
    return x if _part.count == 1 else _Mean.apply(_joinable(x))


def _joinable(x: Tensor) -> Tensor:
    hint = "the loss couples the rows of a batch, and accumulated parts do not see each other"
    _checks.require(_part.count == world_size(), "accumulation", "1", _part.count // world_size(), hint)
    return x


class _Gather(torch.autograd.Function):
    """Every process computes with all rows; the gradient of a row is the sum of what all of them found for it."""

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
    """The mean of a tensor that every process has, without a gradient."""
    return x if world_size() == 1 else average_(x.clone())


def average_(x: Tensor) -> Tensor:
    """Make a contiguous tensor its mean over processes, in place; returns it."""
    if world_size() > 1:
        dist.all_reduce(x)
        x /= world_size()
    return x


def means_over_processes(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The means of scalars of the same names in every process, in one exchange."""
    if world_size() == 1 or not values:
        return dict(values)
    return dict(zip(values, mean_over_processes(torch.stack(list(values.values()))).unbind(), strict=True))


def share(rows: int) -> slice:
    """This process's share of `rows` rows, which need not fall into equal parts; each row belongs to one process.

    Example:
        >>> share(10)
        slice(0, 10, None)
    """
    size = world_size()
    return slice(rows * rank() // size, rows * (rank() + 1) // size)


def collect(mine: Tensor, rows: int) -> Tensor:
    """All `rows` rows from the shares of the processes, [rows, ...] in each of them; without a gradient."""
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
    """Go on when every process has come here."""
    if world_size() > 1:
        any_process(False)


def rank() -> int:
    """Number of this process, 0 where there is one."""
    return dist.get_rank() if _started() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if _started() else 1


def is_first() -> bool:
    """Whether this process writes files and talks."""
    return rank() == 0


def speaks() -> bool:
    """Whether this is the process that a launcher calls the first, before and after `start` and `stop` too."""
    return int(os.environ.get("RANK", "0")) == 0


def launched() -> bool:
    """Whether a launcher (torchrun, deepspeed, srun with its variables set) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(device: torch.device | str, timeout: float = TIMEOUT) -> None:
    """Join the other processes as the launcher's environment says (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); one alone does nothing.

    Args:
        device: NCCL on a GPU, gloo elsewhere.
        timeout: seconds until an exchange that a peer does not answer is given up.
    """
    if not launched() or _started():
        return
    global _store
    # Torch loads this module with its first optimiser, and its functions' defaults are the group of that time: loaded after the
    # group, they would keep its threads alive past `stop`, where they race with the end of the interpreter and abort it.
    importlib.import_module("torch.distributed.nn.functional")
    if str(device).startswith("cuda"):
        torch.cuda.set_device(device)
    backend, limit = "nccl" if str(device).startswith("cuda") else "gloo", datetime.timedelta(seconds=timeout)
    _store, number, size = next(dist.rendezvous("env://", timeout=limit))
    dist.init_process_group(backend, store=dist.PrefixStore("exchange", _store), rank=number, world_size=size, timeout=limit)


def stop() -> None:
    """Leave the other processes; threads that serve exchanges end here, unless a caller still holds a DeepSpeed engine."""
    global _store
    if _started():
        deepspeed = sys.modules.get("deepspeed.comm")  # it keeps references of its own, and lets them go if it is asked
        (deepspeed if deepspeed is not None and deepspeed.is_initialized() else dist).destroy_process_group()
        gc.collect()  # engines refer to themselves, and to the group
    _store = None


def store(name: str) -> dist.Store:
    """Words that all processes share, under a name, by a connection of its own; only between `start` and `stop`."""
    return dist.PrefixStore(name, _store.clone())


def local_device(name: str) -> str:
    """``cuda`` as the GPU of this process on its machine; other names as they are.

    Example:
        >>> local_device("cpu")
        'cpu'
    """
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" and launched() else name


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


def _exchange_device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
