"""Observed data: the one place that reads them, and their standardization for the encoders."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.inference.missing import filled, require_usable, with_mask
from ddvi_fast.inference.model import as_real, seeded
from ddvi_fast.inference.sets import fits, shown
from ddvi_fast.networks import evaluation
from ddvi_fast.rng import Draws
from ddvi_fast.standardization import FAR, Columns, Moments, listed

_KNOTS = 257  # quantiles of a column with heavy tails, evenly spaced in normal scores
_FLAT = 1e-4  # spread of an embedding's features, relative to their size, below which it is taken to ignore the data
_APART = 3  # rows at which an embedding is compared with itself
_OBSERVED = 4096  # largest number of rows of data that are used beside simulations
_SAME = 1e-6  # relative difference from a constant column that rounding explains


class Observation(nn.Module):
    """Standardized features of data, float32 [N, K]: flattened data, or the output of an embedding.

    Flattened data are shifted and scaled to mean 0 and variance 1 over the simulations, in float64. Columns without spread are left out.
    Columns with heavy tails become normal scores: the quantile of a value among the simulations, as that of a standard normal variable. Values
    far outside of what was simulated are clipped: at the range of the simulations, extended by its length on both sides, or at 10 standard
    deviations. The features of an embedding, which is trained, are only shifted and scaled.

    Where entries may be missing (NaN), a missing one has the feature 0, and features that follow are 1 where one is missing. An embedding gets
    the same: data [N, C, ...] as [N, 2 C, ...].

    Args:
        shift: Means of the features, float64 [P].
        scale: Standard deviations of the features, float64 [P].
        low, high: Smallest and largest standardized value, float64 [P].
        columns: Numbers of the features that are used, int64 [K].
        heavy: Numbers of the features that become normal scores, int64 [H].
        knots, scores: Quantiles of these features and their normal scores, float64 [H, Q].
        embedding: Network from data [N, ...] to features [N, P], or None (default) to flatten them.
        masked: Numbers of the entries that may be missing, int64 [M], none with an embedding; None (default) if no entry may be missing.
    """

    def __init__(
        self, shift: Tensor, scale: Tensor, low: Tensor, high: Tensor, columns: Tensor, heavy: Tensor, knots: Tensor, scores: Tensor,
        embedding: nn.Module | None = None, masked: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embedding = embedding
        self.register_buffer("masked", masked)
        for name, value in (("shift", shift), ("scale", scale), ("low", low), ("high", high), ("columns", columns), ("heavy", heavy),
                            ("knots", knots), ("scores", scores)):  # fmt: skip
            self.register_buffer(name, value)

    @property
    def width(self) -> int:
        """Number of features that are used, K."""
        return self.columns.shape[0] + (0 if self.masked is None else self.masked.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.standardized(embed(self.embedding, x, self.masked is not None).double())

    def standardized(self, features: Tensor) -> Tensor:
        """Standardize features, float64 [N, P]; float32 [N, K]."""
        scaled = ((features - self.shift) / self.scale).clamp(self.low, self.high)
        if self.heavy.shape[0]:
            scaled = scaled.index_copy(1, self.heavy, normal_scores(features.index_select(1, self.heavy), self.knots, self.scores))
        used = scaled.index_select(1, self.columns).float()
        if self.masked is None or self.embedding is not None:
            return used
        missing = features.isnan().index_select(1, self.masked)
        return torch.cat((used.nan_to_num(nan=0.0), missing.float()), 1)

    @classmethod
    @torch.no_grad()
    def of(
        cls, x: Tensor, embedding: nn.Module | None, observed: Tensor | None = None, missing: bool = False, moments: Moments | None = None,
        others: Sequence[Tensor] = (),
    ) -> Observation:  # fmt: skip
        """Make the standardization of data like the simulations `x` [n, ...], and like the rows `observed` [M, ...] if there are any.

        If simulations take two values only, like the pixels of binary images, and rows lie between them, all columns have one unit and scale.
        With `missing`, entries may be missing. `moments` are those of all simulations, of which `x` are a part. `others` are simulations of
        other shapes, for an embedding that takes them.

        Raises:
            InputError: If no feature varies, or if the embedding does not return finite features [n, P].
        """
        gone = x.flatten(1).isnan()
        simulated = x = filled(x) if embedding is None else x
        if observed is not None:
            x = torch.cat((x, observed[:: -(-len(observed) // _OBSERVED)].to(x)))
        features = _first_features(embedding, x, missing)
        features = torch.cat((features, *(embed(embedding, other, missing) for other in others)))
        columns = Columns.of(_checks.finite(features, "embedding" if embedding is not None else "simulate, x"), robust=embedding is None)
        argument, hint = ("simulate, x", "") if embedding is None else ("embedding", "it gets x in its own units: bring x to order 1")
        columns = columns if moments is None or embedding is not None else columns.of_all(moments)
        _checks.require(bool(columns.varies.any()), argument, "data that vary", "the same in every simulation", hint)
        if embedding is not None:
            endless = torch.full_like(columns.scale, torch.inf)
            every, none = torch.arange(len(endless), device=x.device), torch.zeros(0, dtype=torch.long, device=x.device)
            empty = endless.new_zeros(0, _KNOTS)
            return cls(columns.center, columns.scale, -endless, endless, every, none, empty, empty, embedding, none if missing else None)
        columns = _of_one_unit(columns) if _binary(simulated, x) else columns
        scaled = columns(features if moments is None else torch.stack((moments.low, moments.high)).to(x.device))
        lowest, highest = scaled.amin(0), scaled.amax(0)
        reach = highest - lowest
        low, high = (lowest - reach).clamp(max=-FAR), (highest + reach).clamp(min=FAR)
        heavy = columns.heavy.nonzero().flatten()
        knots, scores = quantiles(features.index_select(1, heavy).double())
        masked = (columns.varies | gone.any(0)).nonzero().flatten() if missing else None
        return cls(columns.center, columns.scale, low, high, columns.varies.nonzero().flatten(), heavy, knots, scores, masked=masked)

    @classmethod
    def like(cls, tensors: dict[str, Tensor], embedding: nn.Module | None) -> Observation:
        """Make a standardization with the buffers in `tensors`."""
        names = ("shift", "scale", "low", "high", "columns", "heavy", "knots", "scores")
        return cls(*(torch.empty_like(tensors[name]) for name in names), embedding, tensors.get("masked"))

    def left_out(self) -> Tensor:
        """Whether a feature is left out, bool [P]."""
        return torch.ones_like(self.shift, dtype=torch.bool).index_fill(0, self.columns, False)

    def notices(self, names: list[str]) -> list[str]:
        """Describe what was done to data with columns called `names`; one sentence each."""
        if self.embedding is not None:
            flat = bool((self.scale < _FLAT * self.shift.abs()).double().mean() > 0.5)
            return ["embedding: features vary by less than 1e-4 of their size; it gets x in its own units, so bring x to order 1"] if flat else []
        heavy = torch.zeros_like(self.left_out()).index_fill(0, self.heavy, True)
        found = []
        if self.left_out().any():
            found.append(f"simulate, x: {listed(self.left_out(), names)} without spread, left out")
        if heavy.any():
            found.append(f"simulate, x: {listed(heavy, names)} with heavy tails, standardized by quantiles of the simulations")
        return found

    @torch.no_grad()
    def surprises(self, x: Tensor, names: list[str]) -> list[str]:
        """Describe in which columns data `x` [N, ...] lie outside of what was simulated; one sentence each."""
        if self.embedding is not None or not len(x):
            return []
        features = x.flatten(1).double()
        difference = (features - self.shift).abs()
        changed = (difference > _SAME * torch.maximum(features.abs(), self.shift.abs())).any(0) & self.left_out()
        scaled = (features - self.shift) / self.scale
        far = ((scaled < self.low) | (scaled > self.high)).any(0) & ~self.left_out()
        found = []
        if changed.any():
            found.append(f"x: {listed(changed, names)} did not vary in the simulations and differs from them here; left out")
        if far.any():
            found.append(f"x: {listed(far, names)} far outside of what was simulated; clipped")
        return found


def _binary(simulated: Tensor, x: Tensor) -> bool:
    """Whether simulations take two values only, and all of `x` lie between these."""
    low, high = simulated.amin(), simulated.amax()
    return bool(((simulated == low) | (simulated == high)).all()) and bool(((x >= low) & (x <= high)).all())


def _of_one_unit(columns: Columns) -> Columns:
    """The columns with one scale for all of them, and none left out or with heavy tails."""
    scale = columns.scale[columns.varies].square().mean().sqrt()
    no, yes = torch.zeros_like(columns.varies), torch.ones_like(columns.varies)
    return dataclasses.replace(columns, scale=torch.full_like(columns.scale, scale), varies=yes, heavy=no, outlying=no)


def require_embedding(embedding: nn.Module | None) -> None:
    """Refuse what is no network that can be called with data."""
    _checks.instance(embedding, (nn.Module, type(None)), "embedding", "None or a torch.nn.Module")
    if embedding is not None:
        _checks.forward(embedding, "embedding", 1, "a module with forward(x)")


def _first_features(embedding: nn.Module | None, x: Tensor, missing: bool) -> Tensor:
    """Features [n, P] of the data with which an embedding is called first; what it cannot take or return is refused."""
    try:
        features = embed(embedding, x, missing)
    except _checks.InputError:
        raise
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        _checks.fail("embedding", f"a network of data {list(x.shape)}", _checks.one_line(error))
    _checks.tensor(features, "embedding", floating=False)
    fits = features.dim() == 2 and len(features) == len(x) and not features.is_complex()
    _checks.require(fits, "embedding", f"real features [{len(x)}, P]", features)
    return features


@torch.no_grad()
def require_apart(embedding: nn.Module, x: Tensor, missing: bool = False) -> None:
    """Refuse an embedding whose features of a row in evaluation mode depend on the other rows, or on chance."""
    expected = "a network that treats rows apart and without chance in evaluation mode"
    with evaluation(embedding):
        try:
            together, *alone = (_seeded_features(embedding, part, missing) for part in (x[:_APART], *x[:_APART].split(1)))
        except (RuntimeError, ValueError, IndexError) as error:
            _checks.fail("embedding", expected, _checks.one_line(error))
    off = (together - torch.cat(alone)).abs().max()
    _checks.require(bool(off <= 1e-3 * (1 + together.abs().max())), "embedding", expected, f"features of a row that differ by {float(off):.2g}")


def _seeded_features(embedding: nn.Module, x: Tensor, missing: bool) -> Tensor:
    with seeded(Draws(0), x.device):
        return embed(embedding, x, missing)


def embed(embedding: nn.Module | None, x: Tensor, missing: bool = False) -> Tensor:
    """Return the features [N, P] of data [N, ...]; an embedding gets data in the type of its parameters, with a mask if entries may be missing."""
    if embedding is None:
        return x.flatten(1)
    x = with_mask(x) if missing else x
    types = (parameter.dtype for parameter in embedding.parameters() if parameter.is_floating_point())
    return embedding(x.to(next(types, torch.float32)))


def quantiles(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return quantiles of the columns of `x` [n, H] and the normal scores of their ranks [H, Q], the mean score for equal quantiles."""
    n = len(x)
    edge = float(torch.special.ndtri(x.new_tensor(0.5 / n, dtype=torch.float64)))
    levels = torch.linspace(edge, -edge, _KNOTS, dtype=torch.float64, device=x.device)
    ranks = (n * torch.special.ndtr(levels) - 0.5).round().long().clamp(0, n - 1)
    ordered = x.T.sort(1).values.contiguous()
    knots = ordered[:, ranks].contiguous()
    # Equal values share the middle of their ranks.
    middle = (torch.searchsorted(ordered, knots) + torch.searchsorted(ordered, knots, right=True)) / 2
    return knots, torch.special.ndtri(middle.double() / n)


def normal_scores(x: Tensor, knots: Tensor, scores: Tensor) -> Tensor:
    """Interpolate `scores` between `knots` [H, Q] at `x` [N, H]; [N, H]. Outside of the knots the score is that of the nearest one."""
    columns = x.T.contiguous()
    above = torch.searchsorted(knots, columns, right=True).clamp(1, knots.shape[1] - 1)
    low, high = knots.gather(1, above - 1), knots.gather(1, above)
    share = ((columns - low) / (high - low).clamp(min=torch.finfo(knots.dtype).tiny)).clamp(0, 1)
    return torch.lerp(scores.gather(1, above - 1), scores.gather(1, above), share).T


def observed_rows(x: Any, shape: tuple[int | None, ...], missing: bool = False) -> tuple[Tensor, bool]:
    """Return data of `shape`, in which None is any number, or rows of them, as real rows [M, ...], and whether `x` had rows.

    Raises:
        InputError: If `x` is no tensor of real numbers of that shape, or if a value is infinite, or NaN where none may be missing.
    """
    _checks.tensor(x, "x", floating=False)
    many = x.dim() == len(shape) + 1
    _checks.require(fits(x.shape[int(many) :], shape), "x", f"data of shape {shown(shape)} or rows of them", x)
    x = require_usable(as_real(x, "x"), "x", missing)
    return (x if many else x.unsqueeze(0)), many


def column_names(shape: tuple[int | None, ...]) -> list[str]:
    """Return the names of the entries of data of `shape`, such as ``x[0, 3]``; none of sets, whose number of entries is free."""
    if None in shape:
        return []
    return [f"x[{', '.join(map(str, place))}]" for place in itertools.product(*(range(size) for size in shape))]
