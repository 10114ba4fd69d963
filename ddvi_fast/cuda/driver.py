"""The CUDA driver through ctypes: load a binary, find a function in it, launch it. Nothing here allocates or synchronizes.

torch has initialized the device before any of its tensors exists, and keeps its context alive.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch

_MOST_SHARED_MEMORY = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class Driver:
    """The functions of libcuda that launches need."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")

    def load(self, binary: bytes) -> ctypes.c_void_p:
        """Load a cubin onto torch's current device."""
        self._enter_context()
        module = ctypes.c_void_p()
        self._check("cuModuleLoadData", ctypes.byref(module), binary)
        return module

    def function(self, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        """A function of a loaded binary."""
        found = ctypes.c_void_p()
        self._check("cuModuleGetFunction", ctypes.byref(found), module, name.encode())
        return found

    def allow_shared_memory(self, function: ctypes.c_void_p, size: int) -> None:
        """Let launches of a function ask for up to `size` bytes of dynamic shared memory."""
        self._check("cuFuncSetAttribute", function, _MOST_SHARED_MEMORY, size)

    def launch(
        self, function: ctypes.c_void_p, grid: tuple[int, int, int], threads: int, shared: int, stream: int, arguments: Sequence[ctypes._SimpleCData]
    ) -> None:
        """Launch a function on a stream of torch's current device."""
        self._enter_context()
        places = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        self._check("cuLaunchKernel", function, *grid, threads, 1, 1, shared, ctypes.c_void_p(stream), places, None)

    def _enter_context(self) -> None:
        """Give this thread torch's context of its current device if it has none yet, as a new thread of autograd may."""
        context = ctypes.c_void_p()
        self._check("cuCtxGetCurrent", ctypes.byref(context))
        if not context:
            self._check("cuDevicePrimaryCtxRetain", ctypes.byref(context), torch.cuda.current_device())
            self._check("cuCtxSetCurrent", context)

    def _check(self, name: str, *arguments: object) -> None:
        result = getattr(self._library, name)(*arguments)
        if result:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(result, ctypes.byref(text))
            raise RuntimeError(f"{name} failed: {(text.value or b'unknown error').decode()} ({result})")


@functools.cache
def driver() -> Driver:
    """The driver, opened at the first call."""
    return Driver()
