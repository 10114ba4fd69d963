"""Posterior samples that depend on the row only: all rows have the same noise."""

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
    """Posterior samples of each block of at most `rows` rows.

    Sample `k` has the same noise in every row. The result of a row therefore does not depend on the rows beside it, up to rounding, and maps
    are smooth. Blocks are padded to `rows`, because matrix products of another size round differently.

    Args:
        posterior: Fitted posterior.
        blocks: Blocks of rows, [N, P] each.
        num_samples: Samples per row, K.
        seed: Seed of the noise.
        rows: Largest number of rows in a block.
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
    """Rows of a block: as many as fit into memory, at most 1,024."""
    return max(1, min(1024, _ROWS // num_samples))
