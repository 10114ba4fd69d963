"""Interfaces of user-defined models, their simulations, and their density in unconstrained coordinates."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ddvi_fast import _checks, rng
from ddvi_fast.inference.kinds import called
from ddvi_fast.inference.missing import hidden, require_usable
from ddvi_fast.inference.support import Latents, Support
from ddvi_fast.inference.whitening import Whitening
from ddvi_fast.models import Fantasies
from ddvi_fast.networks import frozen
from ddvi_fast.rng import Draws


class HasLogJoint(Protocol):
    """Interface of a model with a density, which is enough for the posterior of one data set."""

    def log_joint(self, x: Any, z: Latents) -> Tensor:
        """Compute log p(x, z) in nats. An additive constant only changes the evidence.

        Args:
            x: For one data set, the `x` of `fit_posterior`. For a posterior that accepts any data, data [N, ...].
            z: Parameters [K, D], or named parameters [K, *shape]; for data [N, ...], with the axes [K, N].

        Returns:
            Log-densities [K], or [K, N] for data [N, ...].
        """


class HasSimulate(Protocol):
    """Interface of a model with a simulator, which is enough for a posterior that accepts any data."""

    def simulate(self, n: int) -> tuple[Latents, Tensor]:
        """Draw `n` pairs `z ~ p(z)`, `x ~ p(x | z)`.

        The function may use the global generators of torch, NumPy and Python's `random`, which are seeded for each call and restored
        afterwards. A generator of its own, such as `numpy.random.default_rng()`, is not. If the function has a second argument `draws`, it gets
        the `Draws` of the call instead.

        Args:
            n: Number of simulations (int).

        Returns:
            Parameters [n, D], or named parameters [n, *shape], and data [n, ...].
        """


@dataclass(frozen=True)
class Model:
    """Model made of functions.

    Args:
        log_joint: Function `log_joint(x, z)`, see `HasLogJoint`, or None.
        simulate: Function `simulate(n)`, see `HasSimulate`, or None.

    Example:
        >>> model = Model(log_joint=lambda x, z: -0.5 * (z**2).sum(-1) - 0.5 * ((x - z) ** 2).sum(-1))
        >>> model.log_joint(torch.ones(2), torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    log_joint: Callable[[Any, Latents], Tensor] | None = None
    simulate: Callable[[int], tuple[Latents, Tensor]] | None = None


class Simulations(NamedTuple):
    """Simulations: unconstrained parameters `u` [n, D] and data `x` [n, ...], in single or double precision as the model made them."""

    u: Tensor
    x: Tensor


class Simulator:
    """Simulations as a function of their draws: new ones at each call, or rows of a fixed number of them.

    Args:
        model: Model with `simulate`.
        support: Constraints of its parameters.
        budget: Number of simulations in all (int, at least 2), or None (default) for new ones at each call.
        seed: Seed of the fixed simulations (int, default 0).
        device: Device of the simulations (default CPU).
        sets: Whether the data are sets, whose number of observations may differ between calls (bool, default False).
        missing: Which entries of the data are missing, see `fit_posterior` (default None).

    Raises:
        InputError: If `budget` is below 2, or if simulations have the wrong shape or are not finite.
    """

    def __init__(
        self, model: Any, support: Support, budget: int | None = None, seed: int = 0, device: torch.device | str = "cpu", sets: bool = False,
        missing: str | None = None,
    ) -> None:  # fmt: skip
        self.model, self.support, self.device, self.sets, self.missing = model, support, torch.device(device), sets, missing
        self._shape: tuple[int, ...] | None = None  # of the data of one simulation
        self.budget = None if budget is None else _checks.integer(budget, "num_simulations", 2)
        self._pool = None if self.budget is None else self._new(self.budget, Draws(seed))

    def take(self, n: int, draws: Draws) -> Simulations:
        """Return `n` simulations, as the posterior is to see them."""
        made = self.complete(n, draws)
        return Simulations(made.u, hidden(made.x, draws)) if self.missing == "random" else made

    def complete(self, n: int, draws: Draws) -> Simulations:
        """Return `n` simulations of which nothing is hidden."""
        if self._pool is None:
            return self._new(n, draws)
        rows = rng.integers(draws, n, len(self._pool.u), rng.ORDER).to(self.device)
        return Simulations(self._pool.u[rows], self._pool.x[rows])

    def all(self, count: int, draws: Draws) -> Simulations:
        """Return the simulations of a fixed number of them, otherwise `count` of them, which is all that a model of stored ones has."""
        return self._new(count, draws) if self._pool is None else self._pool

    def look(self, n: int, draws: Draws) -> Simulations:
        """Return at most `n` simulations to look at: the first ones of a fixed number, otherwise those of `complete`."""
        return self.complete(n, draws) if self._pool is None else Simulations(*(part[:n] for part in self._pool))

    @torch.no_grad()
    def _new(self, n: int, draws: Draws) -> Simulations:
        z, x = simulate(self.model, n, draws, self.device)
        for name, value in z.items() if isinstance(z, Mapping) else (("", z),):
            _checks.finite(_checks.tensor(value, called("simulate, z", name)), called("simulate, z", name))
            wanted = (n, *self.support.shapes.get(name, value.shape[1:]))
            _checks.require(tuple(value.shape) == wanted, called("simulate, z", name), f"shape {list(wanted)}", value)
        u = self.support.unconstrain(z, "simulate, z").to(self.device)
        _checks.tensor(x, "simulate, x", floating=False)
        fits = x.dim() >= 2 and len(x) == n and x[0].numel() > 0
        _checks.require(fits, "simulate, x", f"{n} rows of one number or more, [{n}, ...]", x)
        shape = tuple(x.shape[1 + self.sets :])
        self._shape = shape if self._shape is None else self._shape
        _checks.require(shape == self._shape, "simulate, x", f"data of shape {list(self._shape)}, as before", x)
        x = require_usable(as_real(x, "simulate, x").to(self.device), "simulate, x", self.missing == "simulated")
        return Simulations(as_real(u, "simulate, z"), x)


def as_real(value: Tensor, argument: str) -> Tensor:
    """Return real data in single precision if they are floating-point numbers of at most that, otherwise in double."""
    _checks.require(not _checks.valued(value, argument).is_complex(), argument, "real numbers", value)
    value = _checks.out_of_inference(value.detach())
    return value.to(torch.float32 if value.dtype in (torch.float16, torch.bfloat16, torch.float32) else torch.float64)


def as_needed(x: Tensor) -> Tensor:
    """Return real data in single precision if that changes no value, otherwise as they are, in double."""
    single = x.float()
    return single if bool((single == x).all()) else x


class FlatModel:
    """Density of a model in the coordinates `y` of a posterior, `z = constrain(whitening(y))`.

    Args:
        model: Model with `log_joint`.
        support: Constraints of its parameters.
        whitening: Affine map from `y` to unconstrained parameters.
    """

    def __init__(self, model: Any, support: Support, whitening: Whitening) -> None:
        self.model, self.support, self.whitening = model, support, whitening

    def log_joint(self, x: Any, y: Tensor) -> Tensor:
        """Compute log p(x, y) in nats: log p(x, z) plus the log-determinants of the two maps.

        Args:
            x: Data, as for the model's `log_joint`.
            y: Coordinates [..., D].

        Raises:
            InputError: If the model returns another shape than [...].
        """
        return self._log_joint(x, self.whitening(y))

    def log_joint_of_rows(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute log p(x, y) [K, N] in nats at rows of data [N, ...] and coordinates [K, N, D], in the precision that `x` needs."""
        x = as_needed(x)
        return self._log_joint(x, self.whitening(y).to(x.dtype))

    def _log_joint(self, x: Any, u: Tensor) -> Tensor:
        z, log_det = self.support.constrain(u)
        with frozen(self.model) if isinstance(self.model, nn.Module) else nullcontext():
            log_joint = _checks.tensor(self.model.log_joint(x, z), "log_joint")
        precise = log_joint.dtype in (torch.float32, torch.float64)
        _checks.require(precise, "log_joint", "values in single or double precision", log_joint)
        _checks.require(log_joint.shape == u.shape[:-1], "log_joint", f"values of shape {list(u.shape[:-1])}", log_joint)
        return log_joint + log_det + self.whitening.log_det()


class RowTarget:
    """The density of a `FlatModel` at rows of data, as the model of informed steps (`posteriors.Diffusion.inform`)."""

    def __init__(self, density: FlatModel) -> None:
        self.density = density

    def log_joint(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute log p(x, y) [.., N] in nats at rows of data [N, ...] and coordinates [.., N, D]."""
        return self.density.log_joint_of_rows(x, y.reshape(-1, *y.shape[-2:])).reshape(y.shape[:-1])


def for_coordinates(density: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """Compute a density [..] at coordinates `y` [.., D], with a gradient that reaches `y` only: parameters of a user's model take none."""
    if not torch.is_grad_enabled():
        return density(y)
    leaf = y.detach().requires_grad_()
    value = density(leaf)
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach() + ((y - y.detach()) * gradient).sum(-1)


def offers(model: Any, name: str) -> bool:
    """Return whether a model has a method `name`."""
    return not inspect.isclass(model) and callable(getattr(model, name, None))


def simulate(model: Any, n: int, draws: Draws, device: torch.device | str = "cpu") -> tuple[Latents, Tensor]:
    """Call `model.simulate(n)` with `draws` if it has that argument, otherwise with the global generators seeded from `draws`."""
    if "draws" in inspect.signature(model.simulate).parameters:
        made = model.simulate(n, draws=draws)
    else:
        with seeded(draws, torch.device(device)):
            made = model.simulate(n)
    if isinstance(made, Fantasies):
        return made.z, made.x
    pair = isinstance(made, (tuple, list)) and len(made) == 2
    _checks.require(pair, "simulate", "a pair (z, x)", f"a {type(made).__name__} of {len(made)}" if isinstance(made, (tuple, list)) else made)
    return made[0], made[1]


@contextmanager
def seeded(draws: Draws, device: torch.device) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python from `draws`, and restore them at the end of the context."""
    high, low = rng.words(draws, (1, 2), rng.OBSERVATION)[0].tolist()
    seed = (high << 31) ^ low
    devices = [device] if device.type == "cuda" and torch.cuda.is_available() else []
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed & 0xFFFFFFFF)
            random.seed(seed)
            if devices:
                torch.cuda.manual_seed(seed)
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
