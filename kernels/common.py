"""Helpers of all Triton kernels: launches, checks of their tensors, and the variants that are compiled ahead of time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import ASTSource
from triton.runtime.interpreter import InterpretedFunction

ARCHITECTURES = (80, 90, 100)  # compute capabilities that every kernel is compiled for ahead of time
MODELED = (90,)  # that of the GPU whose times are predicted: the only one for which variants of less common sizes are compiled
_COMPILER = ("num_warps", "num_stages", "ptx_options")  # options of a launch that are the compiler's

# Names of element types in Triton's signatures.
_TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64", torch.int32: "i32"}


@dataclass(frozen=True)
class Compilation:
    """One variant of a kernel for one architecture, with everything that `triton.compile(self.source(), ...)` needs.

    `signature` has every parameter of the kernel, constexprs as "constexpr". An absent (None) tensor is a constexpr as well. `multiples` are the
    numbers that are multiples of 16, for which a launch compiles a variant of its own.
    """

    name: str
    kernel: Any  # JITFunction
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, Any]  # of the compiler
    architecture: int
    multiples: tuple[str, ...] = ()

    def source(self) -> ASTSource:
        """The source for `triton.compile`; pointers are aligned to 16 bytes, as those of new tensors are."""
        known = [kind.startswith("*") or name in self.multiples for name, kind in self.signature.items()]
        aligned = {(i,): [["tt.divisibility", 16]] for i, yes in enumerate(known) if yes}
        return ASTSource(self.kernel, self.signature, self.constexprs, aligned)


@dataclass(frozen=True)
class Launch:
    """One launch of a variant: its grid, the values of its numeric arguments, and the shapes of its tensors."""

    compilation: Compilation
    grid: tuple[int, ...]
    values: dict[str, int | float]
    shapes: dict[str, tuple[int, ...]]


@dataclass
class _Recording:
    """Launches that are recorded instead of run, for one architecture."""

    architecture: int
    variant: str
    launches: list[Launch]


_recording: _Recording | None = None


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a kernel on the device of its tensors: Triton itself launches on the current device, whatever the arguments are."""
    if _recording is not None:
        _recording.launches.append(_launch(_recording.variant, _recording.architecture, kernel, grid, arguments, options))
        return
    device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **options)


def recorded(variant: str, call: Callable[..., object], *arguments: Any, architectures: tuple[int, ...] = ARCHITECTURES) -> Iterator[Compilation]:
    """The kernel variants that a call launches on each architecture.

    Args:
        variant: Description of the sizes and types, the second part of each variant's name.
        call: Function that launches the kernels.
        arguments: Its arguments, with tensors on the meta device, so that nothing is computed.
        architectures: Compute capabilities times ten.
    """
    for architecture in architectures:
        found: dict[Any, list[Compilation]] = {}
        for launched in launches(variant, architecture, call, *arguments):
            others = found.setdefault(launched.compilation.kernel, [])
            if all(launched.compilation.constexprs != other.constexprs for other in others):
                others.append(launched.compilation)
        for variants in found.values():
            yield from _distinct(variants)


def launches(variant: str, architecture: int, call: Callable[..., object], *arguments: Any) -> list[Launch]:
    """The launches of a call on one architecture, in order.

    Arguments are those of `recorded`.
    """
    with recording(architecture, variant) as found:
        call(*arguments)
    return found


def _launch(variant: str, architecture: int, kernel: Any, grid: tuple[int, ...], arguments: tuple, options: dict[str, Any]) -> Launch:
    compiled = {name: value for name, value in options.items() if name not in _COMPILER}
    signature, constexprs, values, shapes = {}, {}, {}, {}
    parameters = inspect.signature(kernel.fn).parameters
    for name, value in inspect.signature(kernel.fn).bind(*arguments, **compiled).arguments.items():
        if value is None or "constexpr" in str(parameters[name].annotation):
            signature[name], constexprs[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name], shapes[name] = f"*{_TYPES[value.dtype]}", tuple(value.shape)
        else:
            signature[name], values[name] = "fp32" if isinstance(value, float) else "i32", value
    name = f"{kernel.__name__} {variant}"
    of_compiler = {"num_warps": 4, "num_stages": 3} | {name: options[name] for name in _COMPILER if name in options}
    specialized = [name for name, value in values.items() if isinstance(value, int) and value % 16 == 0 and _specialized(kernel, name)]
    return Launch(Compilation(name, kernel, signature, constexprs, of_compiler, architecture, tuple(specialized)), grid, values, shapes)


def _specialized(kernel: Any, name: str) -> bool:
    """Whether launches with other values of a number may be compiled anew; the interpreter compiles nothing, and has no such parameters."""
    return any(parameter.name == name and not parameter.do_not_specialize for parameter in getattr(kernel, "params", ()))


def _distinct(variants: list[Compilation]) -> Iterator[Compilation]:
    """Variants of one kernel; the names of all but the first say which constants differ from the first."""
    first, *others = variants
    yield first
    for other in others:
        differing = [f"{name}={value}" for name, value in other.constexprs.items() if first.constexprs.get(name) != value]
        yield Compilation(**{**vars(other), "name": f"{other.name}, {' '.join(differing)}"})


def interpreted(kernel: Any) -> bool:
    """Whether Triton's interpreter runs this kernel, which is decided when its module is imported."""
    return isinstance(kernel, InterpretedFunction)


def architecture(device: torch.device) -> int:
    """Compute capability times ten, for example 90; that of an H200 where the interpreter runs kernels on CPU tensors."""
    if _recording is not None:
        return _recording.architecture
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def unusable(kernel: Any, **tensors: Tensor | None) -> str | None:
    """The reason why Triton cannot take these tensors, or None if it can: it takes float32 of one CUDA device (interpreted: of the CPU)."""
    expected, first = "cpu" if interpreted(kernel) else "cuda", None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        first = tensor.device if first is None else first
        if tensor.device != first or first.type != expected:
            devices = sorted({str(each.device) for each in tensors.values() if each is not None})
            return f"{name}: Triton takes tensors of one {expected} device, got {', '.join(devices)}"
        if tensor.dtype != torch.float32:
            return f"{name}: Triton kernels take float32, got {tensor.dtype}"
    return None


def splits_of(total: int, size: int) -> Iterator[tuple[int, int]]:
    """Pairs `(start, length)` of consecutive pieces of at most `size`."""
    for start in range(0, total, size):
        yield start, min(size, total - start)


@triton.jit
def tile_place(first, start, rows, width, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Offsets of a tile from column `start` on after row `first` (32 bits are enough within a tile), and the mask of its elements."""
    row = tl.arange(0, ROWS)
    column = start + tl.arange(0, WIDTH)
    return row[:, None] * width + column[None, :], (first + row < rows)[:, None] & (column < width)[None, :]


@triton.jit
def group_part(starts, group, begin, count):
    """First place of a group's rows, and their number, among the `count` rows from `begin` on of those sorted by group."""
    low = tl.maximum(tl.load(starts + group), begin)
    high = tl.minimum(tl.load(starts + group + 1), begin + count)
    return low - begin, tl.maximum(high - low, 0)


@triton.jit
def indexed_tile(starts, groups, begin, count, tile, BN: tl.constexpr):
    """Group of the `tile`-th tile, the place of its first row, and the number of its rows: 0 beyond the last tile."""
    found, first, rows, before = tl.cast(0, tl.int64), tl.cast(0, tl.int64), tl.cast(0, tl.int64), tl.cast(0, tl.int64)
    for group in range(groups):
        start, number = group_part(starts, group, begin, count)
        skipped = (tile - before) * BN
        here = (skipped >= 0) & (skipped < number)
        found = tl.where(here, group, found)
        first = tl.where(here, start + skipped, first)
        rows = tl.where(here, tl.minimum(number - skipped, BN), rows)
        before += tl.cdiv(number, BN)
    return found, first, rows


@triton.jit
def tile_rows(order, starts, lane, groups, rows, begin, count, tile, BN: tl.constexpr):
    """Rows of a tile of BN among the `count` rows from `begin` on, of the group `lane` of `rows` rows or, with an index, of all groups.

    Returns:
        The tile's group, the place of its first row after `begin`, the places [BN] of all, which of them are present, and their rows.
    """
    across = tl.arange(0, BN)
    if starts is None:
        within = tile * BN + across
        return lane, tile * BN, within, within < count, lane * rows + begin + within
    else:
        group, first, here = indexed_tile(starts, groups, begin, count, tile, BN)
        present = across < here
        return group, first, first + across, present, tl.load(order + begin + first + across, present, 0)


@contextmanager
def recording(architecture: int, variant: str = "") -> Iterator[list[Launch]]:
    """Context in which launches are appended to the list that it yields, instead of run."""
    global _recording
    _recording = _Recording(architecture, variant, [])
    try:
        yield _recording.launches
    finally:
        _recording = None


def cdiv(total: int, size: int) -> int:
    """Number of pieces of a size, the last perhaps smaller: Triton's own function takes a hundred times as long."""
    return -(-total // size)


def next_power_of_2(number: int) -> int:
    """The least power of two that is not below a positive number; 0 for 0."""
    return 1 << (number - 1).bit_length() if number else 0
