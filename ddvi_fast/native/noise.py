"""Random numbers and forward noising in C++."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ddvi_fast import rng
from ddvi_fast.native import loader

KINDS = ("words", "uniform", "normal")


def unsupported(**tensors: Tensor | None) -> str | None:
    """The reason why the kernels cannot take these latents, tables and noise, or None if they can."""
    return loader.unusable(**tensors)


def fill(kind: str, state: Tensor, offset: int, shape: tuple[int, ...], stream: int, planes: int = 1) -> Tensor:
    """`rng.formula` [planes, .., N, D] at `state` (seed, first index): ``normal`` up to a few units in the last place, the others bit for bit."""
    out = torch.empty((planes, *shape), dtype=torch.int64 if kind == "words" else torch.float32, device="cpu")
    seed, first_index = loader.position(state, offset)
    sizes = loader.integers(KINDS.index(kind), planes, math.prod(shape[:-1]), shape[-1], stream)
    where = (*loader.unsigned(seed), *loader.integers(first_index, max(1, shape[-2]), torch.get_num_threads()))
    loader.library().ddvi_fill(*sizes, *where, *loader.pointers(out))
    return out


def add_noise(
    x0: Tensor, t: Tensor, signal: Tensor, deviation: Tensor, noise: Tensor | None, state: Tensor | None, offset: int, rows_per_sample: int
) -> tuple[Tensor, Tensor]:
    """`reference.noise.add_noise` of latents [R, D] at 0-based steps `t` [R] of tables [T]: `(y_t, noise)`.

    Without `noise` the noise is drawn at `state`; row r is draw `first_index + offset + r % N` of sample `r // N`, N = `rows_per_sample`.
    """
    if noise is None:
        per_sample = max(1, rows_per_sample)
        noise = fill("normal", state, offset, (len(x0) // per_sample, per_sample, x0.shape[1]), rng.NOISE).view_as(x0)
    out = torch.empty_like(x0)
    sizes = loader.integers(len(x0), x0.shape[1], torch.get_num_threads())
    loader.library().ddvi_add_noise(*loader.pointers(x0, t, signal, deviation, noise), *sizes, *loader.pointers(out))
    return out, noise


def add_noise_backward(
    upstream: Tensor, x0: Tensor, t: Tensor, signal: Tensor, deviation: Tensor, noise: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of x0, signal, deviation and noise under `upstream` [R, D]; None where not needed."""
    return [
        upstream * signal[t].unsqueeze(-1) if needed[0] else None,
        _by_step(upstream * x0, t, signal) if needed[1] else None,
        _by_step(upstream * noise, t, deviation) if needed[2] else None,
        upstream * deviation[t].unsqueeze(-1) if needed[3] else None,
    ]


def _by_step(products: Tensor, t: Tensor, table: Tensor) -> Tensor:
    """Sums over the rows of each step, added in one order, so that they are the same every time."""
    return torch.zeros_like(table).index_add(0, t, products.sum(-1))
