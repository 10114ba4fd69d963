"""Launch options of the kernels around the denoiser: sizes, meta-parameters by architecture, and the memory of a backward pass."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddvi_fast.kernels import shared_memory
from ddvi_fast.kernels.common import ARCHITECTURES, MODELED, Compilation, architecture, cdiv, launch, unusable
from ddvi_fast.kernels.layers import LOW_TYPES, denoiser_operands_kernel
from ddvi_fast.kernels.shared_memory import PAIRED, available, from_shared, in_tensor_memory
from ddvi_fast.kernels.signs import BLOCK

# Hidden widths that the kernels are compiled for, and those whose sums fit in tensor memory.
HIDDEN, _IN_TENSOR_MEMORY = (64, 128, 256), (64, 128)

# Most columns of latents and contexts.
_WIDEST = 64

# Half a multiprocessor's shared memory, less what each program has of its own.
_HALF = 113 << 10


def chain_options(arch: int, sizes: Sizes, two: bool) -> dict[str, Any]:
    """Meta-parameters of the kernels that run steps one after another: the layout of `sizes`, BN rows a program, warps, stages.

    KEEP says that the hidden matrices stay in shared memory for all steps. Where that leaves room for two programs on a multiprocessor, each
    has 64 rows on one warp group; otherwise one has 128 on two. What does not fit reads weights from the cache, and so do sm_80 and sm_120,
    whose products take operands from registers. TENSOR_MEMORY as in `in_tensor_memory`.
    """
    return dict(_chain_options(arch, sizes, two))


@functools.lru_cache(maxsize=256)
def _chain_options(arch: int, sizes: Sizes, two: bool) -> dict[str, Any]:
    common = {**sizes.layout(), "TENSOR_MEMORY": in_tensor_memory(arch), "num_stages": 1, **_assembler(arch, two)}
    shared = from_shared(arch)
    for rows, most in ((64, _HALF), (128, available(arch))):
        if shared and sizes.resident_bytes(two, rows) <= most:
            return {"BN": rows, "KEEP": True, "num_warps": rows // 16, **common}
    return {"BN": 128 if shared else 64, "KEEP": False, "num_warps": 8 if shared else 4, **common}


def _assembler(arch: int, two: bool) -> dict[str, str]:
    """Options of the assembler, which with all its optimizations gives kernels of two planes 32 registers on sm_80 and spills the rest."""
    return {"ptx_options": "--opt-level=1"} if two and arch < 90 else {}


class Sizes(NamedTuple):
    """Sizes of one call: G networks (1 without a group axis), R rows of each, or of all if they have an index, D, C, H and T."""

    groups: int
    rows: int
    latent: int
    context: int
    hidden: int
    steps: int
    indexed: bool = False

    @classmethod
    def of(cls, latents: Tensor, context: Tensor | None, first: Tensor, table: Tensor, starts: Tensor | None) -> Sizes:
        of_first, of_latents, width = first.shape, latents.shape, 0 if context is None else context.shape[-1]
        groups = of_first[0] if len(of_first) == 3 else 1
        return cls(groups, of_latents[-2], of_latents[-1], width, of_first[-2], table.shape[0], starts is not None)

    @property
    def lanes(self) -> int:
        """Length of the axis of the data that counts groups: 1 for rows with an index, which have none."""
        return 1 if self.indexed else self.groups

    def tiles(self, rows: int, size: int) -> int:
        """Most tiles of `size` that `rows` rows of a lane fill, where no tile has rows of two groups."""
        return min(rows, (rows + self.groups * (size - 1)) // size) if self.indexed else cdiv(rows, size)

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        """Memory for results of rows: NaN for rows with an index, because a row whose group does not exist is never computed."""
        return like.new_full(shape, float("nan")) if self.indexed else like.new_empty(*shape)

    @property
    def joined(self) -> bool:
        """Whether contexts stand in the columns after those of the state, so that one narrow tile has both."""
        return shared_memory.tiles(self.latent, self.context)[1] == 0 < self.context

    def layout(self) -> dict[str, int]:
        """Widths, those of the tiles of states and contexts (Q = 0 without tiles of contexts), and units of a block."""
        p, q = shared_memory.tiles(self.latent, self.context)
        return {"D": self.latent, "C": self.context, "P": p, "Q": q, "H": self.hidden, "B": min(self.hidden, BLOCK)}

    def resident_bytes(self, two: bool, rows: int) -> int:
        """Shared memory for the hidden matrices of one plane or two, the first and last layer, a step's biases, and a tile's wide inputs."""
        layout = self.layout()
        ends = sum(max(16, 2 * width) * (width > 0) for width in (layout["P"], layout["P"], layout["Q"]))
        resident = 2 * self.hidden * ((6 if two else 3) * self.hidden + ends + 16)
        contexts = 4 * rows * max(16, layout["Q"]) * (layout["Q"] > 0)
        return resident + contexts + 32 * rows * (layout["P"] > PAIRED)

    def meta_tensors(self) -> tuple[Tensor, ...]:
        """Latents, context, the five weights, a table and a state of these sizes, without memory: operands for `common.recorded`."""
        r, d, c, h, t = self.rows, self.latent, self.context, self.hidden, self.steps
        g = (self.groups,) if self.indexed else ()
        shapes = ((r, d), (r, c), (*g, h, d + c), (*g, 3, h, h), (*g, d, h), (*g, d), (*g, t, 4, h), (t, 5))
        return *(torch.empty(shape, device="meta") for shape in shapes), torch.empty(2, dtype=torch.int64, device="meta")

    def meta_index(self) -> tuple[Tensor | None, Tensor | None]:
        """The operands `order` and `starts` of these sizes, without memory; None without an index."""
        if not self.indexed:
            return None, None
        return torch.empty(self.rows, dtype=torch.int64, device="meta"), torch.empty(self.groups + 1, dtype=torch.int64, device="meta")


class Prepared(NamedTuple):
    """Operands that every program reads."""

    matrices: Tensor  # planes of the hidden matrices, [G, planes, 3, H, H] in the low type
    table: Tensor  # planes of each step's biases, [G, T, 16, H]
    two: bool  # whether hidden products have two planes


def prepared(hidden: Tensor, time_table: Tensor, precision: str) -> Prepared:
    """Planes of hidden matrices [.., 3, H, H] and of a time table [.., T, 4, H], in one launch."""
    weights, programs, numbers = preparation(hidden, time_table, precision)
    tensors = hidden, time_table, weights.matrices, weights.table
    launch(denoiser_operands_kernel, (programs,), *tensors, *numbers, H=hidden.shape[-1], EXACT=weights.two, **PREPARED)
    return weights


def preparation(hidden: Tensor, time_table: Tensor, precision: str) -> tuple[Prepared, int, tuple[int, int]]:
    """Memory for `prepared`, the number of programs of its kernel, and the kernel's numbers."""
    (low, two), width = LOW_TYPES[precision], hidden.shape[-1]
    groups, rows = hidden.numel() // (3 * width * width), time_table.numel() // (4 * width)
    matrices = hidden.new_empty(groups, 2 if two else 1, 3, width, width, dtype=low)
    table = hidden.new_empty(groups, rows // groups, 16, width, dtype=low)
    count = cdiv(hidden.numel(), PREPARED["BLOCK"])
    return Prepared(matrices, table, two), count + cdiv(table.numel(), PREPARED["BLOCK"]), (count, rows)


PREPARED = {"BLOCK": 1024, "num_warps": 4}


class Variant(NamedTuple):
    """One choice of sizes that is compiled ahead of time."""

    name: str
    sizes: Sizes
    precision: str
    architectures: tuple[int, ...]

    @property
    def learned(self) -> bool:
        """Whether the coefficients have a gradient: those with an index, as in the recipes."""
        return self.sizes.indexed

    def of_interest(self, compilation: Compilation) -> bool:
        """Whether a kernel is more than another block of the same weight gradient; those of float32 and of further layers are compiled for few sizes.

        They take minutes each. Where products sum in tensor memory, those of float32 are compiled because it must hold them.
        """
        constants, usual = compilation.constexprs, self.sizes.hidden == 128 and self.sizes.latent <= 3 and compilation.architecture in MODELED
        if "LAYER" not in constants:
            return True
        further = constants["LAYER"] in (1, 2)
        if constants["M"] or constants["N"] or (further and self.learned):
            return False
        return usual or (not further and (self.precision != "float32" or constants["TENSOR_MEMORY"]))


def variants() -> Iterator[Variant]:
    """The benchmark's chain, and that of the recipes; wide latents and a narrow network on one architecture."""
    rows = 1 << 16
    for precision in ("bf16", "float32"):
        yield Variant(f"D=2 C=2 H=128 {precision}", Sizes(1, rows, 2, 2, 128, 40), precision, ARCHITECTURES)
        yield Variant(f"D=3 C=32 H=128 {precision} indexed", Sizes(10, rows, 3, 32, 128, 8, True), precision, ARCHITECTURES)
        yield Variant(f"D=16 C=2 H=128 {precision}", Sizes(1, rows, 16, 2, 128, 40), precision, MODELED)
        yield Variant(f"D=2 C=2 H=64 {precision}", Sizes(1, rows, 2, 2, 64, 40), precision, MODELED)


def unusable_denoiser(kernel: Any, what: str, precision: str, **tensors: Tensor | None) -> str | None:
    """The reason why the Triton `what`, which runs a denoiser, cannot take these float32 operands or the precision, or None if it can."""
    reason = unusable(kernel, **tensors)
    if reason is not None:
        return reason
    hidden = tensors.get("hidden")
    if hidden is not None:
        arch = architecture(hidden.device)
        taken, where = (_IN_TENSOR_MEMORY, f" on compute capability {arch / 10}") if in_tensor_memory(arch) else (HIDDEN, "")
        if hidden.shape[-1] not in taken:
            return f"denoiser: the Triton {what} takes hidden widths {', '.join(map(str, taken))}{where}, got {hidden.shape[-1]}"
    for name in ("y_T", "x0", "context"):
        width = 0 if tensors.get(name) is None else tensors[name].shape[-1]
        if width > _WIDEST:
            return f"{name}: the Triton {what} takes at most {_WIDEST} columns, got {width}"
    if precision not in LOW_TYPES:
        return f"precision: expected one of {', '.join(LOW_TYPES)}, got {precision}"
    return _too_large(what, precision, **tensors) or None


def _too_large(what: str, precision: str, **tensors: Tensor | None) -> str:
    """That shared memory is too small for these operands, or the empty string."""
    hidden, latents, context = tensors.get("hidden"), tensors.get("y_T", tensors.get("x0")), tensors.get("context")
    if hidden is None or latents is None:
        return ""
    width, arch = 0 if context is None else context.shape[-1], architecture(hidden.device)
    sizes = "sleep" if "x0" in tensors else "chain", arch, latents.shape[-1], width, hidden.shape[-1], LOW_TYPES[precision][1]
    reason = shared_memory.refusal(shared_memory.most_bytes(*sizes), arch)
    return f"{reason} (in the Triton {what} of these sizes in {precision})" if reason else ""
