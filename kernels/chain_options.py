"""How the chain's kernels are launched: sizes, meta-parameters by architecture, and how much memory a backward pass may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddvi_fast.kernels.network import padded

# Scratch memory of a backward pass, for activations and gradients of so many steps and rows at a time.
SCRATCH_BYTES = 256 << 20

# Precision of the hidden products -> (element type of their operands, how tensor cores take float32 operands).
PRODUCTS = {
    "float32": (torch.float32, "tf32x3"),  # three products of tf32 parts, good to about 2^-22
    "tf32": (torch.float32, "tf32"),
    "bf16": (torch.bfloat16, "tf32"),
    "fp16": (torch.float16, "tf32"),
}


def launch_options(arch: int, hidden: int, latent: int, precision: str, backward: bool) -> dict[str, Any]:
    """Meta-parameters of the chain's kernels: BN rows a program, chunks of BH columns, whether weights are KEPT on chip, warps."""
    if precision in ("bf16", "fp16"):
        return {"BN": 64, "BH": min(hidden, 128), "KEEP": arch >= 90 and hidden <= 128, "num_warps": 8, "num_stages": 1}
    return {"BN": 64, "BH": min(hidden, 64), "KEEP": False, "num_warps": 8, "num_stages": 1}


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

    def constexprs(self, residual: bool, precision: str) -> dict[str, Any]:
        return {
            "D": self.latent, "C": self.context, "D_PAD": padded(self.latent), "C_PAD": padded(max(1, self.context)), "H": self.hidden,
            "RESIDUAL": residual, "PRODUCT": PRODUCTS[precision][1],
        }  # fmt: skip
