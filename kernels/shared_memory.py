"""Shared memory that the kernels around the denoiser need, by their sizes: what decides whether they can run, without Triton.

Triton puts into shared memory what warps exchange: operands of products, which are the matrices of a layer's block and the weights of the narrow
layers, and of some kernels' tiles. `bench/references/shared_memory.json` has what the compiled kernels take; `needed` is no less.
"""

from __future__ import annotations

import functools

PAIRED = 8  # most columns of a narrow side whose planes share a product
BLOCK = 128  # most units of a layer in a product

# Largest shared memory of a program in KiB (CUDA C++ Programming Guide, technical specifications per compute capability).
_AVAILABLE = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}

# First architectures whose tensor cores take matrices from shared memory, whose products sum in tensor memory, and that have neither again.
_FROM_SHARED, _TENSOR_MEMORY, _FROM_REGISTERS = 90, 100, 120


def available(architecture: int) -> int:
    """Bytes of shared memory that a program may have, on an unknown architecture the least of all."""
    return _AVAILABLE.get(architecture, min(_AVAILABLE.values())) << 10


def from_shared(architecture: int) -> bool:
    """Whether products take operands from shared memory."""
    return _FROM_SHARED <= architecture < _FROM_REGISTERS


def in_tensor_memory(architecture: int) -> bool:
    """Whether products sum in tensor memory.

    Triton takes the sums of products that stand directly in a `for` out of it, so that each has its own part of tensor memory for the whole
    loop. The parts of a denoiser are more than there is, and the compiled kernel is a trap. Under a condition products share parts: the loops
    over steps and tiles have one that always holds, which is a constant elsewhere.
    """
    return _TENSOR_MEMORY <= architecture < _FROM_REGISTERS


def padded(width: int) -> int:
    """Columns of a narrow side's tile."""
    return PAIRED if width <= PAIRED else max(16, 1 << (width - 1).bit_length())


@functools.lru_cache(maxsize=256)
def tiles(latent: int, context: int) -> tuple[int, int]:
    """Columns of the tiles of states and of contexts, which has none where both stand in one."""
    joined = 0 < context <= PAIRED - latent
    return padded(latent + context if joined else latent), 0 if joined or context == 0 else padded(context)


def needed(kernel: str, architecture: int, latent: int, context: int, hidden: int, two: bool, rows: int = 64) -> int:
    """Most bytes of shared memory of a program of a kernel that reads hidden matrices from the cache.

    Matrices that stay in shared memory have a condition of their own (`chain_options`).

    Args:
        kernel: ``chain``, ``sleep`` or ``weights``, those of the gradients of weights.
        architecture: Compute capability times ten.
        latent, context, hidden: D, C and H.
        two: Whether hidden products have two planes.
        rows: Rows of a tile of ``weights``.
    """
    states, contexts = tiles(latent, context)
    planes, shared = 2 if two else 1, from_shared(architecture)
    ends = 4 * hidden * (2 * states + contexts)  # both planes of the weights of first and last layer
    block = max(2 * planes * min(hidden, BLOCK) ** 2, 18 << 10)
    staged = max(32 * hidden + 2048, 8 << 10) if shared else 0
    if kernel == "weights":
        return block + ends + staged + _of_factors(shared, states, hidden, planes, rows)
    if not shared:
        return block + ends * (2 if kernel == "sleep" else 1)
    of_contexts = (4 if hidden <= BLOCK else 2) * hidden * contexts if kernel == "chain" else 0
    return block + ends + staged + of_contexts


def _of_factors(shared: bool, states: int, hidden: int, planes: int, rows: int) -> int:
    """Bytes of the factors of a weight gradient, tiles of `rows` rows, as far as they do not share their place with others."""
    many = rows > 64
    if shared:
        few = (2 if planes == 2 else 46 if hidden <= BLOCK else 28 if many else 10) << 10
    elif hidden < BLOCK:
        few = 32 << 10
    else:
        few = 0 if planes == 2 else 44 << 10 if many or (states <= PAIRED and hidden > BLOCK) else 32 << 10 if states <= PAIRED else 16 << 10
    return few + (2 * planes * BLOCK**2 if many else 0)


@functools.lru_cache(maxsize=256)
def most_bytes(kernel: str, architecture: int, latent: int, context: int, hidden: int, two: bool) -> int:
    """Most bytes of shared memory of a program, of ``chain`` or ``sleep`` with all gradients; arguments as in `needed`."""
    return max(needed(each, architecture, latent, context, hidden, two) for each in (kernel, "weights"))


def refusal(bytes_needed: int, architecture: int) -> str:
    """That a program needs more shared memory than there is, in words, or the empty string if it does not."""
    there = available(architecture)
    if bytes_needed <= there:
        return ""
    return f"device: expected {-(-bytes_needed >> 10)} KiB of shared memory for a program, got {there >> 10} KiB"
