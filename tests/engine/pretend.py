"""A pretended GPU, torch's device without memory: enough to see what would pass between a device and the host."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.recording import tensors

DEVICE = torch.device("meta")

# They make a tensor of numbers on the host, and copy it; for a device without memory that happens out of sight.
_COPIES = ((torch, "tensor"), (torch, "as_tensor"), (torch.Tensor, "new_tensor"))


class NoHostTraffic(TorchDispatchMode):
    """Fails on the first operation that moves values between host and device, either of which stalls it."""

    def __enter__(self):
        self._patches = ExitStack()
        for owner, name in _COPIES:
            self._patches.enter_context(mock.patch.object(owner, name, _watched(getattr(owner, name))))
        return super().__enter__()

    def __exit__(self, *exception):
        self._patches.close()
        return super().__exit__(*exception)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        assert operation is not torch.ops.aten._local_scalar_dense.default, "a value is read back from the device"
        result = operation(*args, **(kwargs or {}))
        # A scalar on the host reaches a kernel as an argument.
        places = {value.device.type for value in (*tensors((args, kwargs)), *tensors(result)) if value.dim() or value.device == DEVICE}
        assert len(places) < 2, f"{operation} moves values between {' and '.join(sorted(places))}"
        return result


def _watched(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def watched(*args, **kwargs) -> Tensor:
        made = make(*args, **kwargs)
        assert made.device != DEVICE or made is args[0], f"{make.__name__} moves values between cpu and {DEVICE}"
        return made

    return watched
