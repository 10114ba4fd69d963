"""A training step recorded on the CPU and replayed, as a CUDA graph does it: the same operations on the same memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class OperationRecording:
    """Keeps every operation with its operands; a replay runs them again into the memory of the first results.

    Numbers that came from the host are part of the recording, so whatever changes from step to step without going through
    device memory comes out wrong. As in a CUDA graph, recording leaves no trace: what was changed in place is put back.
    """

    def __init__(self) -> None:
        self._operations: list[tuple] = []

    def warm_up(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return work()

    @torch.no_grad()
    def record(self, work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        with torch.enable_grad(), _Recorder(self._operations) as recorder:
            result = work()
        for changed, before in reversed(recorder.before):  # the oldest copy last
            changed.copy_(before)
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for operation, args, kwargs, results in self._operations:
            for kept, new in zip(results, tensors(operation(*args, **kwargs)), strict=True):
                if kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, operations: list[tuple]) -> None:
        super().__init__()
        self._operations = operations
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self._keep_what_changes(operation, args, kwargs)
        result = operation(*args, **kwargs)
        self._operations.append((operation, args, kwargs, tensors(result)))
        return result

    def _keep_what_changes(self, operation, args, kwargs) -> None:
        for index, argument in enumerate(operation._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[index] if index < len(args) else kwargs.get(argument.name)
                self.before.extend((value, value.clone()) for value in reversed(tensors(given)))
