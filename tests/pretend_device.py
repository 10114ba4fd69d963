"""A device that is not there: tensors that say they are on a GPU are computed on the CPU, and meeting others is an error, as on a GPU.

Inside `PretendDevice()` whatever is made on or moved to ``cuda`` is marked, by its storage; an operator whose tensors are marked only in
part raises what a GPU would. Python code sees `tensor.device` as there. It shows no more than where tensors are: no kernel, no stream.
What a step moves between host and device, `tests/engine/pretend.py` shows, whose device has no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.recording import tensors

DEVICE = torch.device("cuda", 0)
_CPU = torch.device("cpu")
# What takes tensors of two devices on a GPU, too.
_CROSSES = {"aten::copy_", "aten::_to_copy", "aten::set_", "aten::_local_scalar_dense"}
_DEVICE_OF, _IS_CUDA = torch.Tensor.device.__get__, torch.Tensor.is_cuda.__get__
_TO_NUMPY = (torch.Tensor.numpy, torch.Tensor.__array__)


class PretendDevice(TorchFunctionMode):
    """Inside, the device ``cuda`` is there, in name."""

    def __init__(self) -> None:
        super().__init__()
        self._marks = _Marks()

    def __enter__(self) -> PretendDevice:
        self._marks.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._marks.__exit__(*exception)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = {key: value for key, value in (kwargs or {}).items() if key != "pin_memory"}  # which a machine without a GPU lacks
        if func == _DEVICE_OF:
            return DEVICE if self._marks.has(args[0]) else func(*args)
        if func == _IS_CUDA:
            return self._marks.has(args[0])
        if func in _TO_NUMPY and self._marks.has(args[0]):
            raise TypeError("can't convert a tensor on cuda:0 to numpy")
        target, args, kwargs = self._target(func, args, kwargs)
        if target is None:
            with self._marks.within(any(self._marks.has(value) for value in tensors((args, kwargs)))):
                return func(*args, **kwargs)
        with self._marks.asleep():
            made = func(*args, **kwargs)
        if made is (args[0] if args else None) and self._marks.has(made) != (target.type == "cuda"):
            made = made.clone()  # a move that the CPU did not see
        if isinstance(made, Tensor):
            self._marks.put(made, target.type == "cuda")
        return made

    def _target(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[torch.device | None, tuple, dict[str, Any]]:
        """The device that a call names, None if none, and its arguments with the CPU in its place."""
        if func is torch.Tensor.cpu:
            return _CPU, args, kwargs
        target, known = None, list(args)
        if func is torch.Tensor.to:
            for number, value in enumerate(args[1:], 1):
                if isinstance(value, Tensor):
                    target, known[number] = self._of(value), value.dtype
                elif isinstance(value, str | torch.device):
                    target, known[number] = torch.device(value), _real(value)
        if kwargs.get("device") is not None:
            target, kwargs = torch.device(kwargs["device"]), {**kwargs, "device": _real(kwargs["device"])}
        if target is None and (func is torch.Tensor.to or func.__name__.endswith("_like") or func.__name__.startswith("new_")):
            target = self._of(args[0])
        return target, tuple(known), kwargs

    def _of(self, value: Tensor) -> torch.device:
        return DEVICE if self._marks.has(value) else _CPU


class _Marks(TorchDispatchMode):
    """Which storages are on the device; follows them through every operator."""

    def __init__(self) -> None:
        super().__init__()
        self._marked: dict[int, StorageWeakRef] = {}
        self._awake, self._inside = True, False

    @contextmanager
    def asleep(self) -> Iterator[None]:
        before, self._awake = self._awake, False
        try:
            yield
        finally:
            self._awake = before

    @contextmanager
    def within(self, inside: bool) -> Iterator[None]:
        """What a call to a marked tensor makes from nothing is marked, too."""
        before, self._inside = self._inside, inside
        try:
            yield
        finally:
            self._inside = before

    def has(self, value: Tensor) -> bool:
        reference = self._marked.get(value.untyped_storage()._cdata)
        return reference is not None and not reference.expired()

    def put(self, value: Tensor, marked: bool) -> None:
        storage = value.untyped_storage()
        if marked:
            self._marked[storage._cdata] = StorageWeakRef(storage)
        else:
            self._marked.pop(storage._cdata, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if not self._awake:
            return func(*args, **kwargs)
        given = tensors((args, kwargs))
        marked = [self.has(value) for value in given]
        name, first_decides = func._schema.name, func._schema.name in ("aten::copy_", "aten::index")
        # A number of the CPU goes along with a device's tensors, and a device's tensor takes indices of the CPU.
        apart = any(marked) and not all(here or value.dim() == 0 for here, value in zip(marked, given, strict=True))
        if apart and name not in _CROSSES and not (name == "aten::index" and marked[0]):
            shapes = [f"{list(value.shape)} on {'cuda:0' if here else 'cpu'}" for value, here in zip(given, marked, strict=True)]
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found {', '.join(shapes)}")
        made = func(*args, **kwargs)
        if marked[0] if first_decides else any(marked) or (not given and self._inside):
            for value in tensors(made):
                self.put(value, True)
        return made


def _real(device: torch.device | str) -> torch.device:
    """The device that does the work."""
    device = torch.device(device)
    return _CPU if device.type == "cuda" else device
