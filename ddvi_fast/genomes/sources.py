"""Frequencies of alleles in ancestral sources: the binomial likelihood of admixed genotypes, and its maximum by expectation-maximization.

A person with proportions `q` [K] has the frequency `f = q P` at each variant, for frequencies `P` [K, M] of the sources, and the likelihood of
the calls is `sum g log f + (2 - g) log(1 - f)` up to a constant (Tang et al. 2005, Genetic Epidemiology 28; Alexander et al. 2009, Genome
Research 19).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ddvi_fast.data.packing import MISSING

EDGE = 1e-4  # least distance of a frequency from 0 and 1
_LEAST = 1e-6  # least proportion, from which expectation-maximization can still rise
_LONGEST = 32.0  # largest step of the extrapolation, in steps of expectation-maximization
_SETTLING = 3  # steps without extrapolation at the end
_FACTORS = 8  # probabilities whose product is a number of float32 above 0; none is below `EDGE`
_WIDTH = 1 << 10  # alleles at a time
_CACHED = 1 << 17  # genotypes at a time: so many that intermediate results stay in the processor's cache
_COLUMNS = 64  # variants at a time, at least


Estimate = Callable[[Tensor, Tensor], Tensor]  # frequencies from counts of the counted and of the other allele


class Calls(NamedTuple):
    """Numbers of the counted and of the other allele, float32 [N, M]; both are 0 where the call is missing."""

    counted: Tensor
    other: Tensor

    @classmethod
    def of(cls, codes: Tensor) -> Calls:
        """The calls of codes [N, M]."""
        called = codes != MISSING
        counted = torch.where(called, codes, 0).float()
        return cls(counted, 2 * called.float() - counted)


def log_likelihood(calls: Calls, proportions: Tensor, frequencies: Tensor) -> Tensor:
    """Log-likelihood of each person, nats [..., N], without the constant `log 2` of each heterozygous call.

    Args:
        calls: Calls of N people at M variants.
        proportions: Proportions of the sources, [..., N, K].
        frequencies: Frequencies of the counted allele in the sources, [K, M].

    Example:
        >>> import math
        >>> calls = Calls.of(torch.tensor([[0, 1, 2, 3]]))
        >>> round(float(log_likelihood(calls, torch.ones(1, 1), torch.full((1, 4), 0.5))) / math.log(2), 3)
        -6.0
    """
    f = _inside(proportions @ frequencies)
    return (calls.counted * f.log() + calls.other * torch.log1p(-f)).sum(-1, dtype=torch.float64)


def log_likelihood_of_samples(codes: Tensor, samples: Tensor, frequencies: Tensor) -> Tensor:
    """Log-likelihood of each of several proportions of each person, nats, float64 [S, N], as `log_likelihood`.

    The probability of an allele is linear in the proportions, and one logarithm is taken of the product of eight of them.

    Args:
        codes: Codes of N people at M variants, [N, M].
        samples: Proportions of the sources, float32 [S, N, K]; each sums to 1.
        frequencies: Frequencies of the counted allele in the sources, float32 [K, M], as `fitted` returns them.

    Example:
        >>> import math
        >>> found = log_likelihood_of_samples(torch.tensor([[0, 1, 2, 3]]), torch.ones(1, 1, 1), torch.full((1, 4), 0.5))
        >>> round(float(found) / math.log(2), 3)
        -6.0
    """
    found = []
    for row, proportions in zip(codes, samples.unbind(1), strict=True):
        counted, both, other = frequencies[:, row == 2], frequencies[:, row == 1], 1 - frequencies[:, row == 0]
        twice = _sum_of_logs(proportions, torch.cat((counted, other), 1))
        found.append(2 * twice + _sum_of_logs(proportions, torch.cat((both, 1 - both), 1)))
    return torch.stack(found, 1)


def fitted(calls: Calls, proportions: Tensor, frequencies: Tensor, steps: int, estimate: Estimate) -> tuple[Tensor, Tensor]:
    """Proportions [N, K] and frequencies [K, M] of both, by accelerated expectation-maximization from given ones.

    `estimate` is `fractions`, with which they are those of highest likelihood, or `shrunk`, with which genotypes that were not seen have a higher
    one, but proportions lie too near to the middle.
    """

    def update(both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        of_people, counted, other = _expected(calls, *both)
        return _shares(of_people), estimate(counted, other)

    return _accelerated(update, (_shares(proportions), _inside(frequencies)), steps, (None, None))


def fitted_proportions(calls: Calls, proportions: Tensor, frequencies: Tensor, steps: int) -> Tensor:
    """Proportions [N, K] of highest likelihood at fixed frequencies, each person's on its own."""

    def update(one: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_shares(_expected(calls, one[0], frequencies, variants=False)[0]),)

    return _accelerated(update, (_shares(proportions),), steps, (-1,))[0]


def allele_counts(calls: Calls, proportions: Tensor, steps: int, estimate: Estimate) -> tuple[Tensor, Tensor]:
    """Expected numbers of the counted and of the other allele from each source, [K, M], for people of known proportions.

    People of a single source are simply counted. `estimate` is that of the frequencies, `fractions` or `shrunk`.
    """
    mean = (calls.counted.sum(0) + 0.5) / (calls.counted.sum(0) + calls.other.sum(0) + 1)

    def update(one: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (estimate(*_expected(calls, proportions, one[0], people=False)[1:]),)

    start = _inside(mean.expand(proportions.shape[1], -1))
    (frequencies,) = _accelerated(update, (start,), steps, (0,))
    return _expected(calls, proportions, frequencies, people=False)[1:]


def fractions(counted: Tensor, other: Tensor) -> Tensor:
    """Frequencies [K, M] in the sources of highest likelihood, from counts of alleles; 0.5 where there are none."""
    return _inside((counted + 0.5 * EDGE) / (counted + other + EDGE))


def shrunk(counted: Tensor, other: Tensor) -> Tensor:
    """Frequencies [K, M] in the sources from counts of alleles, drawn towards the mean of all as far as chance explains their differences.

    Plain fractions differ from the mean by sampling, too, so that they overstate how far apart the sources are, and people would come out as more
    mixed than they are. The pseudo-count of each source leaves the share of the mean square of its differences that sampling does not explain
    (James-Stein).
    """
    number = counted + other
    total = number.sum(0)
    mean = (counted.sum(0) + 0.5) / (total + 1)
    plain = torch.where(number > 0, counted / number.clamp_min(1e-12), mean)
    usable = number > 1
    # The mean has a part of the sampling error of each source.
    error = torch.where(usable, plain * (1 - plain) / (number - 1).clamp_min(1e-12) * (1 - number / total.clamp_min(1e-12)), 0).double().sum(1)
    square = torch.where(usable, (plain - mean).square(), 0).double().sum(1)
    chance = (error / square.clamp_min(1e-12)).clamp(0, 1)
    size = number.double().mean(1)
    pseudo = (size * chance / (1 - chance).clamp_min(1e-6)).to(number).unsqueeze(1)
    return _inside((counted + pseudo * mean + 0.5 * EDGE) / (number + pseudo + EDGE))


def curvature(calls: Calls, proportions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient [N, K - 1] and negative second derivatives [N, K - 1, K - 1] of the log-likelihood in the first K - 1 proportions, float64."""
    contrast = frequencies[:-1] - frequencies[-1]
    upper, lower = torch.triu_indices(len(contrast), len(contrast), device=frequencies.device)
    gradient = torch.zeros(len(proportions), len(contrast), dtype=torch.float64, device=frequencies.device)
    products = gradient.new_zeros(len(proportions), len(upper))
    for part in _parts(calls):
        f, each = _inside(proportions @ frequencies[:, part]), contrast[:, part]
        ours, theirs = calls.counted[:, part] / f, calls.other[:, part] / (1 - f)
        gradient += ((ours - theirs) @ each.T).double()
        products += ((ours / f + theirs / (1 - f)) @ (each[upper] * each[lower]).T).double()
    full = products.new_zeros(len(proportions), len(contrast), len(contrast))
    full[:, upper, lower] = full[:, lower, upper] = products
    return gradient, full


def _parts(calls: Calls) -> Iterator[slice]:
    """Variants of which each part has about `_CACHED` genotypes."""
    people, variants = calls.counted.shape
    width = max(_COLUMNS, _CACHED // max(1, people))
    return (slice(first, first + width) for first in range(0, variants, width))


def _sum_of_logs(proportions: Tensor, alleles: Tensor) -> Tensor:
    """Sums over the alleles of log-probabilities, float64 [S], for their probabilities in the sources [K, m]."""
    # Rounded proportions do not sum to 1 exactly, which counts for each allele.
    total = -alleles.shape[1] * proportions.double().sum(1).log()
    for part in alleles.split(_WIDTH, 1):
        filled = torch.nn.functional.pad(part, (0, -part.shape[1] % _FACTORS), value=1.0)
        factors = (proportions @ filled).unflatten(1, (_FACTORS, -1))
        while factors.shape[1] > 1:
            half = factors.shape[1] // 2
            factors = factors[:, :half] * factors[:, half:]
        total += factors.log().sum((1, 2), dtype=torch.float64)
    return total


def _expected(
    calls: Calls, proportions: Tensor, frequencies: Tensor, people: bool = True, variants: bool = True
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Expected numbers of alleles from each source: of each person [N, K], and of the counted and the other allele at each variant [K, M].

    They are summed over `people`, `variants` or both; the others are 0.
    """
    of_people, counted, other = torch.zeros_like(proportions), torch.zeros_like(frequencies), torch.zeros_like(frequencies)
    for part in _parts(calls):
        p = frequencies[:, part]
        f = _inside(proportions @ p)
        ours, theirs = calls.counted[:, part] / f, calls.other[:, part] / (1 - f)
        if people:
            of_people += ours @ p.T + theirs @ (1 - p).T
        if variants:
            counted[:, part], other[:, part] = p * (proportions.T @ ours), (1 - p) * (proportions.T @ theirs)
    return proportions * of_people, counted, other


def _accelerated(
    update: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]], start: tuple[Tensor, ...], steps: int, axes: tuple[int | None, ...]
) -> tuple[Tensor, ...]:
    """Iterate `update`, with squared extrapolation along the last two changes (SQUAREM: Varadhan and Roland 2008, Scand. J. Stat. 35).

    `axes` has for each part the axis along which its numbers depend on each other; None where all parts depend on all.
    """
    now = start
    for _ in range(max(0, steps - _SETTLING) // 3):
        first = update(now)
        second = update(first)
        change = [b - a for a, b in zip(now, first, strict=True)]
        bend = [c - b - d for b, c, d in zip(first, second, change, strict=True)]
        lengths = _lengths(change, bend, axes)
        far = tuple(a + 2 * s * d + s * s * e for a, d, e, s in zip(now, change, bend, lengths, strict=True))
        now = update(tuple(_proper(part, second_part) for part, second_part in zip(far, second, strict=True)))
    for _ in range(_SETTLING):
        now = update(now)
    return now


def _lengths(change: list[Tensor], bend: list[Tensor], axes: tuple[int | None, ...]) -> list[Tensor]:
    """Lengths of the extrapolation, at least 1."""
    if axes[0] is None:
        squares = [sum(part.double().square().sum() for part in parts) for parts in (change, bend)]
        return [(squares[0] / squares[1].clamp_min(1e-30)).sqrt().clamp(1, _LONGEST).float()] * len(change)
    return [
        (d.square().sum(axis, keepdim=True) / e.square().sum(axis, keepdim=True).clamp_min(1e-30)).sqrt().clamp(1, _LONGEST)
        for d, e, axis in zip(change, bend, axes, strict=True)
    ]


def _proper(far: Tensor, near: Tensor) -> Tensor:
    """Extrapolated numbers; where they leave (0, 1), the ones from which they were extrapolated."""
    return torch.where((far > 0) & (far < 1), far, near)


def _shares(of_people: Tensor) -> Tensor:
    """Rows that sum to 1, none of whose entries is 0."""
    total = of_people.sum(-1, keepdim=True)
    shares = torch.where(total > 0, of_people / total.clamp_min(1e-30), 1 / of_people.shape[-1]).clamp_min(_LEAST)
    return shares / shares.sum(-1, keepdim=True)


def _inside(frequencies: Tensor) -> Tensor:
    return frequencies.clamp(EDGE, 1 - EDGE)
