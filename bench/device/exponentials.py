"""Rate of exponentials on a GPU: a Triton kernel that takes exponentials of numbers in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK, REPEATS = 1024, 512


@triton.jit
def _exponentials(out, repeats, block: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    value = rows.to(tl.float32) * 1e-9
    for _ in range(repeats):
        value = tl.exp(-value)
    tl.store(out + rows, value)


def launch(programs: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """Run the kernel; returns its output and the number of exponentials."""
    out = torch.empty(programs * BLOCK, device=device)
    _exponentials[(programs,)](out, REPEATS, block=BLOCK, num_warps=4)
    return out, programs * BLOCK * REPEATS
