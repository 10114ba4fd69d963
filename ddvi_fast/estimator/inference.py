"""Posterior draws that are a function of the row alone: every row of any matrix meets the same noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddvi_fast import ops, rng
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.rng import Draws

_ROWS = 1 << 14  # chain rows (examples times samples) at a time


class Drawn(NamedTuple):
    """A block of rows, its samples `z` [K, N, D], and their `log_ratio` [K, N]."""

    x: Tensor
    z: Tensor
    log_ratio: Tensor


@torch.no_grad()
def draw(posterior: Diffusion, blocks: Iterator[Tensor], num_samples: int, seed: int, rows: int) -> Iterator[Drawn]:
    """Samples of each block of at most `rows` rows.

    Sample `k` of every row is made of the same noise, so that maps have no speckle and a row gives the same, to rounding, in any company.
    Blocks are filled up to `rows`: matrix products of another size round differently.
    """
    device = next(posterior.parameters()).device
    latent_dim, num_steps = posterior.latent_dim, posterior.schedule.num_steps
    start = rng.normal(Draws(seed), (num_samples, 1, latent_dim), rng.START, device=device)
    noise = torch.stack([rng.normal(Draws(seed), (num_samples, 1, latent_dim), rng.CHAIN + step, device=device) for step in range(num_steps)])
    noise = noise.expand(-1, -1, rows, -1).contiguous()
    coefficients, denoiser = posterior.coefficients(), posterior.active_denoiser()
    for block in blocks:
        x = block.to(device)
        filled = torch.cat((x, x[:1].expand(rows - len(x), *x.shape[1:])))
        encoded = posterior.encode(filled)
        y_T = encoded.mean + torch.exp(0.5 * encoded.log_var) * start
        chain = ops.sample_chain(y_T, encoded.context, denoiser, coefficients, noise=noise)
        log_ratio = chain.path - ops.gaussian_log_prob(y_T, encoded.mean, encoded.log_var)
        yield Drawn(x, chain.z[:, : len(x)], log_ratio[:, : len(x)])


def rows_at_a_time(num_samples: int) -> int:
    """Rows of a block: few for small calls would be slow for large ones, and many the other way round."""
    return max(1, min(1024, _ROWS // num_samples))
