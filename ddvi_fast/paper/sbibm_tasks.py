"""The ten tasks of sbibm (Lueckmann et al. 2021): priors and simulators written anew, observations and reference draws from its package.

Only files of the package are read; none of its code is run, so that it can be installed without its dependencies.
"""

from __future__ import annotations

import bz2
import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from ddvi_fast import _checks

OBSERVATIONS = tuple(range(1, 11))
_BLOCK = 20_000  # parameters whose differential equations are solved at a time
_SIR_STEP, _LOTKA_VOLTERRA_STEP = 0.1, 0.01  # steps of the solver, days
_PEOPLE, _SIR_DAYS, _PREY_DAYS = 1_000_000.0, 17.0, 2.1  # population, and days between the observations of the two equations
_SEEN = 10  # observations of a differential equation


@dataclass(frozen=True)
class Task:
    """A task of sbibm.

    Args:
        prior: Function from a number to as many parameters [n, D].
        data: Function from parameters to data [n, P].
        support: Constraint of the parameters.
        folder: Folder of the observations in the package. Default: the task's own name.
        observation: Name of the file of an observation.
    """

    prior: Callable[[int], Tensor]
    data: Callable[[Tensor], Tensor]
    support: Any
    folder: str
    observation: str = "observation.csv"

    def simulate(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw parameters and data."""
        z = self.prior(n)
        return z, self.data(z)

    def observed(self, number: int) -> Tensor:
        """The data [P] of an observation, from 1 to 10."""
        return _table(self._files(number) / self.observation)[0]

    def reference(self, number: int) -> Tensor:
        """The 10,000 reference draws [N, D] of an observation."""
        return _table(self._files(number) / "reference_posterior_samples.csv.bz2")

    def _files(self, number: int) -> Path:
        return files(self.folder) / f"num_observation_{number}"


def package() -> Path | None:
    """The folder of the installed package, or None."""
    found = importlib.util.find_spec("sbibm")
    return None if found is None or found.origin is None else Path(found.origin).parent


def files(name: str) -> Path:
    """The folder of the files of a task in the package.

    Raises:
        InputError: The package is not installed.
    """
    place = package()
    if place is None:
        _checks.fail("sbibm", "the package sbibm 1.1.0, for its reference posteriors", "none", "pip install --no-deps sbibm==1.1.0")
    return place / "tasks" / name / "files"


def _table(path: Path) -> Tensor:
    """Read a table of numbers with one line of names."""
    text = bz2.decompress(path.read_bytes()) if path.suffix == ".bz2" else path.read_bytes()
    return torch.from_numpy(np.loadtxt(text.decode().splitlines(), delimiter=",", skiprows=1, ndmin=2)).float()


def _normal(mean: Tensor, scale: Tensor | float) -> Tensor:
    return mean + scale * torch.randn_like(mean)


def _uniform(low: float, high: float, dim: int) -> Callable[[int], Tensor]:
    return lambda n: torch.empty(n, dim, device="cpu").uniform_(low, high)


def _log_normal(mean: tuple[float, ...], scale: tuple[float, ...]) -> Callable[[int], Tensor]:
    return lambda n: torch.exp(torch.tensor(mean, device="cpu") + torch.tensor(scale, device="cpu") * torch.randn(n, len(mean), device="cpu"))


def two_moons() -> Task:
    def data(z: Tensor) -> Tensor:
        angle, radius = math.pi * (torch.rand(len(z), device="cpu") - 0.5), _normal(torch.full((len(z),), 0.1, device="cpu"), 0.01)
        places = torch.stack((angle.cos() * radius + 0.25, angle.sin() * radius), 1)
        return places + torch.stack((-(z[:, 0] + z[:, 1]).abs(), z[:, 1] - z[:, 0]), 1) / math.sqrt(2)

    return Task(_uniform(-1, 1, 2), data, constraints.interval(-1.0, 1.0), "two_moons")


def _slcp(z: Tensor) -> Tensor:
    """Four draws of a normal variable of two dimensions, flattened [n, 8]."""
    first, second, correlation = z[:, 2:3].square(), z[:, 3:4].square(), torch.tanh(z[:, 4:5])
    e = torch.randn(len(z), 4, 2, device="cpu")
    x = first * e[..., 0]
    y = second * (correlation * e[..., 0] + (1 - correlation.square()).sqrt() * e[..., 1])
    return (z[:, None, :2] + torch.stack((x, y), -1)).flatten(1)


def slcp() -> Task:
    return Task(_uniform(-3, 3, 5), _slcp, constraints.interval(-3.0, 3.0), "slcp")


def slcp_distractors() -> Task:
    """The data of `slcp` among 92 columns of a mixture of 20 Student distributions of two degrees of freedom, in a fixed order."""

    def data(z: Tensor) -> Tensor:
        centers, factors, order = distractors()
        which = torch.randint(len(centers), (len(z),), device="cpu")
        wide = torch.distributions.Chi2(2.0).sample((len(z), 1))
        e = torch.randn(len(z), centers.shape[1], device="cpu") / (wide / 2).sqrt()
        noise = torch.empty_like(e)
        for one in range(len(centers)):
            mine = which == one
            noise[mine] = centers[one] + e[mine] @ factors[one].T
        return torch.cat((_slcp(z), noise), 1)[:, order]

    return Task(_uniform(-3, 3, 5), data, constraints.interval(-3.0, 3.0), "slcp", "observation_distractors.csv")


@cache
def distractors() -> tuple[Tensor, Tensor, Tensor]:
    """Centers [20, 92] and factors [20, 92, 92] of the distractors, and the order of all columns, from the seed that sbibm has used."""
    draws, dim = np.random.RandomState(42), 92
    centers = np.array([15 * draws.normal(size=dim) for _ in range(20)])
    factors = np.array([np.tril(draws.normal(size=(dim, dim))) + np.diag(np.exp(draws.normal(size=dim))) for _ in range(20)])
    return torch.from_numpy(centers).float(), torch.from_numpy(3 * factors).float(), torch.from_numpy(draws.permutation(dim + 8))


def _bernoulli(raw: bool) -> Task:
    """Spikes of a neuron with a stimulus filtered by nine weights; the data are the spikes, or their products with the design matrix."""
    size = 9
    steps = torch.eye(size, device="cpu") - torch.diag(torch.ones(size - 1, device="cpu"), -1)
    smooth = steps @ steps + torch.diag((torch.arange(size, device="cpu") / size).sqrt())
    precision = torch.block_diag(torch.tensor([[0.5]], device="cpu"), smooth.T @ smooth)
    factor = torch.linalg.inv(torch.linalg.cholesky(precision))  # its transpose times normal draws has the inverse covariance `precision`

    def data(z: Tensor) -> Tensor:
        design = torch.load(files("bernoulli_glm") / "design_matrix.pt", weights_only=True)
        spikes = torch.bernoulli(torch.sigmoid(z @ design.T))
        return spikes if raw else spikes @ design

    name = "observation_raw.csv" if raw else "observation.csv"
    return Task(lambda n: torch.randn(n, size + 1, device="cpu") @ factor, data, constraints.real, "bernoulli_glm", name)


def bernoulli_glm() -> Task:
    return _bernoulli(raw=False)


def bernoulli_glm_raw() -> Task:
    return _bernoulli(raw=True)


def gaussian_mixture() -> Task:
    def data(z: Tensor) -> Tensor:
        return _normal(z, torch.where(torch.rand(len(z), 1, device="cpu") < 0.5, 1.0, 0.1))

    return Task(_uniform(-10, 10, 2), data, constraints.interval(-10.0, 10.0), "gaussian_mixture")


def gaussian_linear() -> Task:
    return Task(
        lambda n: math.sqrt(0.1) * torch.randn(n, 10, device="cpu"), lambda z: _normal(z, math.sqrt(0.1)), constraints.real, "gaussian_linear"
    )


def gaussian_linear_uniform() -> Task:
    return Task(_uniform(-1, 1, 10), lambda z: _normal(z, math.sqrt(0.1)), constraints.interval(-1.0, 1.0), "gaussian_linear_uniform")


def _runge_kutta(slope: Callable[[Tensor], Tensor], state: Tensor, step: float, steps: int) -> Tensor:
    """The state after `steps` steps of the classical Runge-Kutta method."""
    for _ in range(steps):
        first = slope(state)
        second = slope(state + 0.5 * step * first)
        third = slope(state + 0.5 * step * second)
        state = state + step / 6 * (first + 2 * second + 2 * third + slope(state + step * third))
    return state


def _solved(slope: Callable[[Tensor], Tensor], start: Tensor, every: float, step: float) -> Iterator[Tensor]:
    """States at ten times, `every` days apart, the first of which is the start."""
    yield start
    count = round(every / step)
    for _ in range(_SEEN - 1):
        start = _runge_kutta(slope, start, every / count, count)
        yield start


@torch.no_grad()
def infected(z: Tensor, step: float = _SIR_STEP) -> Tensor:
    """The share of infected people [n, 10] of the SIR equations with contact and recovery rates `z` [n, 2], every 17 days."""
    contact, recovery = z.double().T

    def slope(state: Tensor) -> Tensor:
        susceptible, ill = state
        met = contact * susceptible * ill
        return torch.stack((-met, met - recovery * ill))

    ill = 1 / _PEOPLE
    start = torch.tensor([[1 - ill], [ill]], dtype=torch.float64, device="cpu").expand(2, len(z))
    return torch.stack([state[1] for state in _solved(slope, start, _SIR_DAYS, step)], 1).clamp(0, 1).float()


@torch.no_grad()
def animals(z: Tensor, step: float = _LOTKA_VOLTERRA_STEP) -> Tensor:
    """The logarithms of prey and predators [n, 20] of the Lotka-Volterra equations with rates `z` [n, 4], at ten times each, every 2.1 days."""
    births, eaten, deaths, fed = z.double().T

    def slope(state: Tensor) -> Tensor:
        prey, predators = state.exp()
        return torch.stack((births - eaten * predators, fed * prey - deaths))

    start = torch.tensor([[30.0], [1.0]], dtype=torch.float64, device="cpu").log().expand(2, len(z))
    return torch.cat([part.T for part in torch.stack(list(_solved(slope, start, _PREY_DAYS, step)), 1)], 1).float()


def sir() -> Task:
    def data(z: Tensor) -> Tensor:
        shares = torch.cat([infected(block) for block in z.split(_BLOCK)])
        return torch.binomial(torch.full_like(shares, 1000.0), shares)

    return Task(_log_normal((math.log(0.4), math.log(0.125)), (0.5, 0.2)), data, constraints.positive, "sir")


def lotka_volterra() -> Task:
    def data(z: Tensor) -> Tensor:
        logs = torch.cat([animals(block) for block in z.split(_BLOCK)])
        return torch.exp(_normal(logs.clamp(math.log(1e-10), math.log(1e4)), 0.1))

    return Task(_log_normal((-0.125, -3.0, -0.125, -3.0), (0.5,) * 4), data, constraints.positive, "lotka_volterra")


TASKS = {
    make.__name__: make
    for make in (
        two_moons, slcp, gaussian_mixture, bernoulli_glm, gaussian_linear_uniform, gaussian_linear, sir, lotka_volterra, bernoulli_glm_raw,
        slcp_distractors,
    )
}  # fmt: skip
