"""Posterior samples that depend on the row only: all rows have the same noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddvi_fast import ops, rng
from ddvi_fast.posteriors import Diffusion, Posterior, PosteriorSample
from ddvi_fast.posteriors.class_conditional import ClassConditional, classes_at
from ddvi_fast.priors import Prior
from ddvi_fast.rng import Draws

_ROWS = 1 << 14  # chain rows (examples times samples) at a time


class Drawn(NamedTuple):
    """A block of rows and its posterior samples: `z` [K, N, D], and their log-ratios [K, N]."""

    x: Tensor
    sample: PosteriorSample


class Noise(NamedTuple):
    """Noise of K samples that all rows share.

    Attributes:
        start: Of the start of the chain [K, 1, D].
        chain: Of its steps [T, K, N, D].
        level: Uniform numbers that choose the classes [K, 1, 1].
    """

    start: Tensor
    chain: Tensor
    level: Tensor

    @classmethod
    def of(cls, family: Diffusion, num_samples: int, rows: int, seed: int) -> Noise:
        """Draw the noise of `num_samples` samples of a chain for blocks of `rows` rows."""
        shape, device = (num_samples, 1, family.latent_dim), next(family.parameters()).device
        start = rng.normal(Draws(seed), shape, rng.START, device=device)
        chain = rng.normal(Draws(seed), shape, rng.CHAIN, planes=family.schedule.num_steps, device=device)
        level = rng.uniform(Draws(seed), (num_samples, 1, 1), rng.CLASSES, device=device)
        return cls(start, chain.expand(-1, -1, rows, -1).contiguous(), level)


@torch.no_grad()
def draw(posterior: Posterior, blocks: Iterator[Tensor], num_samples: int, seed: int, rows: int) -> Iterator[Drawn]:
    """Posterior samples of each block of at most `rows` rows.

    Sample `k` has the same noise in every row. The result of a row therefore does not depend on the rows beside it, up to rounding, and maps
    are smooth but where the class of a sample changes. Blocks are padded to `rows`, because matrix products of another size round differently.

    Args:
        posterior: Fitted diffusion posterior, or one over latent and class.
        blocks: Blocks of rows, [N, P] each.
        num_samples: Samples per row, K.
        seed: Seed of the noise.
        rows: Largest number of rows in a block.
    """
    family: Any = posterior.family if isinstance(posterior, ClassConditional) else posterior
    noise = Noise.of(family, num_samples, rows, seed)
    for block in blocks:
        x = block.to(noise.start.device)
        filled = torch.cat((x, x[:1].expand(rows - len(x), *x.shape[1:])))
        sample = _sample(posterior, posterior.encode(filled), noise)
        yield Drawn(x, PosteriorSample(*(None if part is None else part[:, : len(x)] for part in sample)))


def _sample(posterior: Posterior, encoded: Any, noise: Noise) -> PosteriorSample:
    """Samples for each row, given the output of the encoders."""
    if not isinstance(posterior, ClassConditional):
        return posterior.place(encoded, *_run(posterior, encoded, noise))
    labels = classes_at(noise.level, encoded.log_probs)
    chosen = posterior.family_of_class(encoded, labels)
    sample = posterior.place(chosen, *_run(posterior.family, chosen, noise), labels)
    return posterior.with_class(encoded, sample, labels)[0]


def _run(family: Any, encoded: Any, noise: Noise) -> tuple[Tensor, Tensor]:
    """The end of the chain [K, N, D] in its own coordinates, and its log-ratio [K, N]."""
    mean, log_var = family.start(encoded)
    start = mean + torch.exp(0.5 * log_var) * noise.start
    chain = family.run(encoded, start, noise=noise.chain)
    return chain.z, chain.path - ops.gaussian_log_prob(start, mean, log_var)


def responsibilities(prior: Prior, z: Tensor) -> Tensor:
    """``p(c | z)`` [..., C] under equally likely classes."""
    classes = torch.arange(prior.num_classes, device=z.device)
    return torch.stack([prior.log_prob(z, label.expand(z.shape[:-1])) for label in classes], -1).softmax(-1)


def rows_at_a_time(num_samples: int) -> int:
    """Rows of a block: as many as fit into memory, at most 1,024."""
    return max(1, min(1024, _ROWS // num_samples))
