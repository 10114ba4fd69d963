"""Ceilings of this machine, measured in the same run and with the same number of threads as everything else.

A time becomes a fraction of a ceiling: floating-point operations of the rate of matrix products, bytes (read and written) of the copy bandwidth,
exponentials of the rate of exponentials, which on a CPU is that of `torch.exp` on numbers in the cache.

On a CPU with the compiled kernels the ceiling of operations is the processor's peak: multiplies and adds on registers alone, with the instruction set
in force. A product of torch may be far below it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from bench.timing import measure
from ddvi_fast.native import loader
from ddvi_fast.precision import support

_TRIES = 5


def measure_ceilings(device: torch.device, quick: bool = False) -> dict[str, float]:
    """Rates per second: ``matmul_float32``, ``matmul_bf16`` (on a GPU also ``matmul_tf32``), ``copy_bytes``, ``exponentials``.

    On a CPU with the compiled kernels also ``peak_float32`` and ``peak_bf16``. Those of bf16 are left out where the device only emulates it.
    """
    narrow = support("bf16", device) == "native"
    side = (1024 if quick else 2048) if device.type == "cpu" else (4096 if quick else 8192)
    ceilings = {
        "matmul_float32": _matmul(device, torch.float32, side if device.type == "cpu" else side // 2),
        **({"matmul_bf16": _matmul(device, torch.bfloat16, side)} if narrow else {}),
        "copy_bytes": _copy(device, (64 << 20 if quick else 256 << 20) if device.type == "cpu" else 4 << 30),
        "exponentials": _exponentials(device),
    }
    if device.type == "cpu" and loader.available()[0]:
        ceilings |= {f"peak_{name}": _peak(device, name == "bf16") for name in ("float32", *(["bf16"] if narrow else []))}
    if device.type == "cuda":
        ceilings["matmul_tf32"] = _matmul_tf32(device, side)
    return ceilings


def _best(run: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Seconds of the fastest of a few tries, because a ceiling is the rate of an undisturbed machine."""
    measure(run, device, 1)
    return min(measure(run, device, calls) for _ in range(_TRIES)) / 1000


def _matmul(device: torch.device, dtype: torch.dtype, side: int) -> float:
    # Random numbers: products of zeros draw less power and can run faster.
    left, right = (torch.randn(side, side, device=device, generator=_generator(device)).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * side**3 / _best(lambda: torch.mm(left, right, out=out), device, 1 if device.type == "cpu" else 5)


def _matmul_tf32(device: torch.device, side: int) -> float:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return _matmul(device, torch.float32, side)
    finally:
        torch.set_float32_matmul_precision(before)


def _peak(device: torch.device, bf16: bool) -> float:
    """Floating-point operations a second of multiplies and adds on registers, with torch's number of threads."""
    measured = loader.library().ddvi_peak
    measured.restype = ctypes.c_double
    arguments = [ctypes.c_int64(value) for value in (torch.get_num_threads(), 1 << 20, bf16)]
    return measured(*arguments) / _best(lambda: measured(*arguments), device)


def _copy(device: torch.device, size: int) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _exponentials(device: torch.device) -> float:
    if device.type == "cuda":
        from bench.device.exponentials import launch

        _, count = launch(16_384, device)
        return count / _best(lambda: launch(16_384, device), device, 5)
    values = torch.rand(1 << 17, generator=_generator(device)) - 1
    out = torch.empty_like(values)
    return values.numel() / _best(lambda: torch.exp(values, out=out), device, 100)


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)
