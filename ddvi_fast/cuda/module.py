"""Functions of the compiled sources, loaded once on each device."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch

from ddvi_fast.cuda import compiler, nvrtc
from ddvi_fast.cuda.driver import driver

# How a parameter of C++ is passed: the type of the elements for a pointer, else that of the number.
POINTERS = {"float *": torch.float32, "int *": torch.int32, "int64 *": torch.int64, "bf16 *": torch.bfloat16, "fp16 *": torch.float16}
NUMBERS = {"int": ctypes.c_int32, "int64": ctypes.c_int64, "float": ctypes.c_float}


@dataclass(frozen=True)
class Kernel:
    """One ``extern "C"`` function of a source in csrc/cuda/.

    Args:
        source: Name of the file.
        name: Name of the function.
        parameters: Name and type of each parameter, a key of `POINTERS` or `NUMBERS`.
    """

    source: str
    name: str
    parameters: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Variant:
    """A kernel with the macros that it is compiled with.

    Args:
        kernel: The kernel.
        macros: Name and value of each preprocessor macro.
        threads: Threads of a program.
        shared: Most bytes of dynamic shared memory that a launch asks for.
    """

    kernel: Kernel
    macros: tuple[tuple[str, int], ...]
    threads: int
    shared: int = 0


@functools.cache
def architecture(device: int) -> int:
    """Compute capability of a CUDA device times ten, for example 90."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


_loaded: dict[tuple[Variant, int], ctypes.c_void_p] = {}


def function(variant: Variant, device: int) -> ctypes.c_void_p:
    """The function of a variant on a device, compiled and loaded at the first call.

    Raises:
        CompilationError: NVRTC found an error in the source.
        RuntimeError: The driver cannot load the binary, or a CUDA graph is being captured, in which nothing can be loaded.
    """
    place = (variant, device)
    if place not in _loaded:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("kernels are loaded at their first call, which cannot be in the capture of a CUDA graph: run it once before")
        image = compiler.binary(variant.kernel.source, architecture(device), **dict(variant.macros))
        with torch.cuda.device(device):
            found = driver().function(driver().load(image), variant.kernel.name)
            if variant.shared:
                driver().allow_shared_memory(found, variant.shared)
        _loaded[place] = found
    return _loaded[place]


def trouble(variants: tuple[Variant, ...], device: int) -> str:
    """The reason in one line why these variants cannot be compiled or loaded on a device, or the empty string once they are loaded."""
    usable, reason = nvrtc.available()
    if not usable:
        return reason
    try:
        for variant in variants:
            function(variant, device)
    except (RuntimeError, ValueError, OSError) as error:
        return " ".join(str(error).split())[:300]
    return ""


architecture._dynamo_marked_constant = True
