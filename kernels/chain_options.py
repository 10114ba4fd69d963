"""How the chain's kernels are launched: sizes, meta-parameters by architecture, and how much memory a backward pass may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddvi_fast.kernels.network import padded
from ddvi_fast.precision import NARROW

# Hidden widths that the kernels are compiled for.
HIDDEN = (64, 128, 256)

# Scratch memory of a backward pass, for activations and gradients of so many steps and rows at a time.
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
        # group, whose activations go from product to product in registers, and leave room for a second program on the same processor.
        return {"BN": 64, "BH": hidden, "BK": hidden, "KEEP": True, "num_warps": 4, "num_stages": 1}
    # Everything else streams weights from cache and passes activations through it: float32 matrices or those of H = 256 do not fit beside
    # their tiles, sm_80 takes its operands from registers, and a wide state's last layer needs the registers itself.
    # Rows are few where operands are split (float32) or stand in registers (sm_80).
    return {"BN": 64 if low and arch >= 90 else 32, "BH": 64, "BK": 64 if low else 32, "KEEP": False, "num_warps": 8, "num_stages": 2}


def backward_options(precision: str) -> dict[str, Any]:
    """Of the kernel that takes gradients down the steps: they follow each other, so few rows a program keep more processors at work."""
    return {"BN": 32, "BH": 32, "BK": 32 if precision in NARROW else 16, "num_warps": 8, "num_stages": 2}


def one_step_options(arch: int, precision: str) -> dict[str, Any]:
    """Of kernels that run each row through the network once: as large as registers allow."""
    low = precision in NARROW
    # From sm_90 on, tensor cores take 64 rows of bf16 at once, on sm_100 without a thought to registers: they keep sums in a memory of their own.
    if low and arch >= 100:
        return {"BN": 64, "BH": 64, "BK": 64, "num_warps": 8, "num_stages": 3}
    if low and arch >= 90:
        return {"BN": 64, "BH": 32, "BK": 64, "num_warps": 4, "num_stages": 3}
    return {"BN": 32, "BH": 64, "BK": 64 if low else 32, "num_warps": 8, "num_stages": 3 if arch >= 90 else 2}


@dataclass(frozen=True)
class Sizes:
    """Of one call: G networks (1 without a group axis), R rows each, D, C, H and T."""

    groups: int
    rows: int
    latent: int
    context: int
    hidden: int
    steps: int

    @classmethod
    def of(cls, y_T: Tensor, context: Tensor | None, first: Tensor, coefficients: Tensor) -> Sizes:
        groups = first.shape[0] if first.dim() == 3 else 1
        width = 0 if context is None else context.shape[-1]
        return cls(groups, y_T.shape[-2], y_T.shape[-1], width, first.shape[-2], coefficients.shape[0])

    def constexprs(self, residual: bool, precision: str, dots: bool) -> dict[str, Any]:
        return {
            "D": self.latent, "C": self.context, "D_PAD": padded(self.latent, dots), "C_PAD": padded(max(1, self.context), dots), "H": self.hidden,
            "RESIDUAL": residual, "PRODUCT": PRODUCTS[precision][1],
        }  # fmt: skip
