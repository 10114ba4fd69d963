"""Counter-based random numbers: Philox 4x32-10, the same bits for any batch split, order, device or tiling.

The key is the 64-bit seed, the counter is (draw low, draw high, block, stream): METHOD section 6. A *draw* is the
position of a sample in the whole run, a *stream* names what the number is for, a *block* holds four words of one row.
Four words make four normals, two Box-Muller pairs, so row `i` of a `[N, D]` request uses `ceil(D / 4)` blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddvi_fast import _checks

# Streams: what a random number is for. Uses that need one stream a timestep own 2^16 of them.
CHAIN = 0 << 16  # + i: the noise of denoising step i
START = 1 << 16  # y_T of the posterior, or z of a one-step posterior
TIME = 2 << 16  # timesteps of the sleep term
NOISE = 3 << 16  # forward noising of the sleep term
PRIOR = 4 << 16  # prior samples, + a few for priors that need several numbers
OBSERVATION = 5 << 16  # fantasies x ~ p(x | z)
ORDER = 6 << 16  # the order of the examples in an epoch
DROPOUT = 7 << 16  # + the layer
INITIAL = 8 << 16  # initial weights

# Importance sample (or group) k of row n stands 2^40 draws after sample 0: independent of how many there are.
IMPORTANCE_STRIDE = 1 << 40

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


@dataclass(frozen=True)
class Draws:
    """Where in the run a batch of samples stands: row `i` is draw `first_index + i` of `seed`.

    Example:
        >>> Draws(seed=7).advance(128)
        Draws(seed=7, first_index=128)
    """

    seed: int
    first_index: int = 0

    def __post_init__(self) -> None:
        for name, value, bits in (("seed", self.seed, 64), ("first_index", self.first_index, 63)):
            _checks.require(isinstance(value, int) and 0 <= value < 1 << bits, name, f"an integer in [0, 2^{bits})", value)

    def advance(self, rows: int) -> Draws:
        """The draws that start `rows` rows further on."""
        return replace(self, first_index=self.first_index + rows)

    def importance(self, first_sample: int) -> Draws:
        """The draws of the same rows from importance sample `first_sample` on."""
        return self.advance(first_sample * IMPORTANCE_STRIDE)

    def indices(self, rows_shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """Draw indices, int64 [*rows_shape]: the last axis counts rows, the flattened ones before it importance samples."""
        *lead, rows = rows_shape
        samples = 1
        for size in lead:
            samples *= size
        index = self.first_index + torch.arange(rows, device=device)
        index = index + IMPORTANCE_STRIDE * torch.arange(samples, device=device).unsqueeze(-1)
        return index.reshape(rows_shape)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox 4x32 on four int64 tensors that hold 32-bit words (Salmon et al. 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _MASK, seed >> 32
    for _ in range(10):
        # An int64 product of two 32-bit words wraps past 2^63, but its low and high words are still right.
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((high >> 32) & _MASK) ^ c1 ^ k0, high & _MASK, ((low >> 32) & _MASK) ^ c3 ^ k1, low & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def words(draws: Draws, shape: tuple[int, ...], stream: int | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Random 32-bit words as int64, shape [..., N, D]; a `stream` tensor broadcasts against the rows, [T, 1] giving [T, N, D]."""
    _checks.require(len(shape) >= 2, "shape", "[..., N, D]", tuple(shape))
    *rows_shape, width = shape
    index = draws.indices(tuple(rows_shape), device).unsqueeze(-1)
    blocks = torch.arange((width + 3) // 4, device=device)
    streams = torch.as_tensor(stream, device=device).unsqueeze(-1)
    quads = philox(torch.broadcast_tensors(index & _MASK, (index >> 32) & _MASK, blocks, streams), draws.seed)
    return torch.stack(quads, dim=-1).flatten(-2)[..., :width]


def uniform(
    draws: Draws, shape: tuple[int, ...], stream: int | Tensor, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Uniforms `((r >> 8) + 0.5) 2^-24`, rounded to float32, shape [..., N, D]."""
    return _to_uniform(words(draws, shape, stream, device)).to(dtype)


def normal(
    draws: Draws, shape: tuple[int, ...], stream: int | Tensor, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normals by Box-Muller, shape [..., N, D]: row `i` is draw `first_index + i`.

    The arithmetic is float64 and the result is rounded once to float32, whatever `dtype` it is handed out in, so that a
    float64 computation sees the very numbers that a float32 kernel makes.

    Example:
        >>> draws = Draws(seed=1)
        >>> whole = normal(draws, (4, 2), START)
        >>> bool((whole[2:] == normal(draws.advance(2), (2, 2), START)).all())
        True
    """
    *rows_shape, width = shape
    padded = (*rows_shape, (width + 3) // 4 * 4)
    pairs = _to_uniform(words(draws, padded, stream, device)).double().unflatten(-1, (-1, 2))
    radius = torch.sqrt(-2 * torch.log(pairs[..., 0]))
    angle = 2 * torch.pi * pairs[..., 1]
    both = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return both.flatten(-2)[..., :width].float().to(dtype)


def permutation(draws: Draws, size: int, device: torch.device | str = "cpu") -> Tensor:
    """A random order of `range(size)`, int64 [size], from the `ORDER` stream; ties broken by position."""
    keys = words(draws, (size, 2), ORDER, device)
    return torch.argsort((keys[:, 0] << 31) ^ keys[:, 1], stable=True)


def _to_uniform(random_words: Tensor) -> Tensor:
    return ((random_words >> 8).double() + 0.5).mul_(2.0**-24).float()
