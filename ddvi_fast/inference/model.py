"""What a model must offer, and how it is seen from the coordinates in which posteriors are trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ddvi_fast import _checks, rng
from ddvi_fast.inference.support import Latents, Support
from ddvi_fast.inference.whitening import Whitening
from ddvi_fast.rng import Draws


class HasLogJoint(Protocol):
    """A model with a density: enough to fit the posterior of one data set."""

    def log_joint(self, x: Any, z: Latents) -> Tensor:
        """log p(x, z) in nats, up to a constant if the evidence is of no interest.

        For one data set `z` is [K, D] (of named parameters, [K, *shape] each), `x` whatever was handed to `fit_posterior`, and the result
        [K]. For a posterior that takes any data, `x` is [N, ...], `z` [K, N, D] and the result [K, N].
        """


class HasSimulate(Protocol):
    """A model that can be simulated: enough to fit a posterior that takes any data."""

    def simulate(self, n: int) -> tuple[Latents, Tensor]:
        """`n` pairs `z ~ p(z)`, `x ~ p(x | z)`: parameters [n, D] (or named) and data [n, ...].

        It may draw from torch's global generator: it is seeded for each call, and restored after it. A second argument called `draws`
        gets the `Draws` of the call instead.
        """


@dataclass(frozen=True)
class Model:
    """A model made of plain functions.

    Example:
        >>> model = Model(log_joint=lambda x, z: -0.5 * (z**2).sum(-1) - 0.5 * ((x - z) ** 2).sum(-1))
        >>> model.log_joint(torch.ones(2), torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    log_joint: Callable[[Any, Latents], Tensor] | None = None
    simulate: Callable[[int], tuple[Latents, Tensor]] | None = None


class Simulations(NamedTuple):
    """Pairs of unconstrained parameters [n, D] and data [n, ...]."""

    u: Tensor
    x: Tensor


class Simulator:
    """Simulations that are a function of their draws: new ones each time, or rows of a fixed number of them.

    Args:
        model: with `simulate`.
        support: of its parameters.
        budget: how many simulations there may be in all; None for new ones each time.
        seed: of the fixed ones.
        device: where they are needed.
    """

    def __init__(self, model: Any, support: Support, budget: int | None = None, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.model, self.support, self.device = model, support, torch.device(device)
        _checks.require(budget is None or budget >= 2, "num_simulations", "None or at least 2", budget)
        self._pool = None if budget is None else self._new(budget, Draws(seed))

    def take(self, n: int, draws: Draws) -> Simulations:
        """`n` pairs."""
        if self._pool is None:
            return self._new(n, draws)
        size = len(self._pool.u)
        rows = (rng.uniform(draws, (n, 1), rng.ORDER).squeeze(1) * size).long().clamp(max=size - 1).to(self.device)
        return Simulations(self._pool.u[rows], self._pool.x[rows])

    @torch.no_grad()
    def _new(self, n: int, draws: Draws) -> Simulations:
        z, x = simulate(self.model, n, draws, self.device)
        u = self.support.unconstrain(z).to(self.device, torch.float32)
        _checks.tensor(x, "simulate, x", floating=False)
        for name, value in (("z", u), ("x", x)):
            _checks.require(value.dim() >= 2 and len(value) == n, f"simulate, {name}", f"{n} rows", value)
        return Simulations(_checks.finite(u, "simulate, z"), _checks.finite(x.to(self.device, torch.float32), "simulate, x"))


class FlatModel:
    """A model's density over the coordinates `y` of a chain: `z = constrain(whitening(y))`.

    Args:
        model: with `log_joint`.
        support: of its parameters.
        whitening: the affine map.
    """

    def __init__(self, model: Any, support: Support, whitening: Whitening) -> None:
        self.model, self.support, self.whitening = model, support, whitening

    def log_joint(self, x: Any, y: Tensor) -> Tensor:
        """log p(x, y) in nats: log p(x, z) and the volume of the two maps."""
        z, log_det = self.support.constrain(self.whitening(y, x))
        log_joint = self.model.log_joint(x, z)
        _checks.require(log_joint.shape == y.shape[:-1], "log_joint", f"values of shape {list(y.shape[:-1])}", log_joint)
        return log_joint + log_det + self.whitening.log_det(x)


def offers(model: Any, name: str) -> bool:
    """Whether a model has one of the two callables."""
    return callable(getattr(model, name, None))


def simulate(model: Any, n: int, draws: Draws, device: torch.device | str = "cpu") -> tuple[Latents, Tensor]:
    """What `model.simulate(n)` gives, a function of `draws`: they are handed on, or torch's global generators are seeded by them."""
    if "draws" in inspect.signature(model.simulate).parameters:
        made = model.simulate(n, draws=draws)
    else:
        with seeded(draws, torch.device(device)):
            made = model.simulate(n)
    _checks.require(isinstance(made, tuple) and len(made) == 2, "simulate", "a pair (z, x)", type(made).__name__)
    return made


@contextmanager
def seeded(draws: Draws, device: torch.device) -> Iterator[None]:
    """Torch's global generators start from `draws` inside, and are as before after."""
    high, low = rng.words(draws, (1, 2), rng.OBSERVATION)[0].tolist()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed((high << 31) ^ low)
        if devices:
            torch.cuda.manual_seed((high << 31) ^ low)
        yield
