"""What every Triton kernel shares: how a launch finds its architecture and device, and how a kernel is listed for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import ASTSource
from triton.runtime.interpreter import InterpretedFunction

ARCHITECTURES = (80, 90, 100)  # compute capabilities that every kernel is compiled for ahead of time

# Triton's names of the element types that kernels take.
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}


@dataclass(frozen=True)
class Compilation:
    """One variant of a kernel as it is launched: enough for `triton.compile(ASTSource(kernel, signature, constexprs), ...)`.

    `signature` has every parameter of the kernel, constexprs as "constexpr". An absent (None) tensor is a constexpr as well.
    """

    name: str
    kernel: Any  # JITFunction
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    num_stages: int
    architectures: tuple[int, ...] = ARCHITECTURES  # on which this variant is launched

    def source(self) -> ASTSource:
        """What `triton.compile` takes; pointers are aligned to 16 bytes, as those of fresh tensors are."""
        aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(self.signature.values()) if kind.startswith("*")}
        return ASTSource(self.kernel, self.signature, self.constexprs, aligned)


def compilation(name: str, kernel: Any, types: dict[str, str], constexprs: dict[str, Any], **options: Any) -> Compilation:
    """A `Compilation` from the types of the run-time parameters and the values of all others, in the kernel's order.

    `options` are `num_warps`, `num_stages` and perhaps `architectures`.

    Raises:
        ValueError: a parameter of the kernel has neither a type nor a value.
    """
    missing = [parameter for parameter in kernel.arg_names if parameter not in types and parameter not in constexprs]
    if missing:
        raise ValueError(f"{name}: neither type nor value for {', '.join(missing)}")
    signature = {parameter: types.get(parameter, "constexpr") for parameter in kernel.arg_names}
    return Compilation(name, kernel, signature, constexprs, **options)


def interpreted(kernel: Any) -> bool:
    """Whether Triton's interpreter stands behind this kernel: decided when its module was imported."""
    return isinstance(kernel, InterpretedFunction)


def architecture(device: torch.device) -> int:
    """Compute capability times ten, say 90; that of an H200 where the interpreter runs kernels on CPU tensors."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Launches inside go to the tensor's device: Triton launches on the current one, whatever its arguments are."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def unusable(kernel: Any, **tensors: Tensor | None) -> str | None:
    """Why Triton cannot take these tensors (float32 of one CUDA device; in the interpreter of the CPU), or None."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    expected = "cpu" if interpreted(kernel) else "cuda"
    devices = {tensor.device for tensor in given.values()}
    for name, tensor in given.items():
        if tensor.device.type != expected or len(devices) > 1:
            return f"{name}: Triton takes tensors of one {expected} device, got {', '.join(sorted(map(str, devices)))}"
        if tensor.dtype != torch.float32:
            return f"{name}: Triton kernels take float32, got {tensor.dtype}"
    return None


def splits_of(total: int, size: int) -> Iterator[tuple[int, int]]:
    """`(start, length)` of consecutive pieces of at most `size`."""
    for start in range(0, total, size):
        yield start, min(size, total - start)


@triton.jit
def relu(x):
    return tl.maximum(x, 0.0)


@triton.jit
def column(tile, columns, index):
    """Column `index` of a [ROWS, COLUMNS] tile as [ROWS]; `columns` is `tl.arange(0, COLUMNS)`."""
    return tl.sum(tl.where(columns[None, :] == index, tile, 0.0), axis=1)
