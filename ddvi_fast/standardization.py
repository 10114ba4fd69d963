"""Standardization of columns: float64 moments, thresholds relative to the data, quantiles where tails are heavy."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ddvi_fast import _checks

FAR = 10.0  # standard deviations from the mean beyond which a value is far out
_NARROW = 3.0  # ratio of the standard deviation to that of the quartiles from which far-out values rule it
_QUARTILES = 1.3489795  # interquartile range of a standard normal variable
_ROUNDINGS = 8.0  # units in the last place within which a column counts as constant
_BLOCK = 1 << 24  # values at a time
_LISTED = 8  # largest number of columns that a message lists


@dataclass(frozen=True)
class Columns:
    """Location and spread of the columns of data.

    Attributes:
        center: Mean, float64 [P]; the median of a column with heavy tails if `robust`, the value of a constant one.
        scale: Standard deviation, float64 [P]; from the quartiles for a column with heavy tails if `robust`, 1 for a constant one.
        varies: Whether a column varies by more than rounding, bool [P].
        heavy: Whether a few values far out rule the standard deviation of a column, bool [P].
        outlying: Whether a heavy column has outliers, and not only few values that differ from the others, bool [P].

    Example:
        >>> found = Columns.of(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
        >>> found.center.tolist(), found.scale.tolist(), found.varies.tolist()
        ([2.0, 7.0], [1.0, 1.0], [True, False])
    """

    center: Tensor
    scale: Tensor
    varies: Tensor
    heavy: Tensor
    outlying: Tensor

    @classmethod
    def of(cls, x: Tensor, robust: bool = True) -> Columns:
        """Describe the columns of `x` [n, P], of any real dtype. All thresholds are relative: other units of a column change only its units.

        A column is constant if its range is within rounding of its largest value. Its tails are heavy if the standard deviation is over three
        times that of a normal variable with the same quartiles, because of values over 10 standard deviations from the mean (or 0.7 sqrt(n)).
        It has outliers if, besides, these values are far out among those that differ from the median, which rare small values are not.
        """
        blocks = x.split(max(1, _BLOCK // max(1, len(x))), 1)  # so that copies in float64 stay small
        return cls(*map(torch.cat, zip(*(cls._of_block(block, robust) for block in blocks), strict=True)))

    @staticmethod
    def _of_block(x: Tensor, robust: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        precision = torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
        x = x.double()
        lowest, largest = x.amin(0), x.abs().amax(0)
        # Squares of x itself may overflow.
        unit = torch.where(largest > 0, largest, 1.0)
        relative = x / unit
        varies = relative.amax(0) - relative.amin(0) > _ROUNDINGS * precision
        mean, deviation = relative.mean(0), relative.std(0, correction=0)
        quarter, median, other = (_quantile(relative, level) for level in (0.25, 0.5, 0.75))
        spread = (other - quarter) / _QUARTILES
        far = (relative - mean).abs().amax(0) > min(FAR, 0.7 * math.sqrt(len(x))) * deviation
        heavy = varies & far & (deviation > _NARROW * spread)
        by_quartiles = heavy & (spread > 0) & robust  # more than half of the values of other heavy columns are equal
        outlying, sparse = heavy.clone(), heavy & (spread == 0)
        outlying[sparse] = _far_among_others(relative[:, sparse] - median[sparse])
        center = torch.where(by_quartiles, median, mean) * unit
        scale = torch.where(by_quartiles, spread, deviation) * unit
        return torch.where(varies, center, lowest), torch.where(varies, scale, 1.0), varies, heavy, outlying

    def of_all(self, moments: Moments) -> Columns:
        """Return the columns with the moments of all rows, of which these are a part; heavy tails keep the description of the part."""
        mean, deviation, low, high = (value.to(self.center) for value in (moments.mean, moments.deviation, moments.low, moments.high))
        varies = self.varies | (high - low > _ROUNDINGS * moments.precision * torch.maximum(high.abs(), low.abs()))
        own = varies & ~self.heavy
        center, scale = torch.where(own, mean, self.center), torch.where(own, deviation, self.scale)
        return dataclasses.replace(self, center=center, scale=scale, varies=varies)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the standardized values of `x` [..., P], float64."""
        return (x.double() - self.center) / self.scale


class Moments:
    """Mean, standard deviation and range of columns that are seen part by part, in float64 (Chan et al. 1979).

    Example:
        >>> moments = Moments()
        >>> moments.add(torch.tensor([[1.0], [2.0]])), moments.add(torch.tensor([[6.0]]))
        (None, None)
        >>> float(moments.mean), float(moments.deviation), float(moments.low), float(moments.high)
        (3.0, 2.16..., 1.0, 6.0)
    """

    def __init__(self) -> None:
        self._parts: tuple[Tensor, ...] | None = None
        self.precision = 0.0  # distance from 1 to the next number of the coarsest type of the rows

    def add(self, x: Tensor) -> None:
        """Add rows `x` [n, P]; NaN does not count."""
        self.precision = max(self.precision, torch.finfo(x.dtype).eps)
        gone, x = x.isnan(), x.double()
        count = (~gone).sum(0).double()
        mean = x.nansum(0) / count.clamp(min=1)
        squares = (x - mean).square().nansum(0)
        low, high = x.masked_fill(gone, torch.inf).amin(0), x.masked_fill(gone, -torch.inf).amax(0)
        self._parts = (count, mean, squares, low, high) if self._parts is None else _merged(self._parts, (count, mean, squares, low, high))

    @property
    def count(self) -> Tensor:
        """Number of values, float64 [P]."""
        return self._known()[0]

    @property
    def mean(self) -> Tensor:
        """Mean, float64 [P]."""
        return self._known()[1]

    @property
    def deviation(self) -> Tensor:
        """Standard deviation, float64 [P]."""
        count, _, squares, _, _ = self._known()
        return (squares / count.clamp(min=1)).sqrt()

    @property
    def low(self) -> Tensor:
        """Smallest value, float64 [P]."""
        return self._known()[3]

    @property
    def high(self) -> Tensor:
        """Largest value, float64 [P]."""
        return self._known()[4]

    def _known(self) -> tuple[Tensor, ...]:
        _checks.require(self._parts is not None, "moments", "at least one row", 0)
        return self._parts


def _merged(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Count, mean, sum of squares, smallest and largest value of two parts together."""
    count = one[0] + other[0]
    share, step = other[0] / count.clamp(min=1), other[1] - one[1]
    squares = one[2] + other[2] + step.square() * one[0] * share
    return count, one[1] + step * share, squares, torch.minimum(one[3], other[3]), torch.maximum(one[4], other[4])


def _quantile(x: Tensor, level: float) -> Tensor:
    """Quantile of each column of `x` [n, P], one of its values; `torch.quantile` refuses large tensors."""
    return x.kthvalue(max(1, math.ceil(level * len(x))), 0).values


def _far_among_others(x: Tensor) -> Tensor:
    """Whether the largest absolute value of each column of `x` [n, P] is far out among those that are not zero, bool [P]."""
    ordered = x.abs().sort(0).values
    zeros = (ordered == 0).sum(0)
    upper = zeros + (0.75 * (len(x) - zeros)).ceil().long() - 1
    return ordered[-1:].squeeze(0) > FAR * ordered.gather(0, upper.clamp(min=0).unsqueeze(0)).squeeze(0)


def listed(columns: Tensor, names: list[str] | None = None) -> str:
    """Return the numbers, or names, of the columns that are True in `columns` [P], as words for a message."""
    places = columns.nonzero().flatten().tolist()
    words = [str(place) if names is None else names[place] for place in places]
    rest = f" and {len(words) - _LISTED} others" if len(words) > _LISTED else ""
    head = f"column{'s' if len(words) > 1 else ''} " if names is None else ""
    return head + ", ".join(words[:_LISTED]) + rest


def tell(message: str) -> None:
    """Warn the user, with the place of the call from outside of this package."""
    warnings.warn(message, UserWarning, stacklevel=_checks.outside())
