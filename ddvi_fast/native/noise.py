"""Random numbers and forward noising in C++."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ddvi_fast import rng
from ddvi_fast.native import loader
from ddvi_fast.rng import Draws

_WORDS, _UNIFORMS, _NORMALS = range(3)


def words(draws: Draws, shape: tuple[int, ...], stream: int, planes: int = 1) -> Tensor:
    """`rng.words` of streams `stream` to `stream + planes - 1`: int64 [planes, .., N, D]."""
    return _fill(_WORDS, draws, shape, stream, planes, torch.int64)


def uniform(draws: Draws, shape: tuple[int, ...], stream: int, planes: int = 1) -> Tensor:
    """`rng.uniform` of the same streams, float32 [planes, .., N, D], bit for bit."""
    return _fill(_UNIFORMS, draws, shape, stream, planes, torch.float32)


def normal(draws: Draws, shape: tuple[int, ...], stream: int, planes: int = 1) -> Tensor:
    """`rng.normal` of the same streams, float32 [planes, .., N, D], to a few units in the last place."""
    return _fill(_NORMALS, draws, shape, stream, planes, torch.float32)


def unsupported(x0: Tensor, t: Tensor, signal: Tensor, deviation: Tensor, noise: Tensor | None = None, draws: Draws | None = None) -> str | None:
    """Why the kernel cannot noise these latents, or None."""
    return loader.unusable(x0=x0, signal=signal, deviation=deviation, noise=noise)


def add_noise(x0: Tensor, t: Tensor, signal: Tensor, deviation: Tensor, noise: Tensor | None, draws: Draws | None) -> tuple[Tensor, Tensor]:
    """`reference.noise.add_noise`: latents [.., N, D] at 0-based steps `t` [.., N] of tables [T]; gives `(y_t, noise)`."""
    loader.require_usable(unsupported(x0, t, signal, deviation, noise))
    if noise is None:
        noise = normal(draws, tuple(x0.shape), rng.NOISE)[0]
    return _AddNoise.apply(x0, t, signal, deviation, noise), noise


class _AddNoise(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        x0, t, signal, deviation, noise = (value.detach().contiguous() for value in inputs)
        out = torch.empty_like(x0)
        sizes = loader.integers(t.numel(), x0.shape[-1], torch.get_num_threads())
        loader.library().ddvi_add_noise(*loader.pointers(x0, t, signal, deviation, noise), *sizes, *loader.pointers(out))
        ctx.save_for_backward(x0, t, signal, deviation, noise)
        return out

    @staticmethod
    @loader.first_derivative_only
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x0, t, signal, deviation, noise = ctx.saved_tensors
        need = ctx.needs_input_grad
        return (
            upstream * signal[t].unsqueeze(-1) if need[0] else None,
            None,
            _by_step(upstream * x0, t, signal) if need[2] else None,
            _by_step(upstream * noise, t, deviation) if need[3] else None,
            upstream * deviation[t].unsqueeze(-1) if need[4] else None,
        )


def _by_step(products: Tensor, t: Tensor, table: Tensor) -> Tensor:
    """Sums over rows of one step, added one after another, so that they are the same every time."""
    return torch.zeros_like(table).index_add(0, t.flatten(), products.sum(-1).flatten())


def _fill(kind: int, draws: Draws, shape: tuple[int, ...], stream: int, planes: int, dtype: torch.dtype) -> Tensor:
    out = torch.empty((planes, *shape), dtype=dtype)
    rows = math.prod(shape[:-1])
    sizes = loader.integers(kind, planes, rows, shape[-1], stream)
    where = (*loader.unsigned(draws.seed), *loader.integers(draws.first_index, max(1, shape[-2]), torch.get_num_threads()))
    loader.library().ddvi_fill(*sizes, *where, *loader.pointers(out))
    return out
