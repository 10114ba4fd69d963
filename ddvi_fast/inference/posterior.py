"""Fitted posterior: samples, density bounds, importance weights, calibration, saving and loading."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, ops, rng
from ddvi_fast._html import card
from ddvi_fast.engine import checkpoint
from ddvi_fast.inference.diagnostics import Diagnostics
from ddvi_fast.inference.importance import ImportanceSample
from ddvi_fast.inference.model import FlatModel, Simulator, offers
from ddvi_fast.inference.networks import Architecture, Observation, build
from ddvi_fast.inference.support import Latents, Support
from ddvi_fast.inference.whitening import Whitening
from ddvi_fast.posteriors import Diffusion, Posterior
from ddvi_fast.rng import Draws

BOUNDS = ("iwae", "elbo")
_FORMAT, _EARLIER = "ddvi_fast posterior 2", "ddvi_fast posterior"
_ROWS = 1 << 14  # posterior samples (rows of data times K) at a time


class FittedPosterior:
    """Posterior `q(z | x)` that `fit_posterior` returns.

    All random numbers are functions of `seed`. Densities are those of the constrained parameters, in nats.

    Attributes:
        posterior: Posterior over the coordinates of `whitening`, in the encoder's frame (docs/method.md, section 7).
        support: Constraints of the parameters.
        whitening: Map from the posterior's coordinates to unconstrained parameters.
        architecture: Posterior family and sizes of the networks.
        conditional: Whether the posterior accepts data other than `x`.
        model: The model of the fit; None for a loaded posterior unless it was passed to `load`.
        x: The data of the fit.
        history: Mean loss over each twentieth of the training, nats.
    """

    def __init__(
        self, posterior: Posterior, support: Support, whitening: Whitening, architecture: Architecture, *,
        conditional: bool, model: Any = None, x: Any = None, data_shape: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        self.posterior, self.support, self.whitening, self.architecture = posterior, support, whitening, architecture
        self.conditional, self.model, self.x, self.data_shape = conditional, model, x, tuple(data_shape)
        self.history: list[float] = []

    @torch.no_grad()
    def sample(self, num_samples: int = 1000, x: Tensor | None = None, seed: int = 0) -> Latents:
        """Draw samples.

        Args:
            num_samples: Number of samples, K (int, default 1000).
            x: One data set, or rows of data [M, ...]. Default: the data of the fit. A posterior of one data set accepts no other.
            seed: Seed of the samples (int, default 0).

        Returns:
            Parameters [K, D], or named parameters [K, *shape]; for rows of data with the axes [K, M].

        Raises:
            InputError: If the posterior does not accept `x`, or if `num_samples` is below 1.
        """
        rows, many = self._rows(x)
        y = torch.cat([y for y, _ in self._drawn(rows, num_samples, seed)])
        u = self.whitening(y)
        z, _ = self.support.constrain(u if many else u[:, 0])
        return z

    @torch.no_grad()
    def log_prob(self, z: Latents, x: Tensor | None = None, *, bound: str = "iwae", num_samples: int = 64, seed: int = 0) -> Tensor:
        """Estimate a lower bound on `log q(z | x)`.

        The density of a chain is an integral over its paths. Paths are drawn from the noising process `r`, and the bound is the mean of
        `log q(z, y | x) - log r(y | z)` (``elbo``) or its log-mean-exp over `num_samples` paths (``iwae``), which converges to
        `log q(z | x)`. For a flow or a Gaussian the result is the density itself.

        Args:
            z: Parameters [N, D], or named parameters [N, *shape].
            x: One data set. Default: the data of the fit.
            bound: ``iwae`` (default) or ``elbo``.
            num_samples: Number of paths (int, default 64).
            seed: Seed of the paths (int, default 0).

        Returns:
            Log-densities [N] in nats.

        Raises:
            InputError: If the arguments do not fit.
        """
        _checks.choice(bound, BOUNDS, "bound")
        u = self.support.unconstrain(z)
        _checks.require(u.dim() == 2, "z", f"parameters [N, ...], {self.support.dim} unconstrained numbers each", u)
        rows, many = self._rows(x)
        _checks.require(not many, "x", "one data set", rows)
        _, log_det = self.support.constrain(u)
        y = self.whitening.inverse(u.to(self.whitening.shift))
        encoded = self.posterior.encode(rows.expand(len(y), *rows.shape[1:]))
        if isinstance(self.posterior, Diffusion):
            log_q = torch.stack([self._path_log_density(encoded, path) for path in self._noised(encoded, y, num_samples, seed)])
            log_q = log_q.mean(0) if bound == "elbo" else ops.log_mean_exp(log_q, 0)
        else:
            log_q = self.posterior.log_density(encoded, y)
        return log_q - self.whitening.log_det() - log_det

    @torch.no_grad()
    def importance_sample(self, num_samples: int = 10_000, x: Any = None, seed: int = 0) -> ImportanceSample:
        """Draw importance samples for one data set, with their weights under the model.

        Args:
            num_samples: Number of samples, K (int, default 10,000, at least 100).
            x: One data set. Default: the data of the fit.
            seed: Seed of the samples (int, default 0).

        Returns:
            The samples with weights, effective sample size and Pareto k.

        Raises:
            InputError: If the model has no `log_joint`, or if `x` has several rows.
        """
        self._needs("log_joint", "weights")
        rows, many = self._rows(x)
        _checks.require(not many, "x", "one data set", rows)
        flat = FlatModel(self.model, self.support, self.whitening)
        kept, weights = [], []
        for y, log_ratio in self._drawn(rows, num_samples, seed):
            joint = flat.log_joint(rows, y)[:, 0] if self.conditional else flat.log_joint(self.x, y[:, 0])
            kept.append(self.whitening(y)[:, 0])
            weights.append(joint + log_ratio[:, 0])
        z, _ = self.support.constrain(torch.cat(kept))
        return ImportanceSample.of(z, torch.cat(weights))

    @torch.no_grad()
    def diagnostics(self, num_simulations: int = 500, num_samples: int = 199, seed: int = 0, *, reference: Latents | None = None) -> Diagnostics:
        """Check the calibration of the posterior by simulation-based calibration (Talts et al. 2018) and expected coverage.

        Args:
            num_simulations: Number of simulations `z, x` of the model, M (int, default 500). Each `z` is ranked among posterior samples
                given its `x`.
            num_samples: Posterior samples per simulation, L (int, default 199).
            seed: Seed of simulations and samples (int, default 0).
            reference: Samples [M, ...] of the true posterior of the fitted data, for example from a long Markov chain. They are ranked
                instead of simulated parameters, which checks the calibration for these data. A posterior of one data set needs them.

        Returns:
            Ranks, coverage and tests of uniformity.

        Raises:
            InputError: If there is no `reference` and the model has no `simulate`, or the posterior is that of one data set.
        """
        if reference is not None:
            truth = self.support.unconstrain(reference)
            draws = self.support.unconstrain(self.sample(num_samples * len(truth), seed=seed)).unflatten(0, (num_samples, len(truth)))
        else:
            self._needs("simulate", "calibration")
            _checks.require(self.conditional, "reference", "samples of the true posterior, for a posterior of one data set", None)
            simulator = Simulator(self.model, self.support, device=self.whitening.shift.device)
            truth, x = simulator.take(num_simulations, Draws(seed).lane("calibration"))
            draws = self.support.unconstrain(self.sample(num_samples, x, seed))
        return Diagnostics.of(truth.to(draws), draws, self._coordinates())

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the posterior, without the model, to a folder of safetensors and JSON.

        Args:
            path: Folder to write.
            overwrite: Replace an existing folder (bool, default False).

        Returns:
            The path.

        Raises:
            InputError: If the folder exists and `overwrite` is False.
        """
        path = Path(path)
        _checks.require(overwrite or not path.exists(), "path", "a new folder", str(path), "overwrite=True replaces a posterior")
        tensors = checkpoint.module_tensors({"posterior": self.posterior, "whitening": self.whitening})
        if self.conditional and self.x is not None:
            tensors["x"] = self.x
        observation = getattr(getattr(self.posterior, "encoder", None), "observation", None)
        state = {
            "kind": _FORMAT,
            "support": self.support.state(),
            "architecture": dataclasses.asdict(self.architecture),
            "conditional": self.conditional,
            "data_shape": list(self.data_shape),
            "features": 0 if observation is None else len(observation.shift),
            "embedded": observation is not None and observation.embedding is not None,
            "history": self.history,
        }
        checkpoint.save(path, tensors, state)
        return path

    @classmethod
    def load(
        cls, path: str | Path, model: Any = None, x: Any = None, *, embedding: nn.Module | None = None, device: torch.device | str = "cpu"
    ) -> FittedPosterior:
        """Load a posterior that `save` wrote.

        Args:
            path: The folder.
            model: Model for weights and calibration; samples do not need it.
            x: Observed data. Default: those that were saved.
            embedding: Network of the same architecture as the one that was trained, whose weights are replaced.
            device: Device of the posterior (default CPU).

        Returns:
            The posterior, in evaluation mode.

        Raises:
            InputError: If the folder does not exist, is corrupt or was written by an earlier version, or if `embedding` does not fit.
        """
        tensors, state = checkpoint.load(path, device)
        earlier, hint = state.get("kind") == _EARLIER, "fit the model again"
        _checks.require(not earlier, "path", "a posterior written by this version", f"{path} of an earlier version", hint)
        _checks.require(state.get("kind") == _FORMAT, "path", "a posterior written by FittedPosterior.save", str(path))
        has = embedding is not None
        _checks.require(has == state["embedded"], "embedding", "the network that was trained with it" if state["embedded"] else "None", embedding)
        support = Support.from_state(state["support"])
        sizes = {**state["architecture"], "hidden": tuple(state["architecture"]["hidden"])}
        architecture, features, dim = Architecture(**sizes), state["features"], support.dim
        observation = Observation(torch.zeros(features), torch.ones(features), embedding) if state["conditional"] else None
        posterior, whitening = build(architecture, dim, observation, 0), Whitening(torch.zeros(dim), torch.eye(dim))
        posterior.to(device), whitening.to(device)
        checkpoint.load_modules(tensors, {"posterior": posterior, "whitening": whitening})
        posterior.eval()
        kept = tensors.get("x") if x is None else x
        options = {"conditional": state["conditional"], "model": model, "x": kept, "data_shape": state["data_shape"]}
        fitted = cls(posterior, support, whitening, architecture, **options)
        fitted.history = state["history"]
        return fitted

    def _needs(self, name: str, purpose: str) -> None:
        _checks.require(
            offers(self.model, name), "model", f"one with {name}, for {purpose}", "None" if self.model is None else type(self.model).__name__
        )

    def _rows(self, x: Any) -> tuple[Tensor, bool]:
        """Rows of data [M, ...] on the device, and whether `x` had rows; a dummy row for a posterior of one data set."""
        device = self.whitening.shift.device
        if not self.conditional:
            hint = "a model with simulate gives a posterior that accepts any data"
            _checks.require(x is None, "x", "None, for a posterior of one data set", x, hint)
            return torch.zeros(1, 1, device=device), False
        x = self.x if x is None else x
        _checks.require(x is not None, "x", f"data of shape {list(self.data_shape)} or rows of them", None)
        rows, many = observed_rows(x, self.data_shape)
        return rows.to(device), many

    def _drawn(self, rows: Tensor, num_samples: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Coordinates [K', M, D] and log-ratios [K', M] in chunks over K, equal to those of one large call."""
        _checks.require(num_samples >= 1, "num_samples", "at least 1", num_samples)
        encoded, chunk = self.posterior.encode(rows), max(1, _ROWS // len(rows))
        for first in range(0, num_samples, chunk):
            sample = self.posterior.sample_encoded(encoded, min(chunk, num_samples - first), Draws(seed).importance(first))
            yield sample.z, sample.log_ratio

    def _noised(self, encoded: Any, y: Tensor, num_samples: int, seed: int) -> Iterator[Tensor]:
        """Draw paths [T + 1, 1, N, D] of the noising process in the encoder's frame from `y` [N, D], the noisiest state first."""
        schedule, first = self.posterior.schedule, self.posterior.whitened(encoded, y)
        for sample in range(num_samples):
            draws, states = Draws(seed).importance(sample), [first]
            for step, (alpha, beta) in enumerate(zip(schedule.alphas.tolist(), schedule.betas.tolist(), strict=True)):
                noise = rng.normal(draws, tuple(y.shape), rng.NOISE + step, device=y.device)
                states.append(math.sqrt(alpha) * states[-1] + math.sqrt(beta) * noise)
            yield torch.stack(states[::-1]).unsqueeze(1)

    def _path_log_density(self, encoded: Any, path: Tensor) -> Tensor:
        """Log-density [N] of paths of `_noised`, minus that of their noising."""
        return -self.posterior.log_ratio(encoded, path)[0] - self.posterior.log_scale(encoded)

    def _coordinates(self) -> list[str]:
        """Names of the unconstrained coordinates: those of the parameters if there are equally many."""
        names = self.support.entries()
        return names if len(names) == self.support.dim else [f"u[{place}]" for place in range(self.support.dim)]

    def _data(self) -> str:
        return f"any data of shape {list(self.data_shape)}" if self.conditional else "one data set"

    def __repr__(self) -> str:
        loss = f", last loss {self.history[-1]:.3f} nats" if self.history else ""
        return f"FittedPosterior({self.architecture.family}, {self.support.dim} parameters, {self._data()}{loss})"

    def _repr_html_(self) -> str:
        loss = {"last loss": f"{self.history[-1]:.3f} nats"} if self.history else {}
        rows = {"family": self.architecture.family, "parameters": ", ".join(self.support.entries()), "data": self._data(), **loss}
        return card("FittedPosterior", rows)


def observed_rows(x: Any, shape: tuple[int, ...]) -> tuple[Tensor, bool]:
    """Return data of `shape`, or rows of them, as float rows [M, ...], and whether `x` had rows."""
    _checks.tensor(x, "x", floating=False)
    many = x.dim() == len(shape) + 1
    _checks.require(tuple(x.shape[int(many) :]) == tuple(shape), "x", f"data of shape {list(shape)} or rows of them", x)
    return (x if many else x.unsqueeze(0)).float(), many
