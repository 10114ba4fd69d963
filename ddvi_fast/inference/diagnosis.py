"""One table of what there is to check about a fitted posterior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ddvi_fast import _checks
from ddvi_fast.inference import kinds
from ddvi_fast.inference.diagnostics import Diagnostics
from ddvi_fast.inference.importance import GOOD_K
from ddvi_fast.inference.model import offers
from ddvi_fast.inference.observation import column_names, observed_rows
from ddvi_fast.rng import Draws

if TYPE_CHECKING:
    from ddvi_fast.inference.posterior import FittedPosterior

_EDGE = 0.01  # part of an interval, or of the median distance from a bound, that counts as its boundary
_MUCH = 0.2  # share of samples at a boundary from which it is remarked
_RANKED = 99  # posterior samples for each simulation of the calibration
_FEW = 0.1  # relative effective sample size below which it is remarked


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What there is to check about a posterior; `str` is a table.

    Attributes:
        columns: Number of columns of the data, or of features of an embedding; 0 for the posterior of one data set.
        left_out: Names of the columns without spread, which the posterior ignores.
        heavy_tails: Names of the columns with heavy tails, which are standardized by quantiles.
        spread: Smallest and largest standard deviation of the other columns, in units of the data; None without columns.
        history: Mean loss over each twentieth of the training, nats.
        information: Nats by which own data lower the loss, see `FittedPosterior`; None for the posterior of one data set.
        num_samples: Number of samples of the posterior.
        effective_sample_size: Effective sample size of their importance weights; None without `log_joint`.
        pareto_k: Shape of the tail of the weights, reliable below 0.7; None without `log_joint`.
        boundary: Share of samples near a bound of the support, by parameter with a bound.
        calibration: Result of `diagnostics`; None without `simulate`.
        remarks: What needs attention, one sentence each.
    """

    columns: int
    left_out: list[str]
    heavy_tails: list[str]
    spread: tuple[float, float] | None
    history: list[float]
    information: float | None
    num_samples: int
    effective_sample_size: float | None
    pareto_k: float | None
    boundary: dict[str, float]
    calibration: Diagnostics | None
    remarks: list[str]

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of the table: what was checked, and what was found."""
        curve = f"{self.history[0]:.3f} to {self.history[-1]:.3f} nats" if self.history else "none"
        found = [
            ("columns of data", f"{self.columns}, {len(self.left_out)} left out, {len(self.heavy_tails)} with heavy tails"),
            ("standard deviations", "none" if self.spread is None else f"{self.spread[0]:.3g} to {self.spread[1]:.3g}"),
            ("loss", curve if self.information is None else f"{curve}, at least {self.information:.3f} nats by the data"),
            ("effective sample size", _or_none(self.effective_sample_size, ".0f", f" of {self.num_samples}", "no log_joint")),
            ("Pareto k", _or_none(self.pareto_k, ".2f", f" (reliable below {GOOD_K})", "no log_joint")),
            ("near the boundary", ", ".join(f"{name} {share:.1%}" for name, share in self.boundary.items()) or "no bounds"),
            ("calibration", "no simulate" if self.calibration is None else "passed" if self.calibration.calibrated() else "failed"),
        ]
        return [*found, *(("remark", remark) for remark in self.remarks)]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows())
        table = [f"  {name:<{width}}  {value}" for name, value in self.rows()]
        return "\n".join(["Diagnosis", *table, *([] if self.calibration is None else [repr(self.calibration)])])

    __repr__ = __str__


def diagnose(posterior: FittedPosterior, x: Any, *, num_samples: int, num_simulations: int, seed: int) -> Diagnosis:
    """Make the `Diagnosis` of a posterior; the arguments are those of `FittedPosterior.diagnose`."""
    simulates, weighs = offers(posterior.model, "simulate") and posterior.conditional, offers(posterior.model, "log_joint")
    if x is None and posterior.conditional and posterior.x is None and simulates:
        x = posterior._simulator().complete(1, Draws(seed).lane("calibration")).x[0]
    if x is not None and posterior.conditional:
        _, many = observed_rows(x, posterior.data_shape, posterior.missing is not None)
        _checks.require(not many, "x", "one data set", x)
    known = not posterior.conditional or x is not None or posterior.x is not None
    complete = posterior.missing is None or not known or not bool((posterior.x if x is None else x).isnan().any())
    sample = posterior.importance_sample(num_samples, x, seed) if weighs and known and complete else None
    boundary = _near_the_boundary(posterior, num_samples, x, seed) if known else {}
    calibration = posterior.diagnostics(num_simulations, _RANKED, seed) if simulates else None
    size, k = (None, None) if sample is None else (sample.effective_sample_size, sample.pareto_k)
    remarks = [*posterior.notices, *_remarks(num_samples, size, k, boundary, calibration)]
    return Diagnosis(*_columns(posterior), posterior.history, posterior.information, num_samples, size, k, boundary, calibration, remarks)


def _columns(posterior: FittedPosterior) -> tuple[int, list[str], list[str], tuple[float, float] | None]:
    """Number of columns, names of those left out and of those with heavy tails, range of the spread of the rest."""
    observation = posterior.observation
    if observation is None:
        return 0, [], [], None
    embedded, count = observation.embedding is not None, len(observation.shift)
    names = [f"feature {place}" for place in range(count)] if embedded else column_names(posterior.data_shape)
    scale = observation.scale[observation.columns]
    left_out = [names[place] for place in observation.left_out().nonzero().flatten().tolist()]
    return count, left_out, [names[place] for place in observation.heavy.tolist()], (float(scale.min()), float(scale.max()))


def _near_the_boundary(posterior: FittedPosterior, num_samples: int, x: Any, seed: int) -> dict[str, float]:
    """Share of samples within 1% of a bound of their support."""
    rows, _ = posterior._rows(x)
    z, _ = posterior.support.constrain(posterior._unconstrained(num_samples, rows[:1], seed)[:, 0].double())
    found = {}
    for name, kind in posterior.support.constraints.items():
        near = kinds.near_bounds(kind, z[name] if posterior.support.named else z, _EDGE)
        if near is not None:
            found[name or "z"] = float(near.double().mean())
    return found


def _remarks(num_samples: int, size: float | None, k: float | None, boundary: dict[str, float], calibration: Diagnostics | None) -> list[str]:
    found = []
    if size is not None and size < _FEW * num_samples:
        found.append("few effective samples: train longer or use a larger architecture")
    if k is not None and not k < GOOD_K:
        found.append("Pareto k above 0.7: averages under the weights are not reliable")
    found += [f"{share:.0%} of the samples of {name} near the boundary of its support" for name, share in boundary.items() if share > _MUCH]
    if calibration is not None and not calibration.calibrated():
        found.append("not calibrated: train longer, use more simulations or a larger architecture")
    return found


def _or_none(value: float | None, form: str, after: str, otherwise: str) -> str:
    return otherwise if value is None else f"{value:{form}}{after}"
