"""Which kernel runs a chain on a CUDA device: one table of sizes, precisions and architectures, read from the top.

The CUDA C++ kernels give 8 rows to a program, and a multiprocessor runs one program at a time, so their time grows whenever the programs
need another wave over the multiprocessors. Triton's kernels take many more rows at once and more time for few. By the static model of
`bench/device` (predicted, not measured), Triton's passes at T = 40 take as long as 3.4 waves in bf16, its forward pass in float32 as 5.3.

The model is that of an H200. From compute capability 10.0 on products sum in tensor memory, which it does not know, so other architectures have
the same number of waves: on these the limits are neither measured nor predicted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ddvi_fast.kernels.shared_memory import available, in_tensor_memory, most_bytes, refusal

ROWS = 8  # of a program of the CUDA C++ kernels
# Multiprocessors of the products with most of them, by family of architectures: A100, H100 and H200, B200.
_PROCESSORS = {8: 108, 9: 132, 10: 148}
OTHER_SHARED = 48 << 10  # bytes of a program of the CUDA C++ kernels for everything but hidden matrices, at most


class Sizes(NamedTuple):
    """What the choice depends on."""

    latent: int  # D
    context: int  # C
    hidden: int  # H
    steps: int  # T
    rows: int  # N, of all groups together
    precision: str  # of the hidden products
    architecture: int  # compute capability times ten

    @property
    def two(self) -> bool:
        """Whether the products are those of pairs of 2-byte numbers."""
        return self.precision in ("float32", "tf32")


def _of_cuda(sizes: Sizes) -> int:
    """Bytes of shared memory: with pairs of numbers, those of three hidden matrices are in it."""
    return (6 * sizes.hidden**2 if sizes.two else 0) + OTHER_SHARED


def _of_triton(sizes: Sizes) -> int:
    return most_bytes("chain", sizes.architecture, sizes.latent, sizes.context, sizes.hidden, sizes.two)


class Range(NamedTuple):
    """What one kernel takes: a row of the table."""

    kernel: str
    hidden: tuple[int, ...]
    latent: int  # most latent dimensions
    context: int  # most context columns
    steps: int  # most steps
    architecture: int  # the oldest
    shared: Callable[[Sizes], int]  # bytes of shared memory that a program needs
    waves: dict[str, int]  # by precision: waves of programs up to which no later kernel is faster; 0 for no limit

    def refusal(self, sizes: Sizes) -> str:
        """The limit that `sizes` exceed, in words, or the empty string if the kernel can take them."""
        if sizes.precision not in self.waves:
            return f"precision: expected {' or '.join(self.waves)}, got {sizes.precision}"
        if sizes.hidden not in self.hidden:
            return f"hidden width: expected {' or '.join(map(str, self.hidden))}, got {sizes.hidden}"
        if sizes.hidden > 128 and in_tensor_memory(sizes.architecture):
            return f"hidden width: expected at most 128 on compute capability {sizes.architecture / 10}, got {sizes.hidden}"
        for name, most, got in (
            ("latent dimensions", self.latent, sizes.latent),
            ("context columns", self.context, sizes.context),
            ("steps", self.steps, sizes.steps),
        ):
            if got > most:
                return f"{name}: expected at most {most}, got {got}"
        if sizes.architecture < self.architecture:
            return f"device: expected compute capability {self.architecture / 10} or later, got {sizes.architecture / 10}"
        return refusal(self.shared(sizes), sizes.architecture)

    def slower(self, sizes: Sizes) -> str:
        """Why a later kernel is faster, in words, or the empty string if none is."""
        waves = self.waves[sizes.precision]
        most = most_rows(waves, sizes.architecture)
        return f"rows: expected at most {most}, got {sizes.rows}" if waves and sizes.rows > most else ""


ANY = 1 << 30
TABLE = (
    #     kernel    H               D   C   T     from
    Range("cuda", (64, 128), 16, 16, 1000, 80, _of_cuda, {"float32": 5, "tf32": 5, "bf16": 3, "fp16": 3}),
    Range("triton", (64, 128, 256), 64, 64, ANY, 0, _of_triton, {"float32": 0, "tf32": 0, "bf16": 0, "fp16": 0}),
)


def choose(sizes: Sizes) -> str:
    """The kernel for a chain, ``cuda``, ``triton`` or ``reference``."""
    return next((row.kernel for row in TABLE if not row.refusal(sizes) and not row.slower(sizes)), "reference")


def row_of(kernel: str) -> Range:
    """The row of a kernel."""
    return next(row for row in TABLE if row.kernel == kernel)


def limits(architecture: int) -> dict[str, int]:
    """The most rows that the CUDA C++ kernels take under ``auto``, by precision, at a usual size."""
    row = row_of("cuda")
    sizes = {precision: Sizes(2, 2, 128, 40, 1, precision, architecture) for precision in row.waves}
    return {precision: most_rows(row.waves[precision], architecture) for precision, size in sizes.items() if not row.refusal(size)}


def most_rows(waves: int, architecture: int) -> int:
    """The rows of `waves` waves of programs on the largest device of an architecture's family."""
    return waves * ROWS * _PROCESSORS.get(architecture // 10, _PROCESSORS[10])


def narrow(kernel: str, architecture: int) -> str:
    """Sizes beyond which Triton's ``chain`` or ``sleep`` does not fit into shared memory, in words, or the empty string if all sizes do."""
    found = []
    for hidden in row_of("triton").hidden:
        for precision in ("float32", "bf16"):
            fits = [width for width in _COLUMNS if not _beyond(kernel, Sizes(width, width, hidden, 1, 1, precision, architecture))]
            if fits != list(_COLUMNS) and not (hidden > 128 and in_tensor_memory(architecture)):
                columns = f"{max(fits)} each" if fits else "8 together"
                found.append(f"{columns} (hidden width {hidden}, {precision})")
    there = available(architecture) >> 10
    return f"in {there} KiB of shared memory latents and context have at most {', '.join(found)} columns" if found else ""


_COLUMNS = (8, 16, 32, 64)


def _beyond(kernel: str, sizes: Sizes) -> bool:
    needed = most_bytes(kernel, sizes.architecture, sizes.latent, sizes.context, sizes.hidden, sizes.two)
    return needed > available(sizes.architecture)
