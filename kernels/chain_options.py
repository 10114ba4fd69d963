"""Launch options of the kernels around the denoiser: sizes, meta-parameters by architecture, and the memory of a backward pass."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ddvi_fast.kernels.common import unusable
from ddvi_fast.kernels.network import padded
from ddvi_fast.precision import NARROW

# Hidden widths that the kernels are compiled for.
HIDDEN = (64, 128, 256)

# Most columns of latents and contexts.
_WIDEST = 64

# Scratch memory of a backward pass, for the activations and gradients of some steps and rows at a time.
SCRATCH_BYTES = 256 << 20

# Precision of the hidden products -> (element type of their operands, how tensor cores take float32 operands).
PRODUCTS = {
    "float32": (torch.float32, "tf32x3"),  # three products of tf32 parts, good to about 2^-22
    "tf32": (torch.float32, "tf32"),
    **{name: (dtype, "tf32") for name, dtype in NARROW.items()},
}


def forward_options(arch: int, hidden: int, latent: int, precision: str) -> dict[str, Any]:
    """Meta-parameters of the forward chain: BN rows a program, BH columns and BK inner entries of a streamed product, warps, stages.

    KEEP says that the hidden matrices stay on chip for all steps.
    """
    low = precision in NARROW
    if low and arch >= 90 and hidden <= 128 and latent <= 4:
        # The three matrices (96 KiB at H = 128) are read by each step's products from shared memory; 64 rows on four warps are one warp
        # group, whose activations pass from product to product in registers, and a second program fits on the same processor.
        return {"BN": 64, "BH": hidden, "BK": hidden, "KEEP": True, "num_warps": 4, "num_stages": 1}
    # Everything else streams weights from cache and passes activations through it: float32 matrices or those of H = 256 do not fit beside
    # their tiles, sm_80 takes its operands from registers, and a wide state's last layer needs the registers itself.
    # Tiles have few rows where operands are split (float32) or kept in registers (sm_80).
    return {"BN": 64 if low and arch >= 90 else 32, "BH": 64, "BK": 64 if low else 32, "KEEP": False, "num_warps": 8, "num_stages": 2}


def backward_options(precision: str) -> dict[str, Any]:
    """Meta-parameters of the kernel that takes gradients down the steps, one after another: few rows a program keep more processors busy."""
    return {"BN": 32, "BH": 32, "BK": 32 if precision in NARROW else 16, "num_warps": 8, "num_stages": 2}


def one_step_options(arch: int, precision: str) -> dict[str, Any]:
    """Meta-parameters of kernels that run each row through the network once: tiles are as large as registers allow."""
    low = precision in NARROW
    # From sm_90 on, tensor cores take 64 rows of bf16 at once; those of sm_100 keep sums in a memory of their own instead of registers.
    if low and arch >= 100:
        return {"BN": 64, "BH": 64, "BK": 64, "num_warps": 8, "num_stages": 3}
    if low and arch >= 90:
        return {"BN": 64, "BH": 32, "BK": 64, "num_warps": 4, "num_stages": 3}
    return {"BN": 32, "BH": 64, "BK": 64 if low else 32, "num_warps": 8, "num_stages": 3 if arch >= 90 else 2}


@dataclass(frozen=True)
class Sizes:
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
        groups = first.shape[0] if first.dim() == 3 else 1
        width = 0 if context is None else context.shape[-1]
        return cls(groups, latents.shape[-2], latents.shape[-1], width, first.shape[-2], table.shape[0], starts is not None)

    @property
    def lanes(self) -> int:
        """Length of the axis of the data that counts groups: 1 for rows with an index, which have none."""
        return 1 if self.indexed else self.groups

    def tiles(self, rows: int, size: int) -> int:
        """Most tiles of `size` that `rows` rows of a lane fill, where no tile has rows of two groups."""
        return min(rows, (rows + self.groups * (size - 1)) // size) if self.indexed else triton.cdiv(rows, size)

    def empty(self, like: Tensor, *shape: int) -> Tensor:
        """Memory for results of rows: NaN for rows with an index, because a row whose group does not exist is never computed."""
        return like.new_full(shape, float("nan")) if self.indexed else like.new_empty(shape)

    def constexprs(self, residual: bool, precision: str, dots: bool) -> dict[str, Any]:
        return {
            "D": self.latent, "C": self.context, "D_PAD": padded(self.latent, dots), "C_PAD": padded(max(1, self.context), dots), "H": self.hidden,
            "RESIDUAL": residual, "PRODUCT": PRODUCTS[precision][1],
        }  # fmt: skip

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


def variants() -> Iterator[tuple[str, Sizes, str]]:
    """Name, sizes and precision of the representative variants that are compiled ahead of time."""
    for precision, hidden, latent in itertools.product(("float32", "bf16"), HIDDEN, (2, 16)):
        yield f"D={latent} H={hidden} {precision}", Sizes(1, 128, latent, 2, hidden, 40), precision
    for precision, hidden, latent in itertools.product(("float32", "bf16"), (128, 256), (2, 16)):
        yield f"D={latent} H={hidden} {precision} indexed", Sizes(10, 128, latent, 2, hidden, 40, True), precision


def unusable_denoiser(kernel: Any, what: str, precision: str, **tensors: Tensor | None) -> str | None:
    """The reason why the Triton `what`, which runs a denoiser, cannot take these float32 operands or the precision, or None if it can."""
    reason = unusable(kernel, **tensors)
    if reason is not None:
        return reason
    hidden = tensors.get("hidden")
    if hidden is not None and hidden.shape[-1] not in HIDDEN:
        return f"denoiser: the Triton {what} takes hidden widths {', '.join(map(str, HIDDEN))}, got {hidden.shape[-1]}"
    for name in ("y_T", "x0", "context"):
        width = 0 if tensors.get(name) is None else tensors[name].shape[-1]
        if width > _WIDEST:
            return f"{name}: the Triton {what} takes at most {_WIDEST} columns, got {width}"
    if precision not in PRODUCTS:
        return f"precision: expected one of {', '.join(PRODUCTS)}, got {precision}"
    return None
