"""The denoising chain in Triton: a launch that runs all steps, and a backward pass on the ReLUs' signs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ddvi_fast._operands import ChainOperands, signs_fit, signs_shape
from ddvi_fast.kernels.chain_backward import backward
from ddvi_fast.kernels.chain_forward import chain_fwd_kernel, run
from ddvi_fast.kernels.chain_options import Sizes, prepared, unusable_denoiser, variants
from ddvi_fast.kernels.common import Compilation, recorded

__all__ = ["backward", "compilations", "forward", "unsupported"]


def unsupported(precision: str = "float32", **tensors: Tensor | None) -> str | None:
    """The reason why the kernels cannot run this chain, or None if they can; `tensors` are its float32 operands by name."""
    return unusable_denoiser(chain_fwd_kernel, "chain", precision, **tensors)


def forward(
    operands: ChainOperands, keep_trajectory: bool, keep_signs: bool = False, keep_outputs: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Run the chain from `y_T` down to `z`.

    Returns:
        `z` [.., R, D]; the path log-ratio [.., R] in nats, None for a deterministic chain; and, where they are kept, the trajectory
        [T + 1, .., R, D], start first, the ReLUs' signs (kernels/signs.py) where they fit (`_operands.signs_fit`), and the
        network's outputs [T, .., R, D].
    """
    y_T = operands.y_T
    sizes = Sizes.of(y_T, operands.context, operands.first, operands.coefficients, operands.starts)
    steps = sizes.steps
    z = sizes.empty(y_T, *y_T.shape)
    path = sizes.empty(y_T, *y_T.shape[:-1]) if operands.noisy else None
    trajectory = sizes.empty(y_T, steps + 1, *y_T.shape) if keep_trajectory else None
    keep_signs = keep_signs and signs_fit(operands)
    signs = y_T.new_empty(signs_shape(operands), dtype=torch.int32) if keep_signs else None
    outputs = sizes.empty(y_T, steps, *y_T.shape) if keep_outputs and keep_signs else None
    if z.numel() > 0:
        run(operands, sizes, prepared(operands.hidden, operands.time_table, operands.precision), y_T, z, path, trajectory, signs, outputs, 0, steps)
    return z, path, trajectory, signs, outputs


def compilations() -> Iterator[Compilation]:
    """Representative variants for ahead-of-time compilation: drawn noise, with everything that a backward pass reads."""
    for variant in variants():
        sizes = variant.sizes
        *tensors, state = sizes.meta_tensors()
        operands = ChainOperands(*tensors, None, *sizes.meta_index(), state, 0, sizes.rows, True, variant.precision)
        yield from recorded(variant.name, forward, operands, True, True, variant.learned, architectures=variant.architectures)
