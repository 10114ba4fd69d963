"""Arguments of the C++ kernels that run a denoiser: the structures that chain and regression pass, and how they are filled."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast._operands import ChainOperands, Differentiable, SleepOperands
from ddvi_fast.native import loader

WEIGHTS = ("first", "hidden", "last", "last_bias", "time_table")
INDEX = ("order", "starts")
DRAW_FIELDS = (("seed", ctypes.c_uint64), ("first_index", ctypes.c_int64), ("rows_per_sample", ctypes.c_int64))
_SIZES = ("groups", "rows", "latent", "context_width", "hidden_width", "steps", "residual", "bf16", "threads")


def fields(mode: str, inputs: Sequence[str], results: Sequence[str], gradients: Sequence[str]) -> list[tuple[str, type]]:
    """Fields of a structure of csrc/: sizes, the kernel's `mode`, the draw, and pointers."""
    sizes = [(name, ctypes.c_int64) for name in (*_SIZES, mode)]
    return [*sizes, *DRAW_FIELDS, *((name, ctypes.c_void_p) for name in (*inputs, *results, *gradients))]


def arguments(structure: type[ctypes.Structure], inputs: Sequence[str], operands: ChainOperands | SleepOperands, mode: int) -> ctypes.Structure:
    """The structure of a call, with sizes, draw and pointers to `inputs` filled in."""
    latents, context, first, hidden, *_, table, _ = operands.differentiable
    groups, rows, starts = first.shape[0] if first.dim() == 3 else 1, latents.shape[:-1].numel(), operands.starts
    if starts is not None and (int(starts[0]), int(starts[-1])) != (0, rows):
        _checks.fail("groups", f"groups in [0, {groups})", "others")
    width = 0 if context is None else context.shape[-1]
    sizes = (groups, rows, latents.shape[-1], width, hidden.shape[-1], table.shape[0], operands.residual, operands.precision == "bf16")
    draw = (*loader.position(operands.state, operands.offset), max(1, operands.rows_per_sample))
    made = structure(*sizes, torch.get_num_threads(), mode, *draw)
    loader.fill(made, inputs, operands[: len(inputs)])
    return made


def new_gradients(
    made: ctypes.Structure, names: Sequence[str], operands: ChainOperands | SleepOperands, needed: Differentiable, latents: bool
) -> Differentiable:
    """Memory for the gradients that a kernel writes, with pointers in the structure; `latents` says that it writes theirs in any case.

    The weights share their passes over the data, so the kernel writes all five of their gradients or none.
    """
    weights = any(needed.weights)
    wanted = needed._replace(latents=latents or needed.latents, **dict.fromkeys(WEIGHTS, weights))
    found = [torch.empty_like(value) if want and value is not None else None for want, value in zip(wanted, operands.differentiable, strict=True)]
    loader.fill(made, names, found)
    return Differentiable(*found)


def unusable(what: str, precision: str, tensors: dict[str, Tensor | None]) -> str | None:
    """The reason why the C++ `what` cannot take these float32 operands or the precision, or None if it can."""
    reason, hidden = loader.unusable(**tensors), tensors.get("hidden")
    if reason is None and precision not in loader.PRECISIONS:
        return f"precision: the C++ {what} has {' and '.join(loader.PRECISIONS)}, got {precision}"
    if reason is None and hidden is not None and hidden.shape[-1] % 64:
        return f"denoiser: the C++ {what} takes hidden widths that are multiples of 64, got {hidden.shape[-1]}"
    return reason
