"""Random calls of people, as those of a sample with little DNA: a share of the variants, with one allele or both read."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast import rng
from ddvi_fast.data.packing import MISSING
from ddvi_fast.rng import Draws


def thinned(codes: Tensor, shares: Tensor, haploid: Tensor, draws: Draws) -> Tensor:
    """Codes of which each is kept with a probability.

    Args:
        codes: Codes uint8 [R, m]; 3 is a missing call.
        shares: Probability of each row that a code is kept, float32 [R].
        haploid: Rows of which one random allele is read, so that a heterozygous call becomes 0 or 2, bool [R].
        draws: Position of the first row in the random stream.

    Returns:
        Codes uint8 [R, m].

    Example:
        >>> codes = torch.ones(2, 6, dtype=torch.uint8)
        >>> thinned(codes, torch.ones(2), torch.tensor([False, True]), Draws(0)).tolist()[0]
        [1, 1, 1, 1, 1, 1]
    """
    u, shares = rng.uniform(draws, tuple(codes.shape), rng.OBSERVATION, device=codes.device), shares.unsqueeze(1)
    allele = 2 * (u > 0.5 * shares).to(codes.dtype)  # where the call is kept, `u / shares` is uniform
    read = torch.where(haploid.unsqueeze(1) & (codes == 1), allele, codes)
    return torch.where(u <= shares, read, torch.full_like(codes, MISSING))
