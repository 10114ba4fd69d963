"""Fitted posterior: samples, density bounds, importance weights, calibration, saving and loading."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, rng
from ddvi_fast._html import card
from ddvi_fast.engine import checkpoint
from ddvi_fast.inference.density import BOUNDS, log_density
from ddvi_fast.inference.diagnosis import Diagnosis, diagnose
from ddvi_fast.inference.diagnostics import Diagnostics
from ddvi_fast.inference.importance import ImportanceSample, factor_at
from ddvi_fast.inference.mode import mode
from ddvi_fast.inference.model import FlatModel, RowTarget, Simulator, offers, seeded
from ddvi_fast.inference.networks import Architecture, build
from ddvi_fast.inference.observation import Observation, column_names, observed_rows, require_embedding
from ddvi_fast.inference.sets import shown
from ddvi_fast.inference.support import Latents, Support
from ddvi_fast.inference.whitening import Whitening
from ddvi_fast.networks import evaluation
from ddvi_fast.posteriors import Posterior
from ddvi_fast.precision import without_callers_autocast
from ddvi_fast.rng import Draws
from ddvi_fast.standardization import tell

_FORMAT, _EARLIER = "ddvi_fast posterior 3", ("ddvi_fast posterior", "ddvi_fast posterior 2")
_ROWS = 1 << 14  # posterior samples (rows of data times K) at a time
_BLOCK = 1 << 12  # rows of data at a time


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
        missing: Which entries of the data may be missing, see `fit_posterior`.
        history: Mean loss over each twentieth of the training, nats.
        information: Lower limit of the nats by which own data lower the loss compared with data of other simulations, at most 1; 0 if the
            posterior is the same for all data. None for the posterior of one data set.
        notices: What the fit did about columns without spread or with heavy tails, and whether it has learned anything; also told as warnings.
    """

    def __init__(
        self, posterior: Posterior, support: Support, whitening: Whitening, architecture: Architecture, *,
        conditional: bool, model: Any = None, x: Any = None, data_shape: tuple[int | None, ...] = (), missing: str | None = None,
    ) -> None:  # fmt: skip
        # The one place in which whatever was fitted or loaded enters evaluation mode.
        self.posterior, self.support, self.whitening, self.architecture = posterior.eval(), support, whitening.eval(), architecture
        self.conditional, self.model, self.x, self.data_shape = conditional, model, x, tuple(data_shape)
        self.missing = missing
        self.history: list[float] = []
        self.information: float | None = None
        self.notices: list[str] = []

    @without_callers_autocast()
    @torch.no_grad()
    def sample(self, num_samples: int = 1000, x: Tensor | None = None, seed: int = 0) -> Latents:
        """Draw samples.

        Args:
            num_samples: Number of samples, K (int, default 1000).
            x: One data set, or rows of data [M, ...]. Default: the data of the fit. A posterior of one data set accepts no other. A warning
                names columns that lie outside of what was simulated.
            seed: Seed of the samples (int, default 0). The noise of a row depends on its place; rows do not change each other's samples.

        Returns:
            Parameters [K, D], or named parameters [K, *shape]; for rows of data with the axes [K, M].

        Raises:
            InputError: If the posterior does not accept `x`, if a value of it is infinite, or NaN where none may be missing, or if `num_samples`
                is below 1.
        """
        rows, many = self._rows(x)
        u = self._unconstrained(num_samples, rows, seed)
        z, _ = self.support.constrain(u if many else u[:, 0])
        return z

    @without_callers_autocast()
    @torch.no_grad()
    def log_prob(
        self, z: Latents, x: Tensor | None = None, *, bound: str = "iwae", num_paths: int = 64, return_error: bool = False, seed: int = 0
    ) -> Any:  # fmt: skip
        """Estimate `log q(z | x)`, the log-density of the posterior at given parameters.

        The density of a chain is an integral over its paths. Paths are drawn from the noising process `r`, and the estimate is the
        log-mean-exp of `log q(z, y | x) - log r(y | z)` over `num_paths` of them (``iwae``), or their mean (``elbo``). In expectation both are
        lower bounds on `log q(z | x)`. The first rises with the number of paths, and converges to it. Its standard error describes the
        chance of the paths and not the distance that remains, of about half the square of the standard error. P paths cost somewhat more
        than P samples. For a flow or a Gaussian the result is the density itself.

        Args:
            z: Parameters [N, D], or named parameters [N, *shape].
            x: One data set. Default: the data of the fit.
            bound: ``iwae`` (default) or ``elbo``.
            num_paths: Number of paths, P (int, default 64).
            return_error: Return the standard errors too (bool, default False). They need at least 2 paths.
            seed: Seed of the paths (int, default 0).

        Returns:
            Log-densities [N] in nats: minus infinity outside the support, NaN for parameters that are NaN. On a closed boundary, the density is
            that at a distance of single precision's rounding. With `return_error` a pair: these, and their standard errors [N] in nats, which
            are 0 where the density is known.

        Raises:
            InputError: If the arguments do not fit.

        Example:
            >>> from torch.distributions import Normal
            >>> from ddvi_fast.inference import Model, Training, fit_posterior
            >>> model = Model(log_joint=lambda x, z: Normal(1.0, 0.5).log_prob(z[..., 0]))  # the posterior is N(1, 0.5^2)
            >>> posterior = fit_posterior(model, dim=1, training=Training(steps=20, batch_size=32))
            >>> z = torch.tensor([[0.5], [1.0]])
            >>> value, error = posterior.log_prob(z, num_paths=200, return_error=True)
            >>> bool(((value - Normal(1.0, 0.5).log_prob(z[:, 0])).abs() < 0.1).all()), bool((error < 0.1).all())
            (True, True)
        """
        _checks.choice(bound, BOUNDS, "bound")
        _checks.flag(return_error, "return_error")
        num_paths = rng.samples(num_paths, "num_paths", 1 + return_error)
        u, inside = self.support.locate(z)
        _checks.require(u.dim() == 2, "z", f"parameters [N, ...], {self.support.dim} unconstrained numbers each", u)
        rows = self._row(x)
        _, log_det = self.support.constrain(u)
        y = self.whitening.inverse(u.to(self.whitening.shift.device))
        if not len(y):
            return (y.new_zeros(0), y.new_zeros(0)) if return_error else y.new_zeros(0)
        value, error = log_density(self.posterior, _repeated(self._encode(rows, seed), len(y)), y, bound, num_paths, seed)
        inside, missing = inside.to(y.device), self.support.missing(z).to(y.device)
        value = value - self.whitening.log_det() - log_det.to(y.device)
        value = torch.where(inside, value, torch.where(missing, math.nan, -math.inf))
        return (value, torch.where(inside, error, torch.where(missing, math.nan, 0.0))) if return_error else value

    @without_callers_autocast()
    @torch.no_grad()
    def importance_sample(
        self, num_samples: int = 10_000, x: Any = None, seed: int = 0, *, log_factor: Callable[[Latents], Tensor] | None = None
    ) -> ImportanceSample:  # fmt: skip
        """Draw importance samples for one data set or for each row of data, with their weights under the model.

        `log_factor` multiplies the target by `exp(log_factor(z))`, without another fit: the likelihood of further observations, the ratio of
        another prior to that of the model, or a preference. With `log_joint` the weights are those of the model times the factor. Without it the
        posterior itself is taken as exact, and the weights are the factor's. Draws lie where the posterior is: the effective sample size falls and
        Pareto k rises where the factor prefers other places.

        Args:
            num_samples: Number of samples for each, K (int, default 10,000, at least 100).
            x: One data set, or rows of data [M, ...]. Default: the data of the fit.
            seed: Seed of the samples (int, default 0).
            log_factor: Function from parameters [K, D], or named parameters [K, *shape], to logarithms of a factor [K], nats; for rows of data
                with the axes [K, M]. Minus infinity excludes parameters. Default: none, and the model needs `log_joint`.

        Returns:
            The samples with weights, effective sample size, estimate of the log-evidence and Pareto k; for rows of data one of each for every
            row. With `log_factor` the evidence is the integral of the target: of `p(x, z) exp(log_factor(z))`, or of the posterior times the
            factor.

        Raises:
            InputError: If the model has no `log_joint` and there is no `log_factor`, if the posterior does not accept `x`, or if `log_factor`
                does not return numbers below infinity of the right shape, some of them finite.

        Example:
            >>> from torch.distributions import Normal
            >>> from ddvi_fast.inference import Model, Training, fit_posterior
            >>> model = Model(log_joint=lambda x, z: Normal(0.0, 1.0).log_prob(z[..., 0]) + Normal(z[..., 0], 1.0).log_prob(x))
            >>> posterior = fit_posterior(model, torch.tensor(1.0), dim=1, training=Training(steps=20, batch_size=32))
            >>> another = posterior.importance_sample(4000, log_factor=lambda z: Normal(z[:, 0], 1.0).log_prob(torch.tensor(2.0)))
            >>> bool(abs(another.mean(another.z)[0] - (1.0 + 2.0) / 3) < 0.05), another.resample(5).shape
            (True, torch.Size([5, 1]))
        """
        if log_factor is None:
            self._needs("log_joint", "weights without log_factor")
        rows, many = self._rows(x)
        blocks = [self._weighted(block, first, num_samples, seed) for first, block in _blocks(rows)]
        u, log_weights = torch.cat([u for u, _ in blocks], 1), torch.cat([weights for _, weights in blocks], 1)
        z, _ = self.support.constrain(u if many else u[:, 0])
        log_weights = log_weights if many else log_weights[:, 0]
        if log_factor is not None:
            with seeded(Draws(seed), u.device):
                log_weights = log_weights + factor_at(log_factor, z, log_weights)
        return ImportanceSample.of(z, log_weights)

    def _weighted(self, rows: Tensor, first: int, num_samples: int, seed: int) -> tuple[Tensor, Tensor]:
        """Unconstrained samples [K, M, D] for rows [M, ...], the first of which is the row `first` of all, and their log-weights [K, M].

        The weights are equal if the model has no density.
        """
        weighs = offers(self.model, "log_joint")
        complete = not (weighs and rows.isnan().any())
        _checks.require(complete, "x", "data without missing entries, for weights of log_joint", f"{int(rows.isnan().sum())} missing")
        flat = FlatModel(self.model, self.support, self.whitening)
        kept, weights = [], []
        for y, log_ratio in self._drawn(rows, num_samples, seed, first):
            if weighs and len(rows):
                with seeded(Draws(seed), y.device):
                    joint = flat.log_joint_of_rows(rows, y) if self.conditional else flat.log_joint(self.x, y[:, 0]).unsqueeze(1)
                log_ratio = joint + log_ratio
            kept.append(self.whitening(y))
            weights.append(log_ratio if weighs else torch.zeros_like(log_ratio))
        return torch.cat(kept), torch.cat(weights)

    @without_callers_autocast()
    @torch.no_grad()
    def elbo(self, x: Any = None, num_samples: int = 100, seed: int = 0) -> Tensor:
        """Estimate the evidence lower bound of each data set, the mean log-weight of its samples.

        Args:
            x: One data set, or rows of data [M, ...]. Default: the data of the fit.
            num_samples: Number of samples for each (int, default 100).
            seed: Seed of the samples (int, default 0).

        Returns:
            Bound in nats, a scalar; for rows of data [M].

        Raises:
            InputError: If the model has no `log_joint`, or if the posterior does not accept `x`.
        """
        self._needs("log_joint", "bounds")
        rows, many = self._rows(x)
        bound = torch.cat([self._weighted(block, first, num_samples, seed)[1].double().mean(0) for first, block in _blocks(rows)])
        return bound if many else bound[0]

    @without_callers_autocast()
    @torch.no_grad()
    def map(self, x: Any = None, num_samples: int = 1000, seed: int = 0) -> Latents:
        """Search the parameters of the largest density (maximum a posteriori).

        With `log_joint` the search climbs from the best samples by L-BFGS. The density is that of the constrained parameters. Without it, the
        result is the sample of the largest `log_prob`. A warning says if the density has no maximum inside of the support.

        Args:
            x: One data set. Default: the data of the fit.
            num_samples: Samples among which the search starts (int, default 1000).
            seed: Seed of the samples (int, default 0).

        Returns:
            Parameters [D], or named parameters.

        Raises:
            InputError: If the posterior does not accept `x`.

        Example:
            >>> from ddvi_fast.inference import Model, Training, fit_posterior
            >>> from torch.distributions import Gamma, constraints
            >>> model = Model(log_joint=lambda x, z: Gamma(3.0, 2.0).log_prob(z[..., 0]))  # its mode is (3 - 1) / 2
            >>> posterior = fit_posterior(model, support=constraints.positive, dim=1, training=Training(steps=20, batch_size=32))
            >>> round(float(posterior.map()), 3)
            1.0
        """
        z, _ = self.support.constrain(mode(self, x, num_samples, seed))
        return z

    @without_callers_autocast()
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
            truth = self.support.unconstrain(reference, "reference")
            _checks.require(truth.dim() == 2 and len(truth) >= 2, "reference", "samples [M, ...], at least 2", truth)
            num_samples = rng.samples(num_samples)
            rows = self._row(None)
            draws = self._unconstrained(num_samples * len(truth), rows, seed)[:, 0].unflatten(0, (num_samples, len(truth)))
        else:
            self._needs("simulate", "calibration")
            _checks.require(self.conditional, "reference", "samples of the true posterior, for a posterior of one data set", None)
            truth, x = self._simulator().take(num_simulations, Draws(seed).lane("calibration"))
            draws = self._unconstrained(num_samples, x, seed)
        return Diagnostics.of(truth.to(draws), draws, self.support.coordinates())

    @without_callers_autocast()
    def diagnose(self, x: Tensor | None = None, *, num_samples: int = 1000, num_simulations: int = 200, seed: int = 0) -> Diagnosis:
        """Collect what there is to check about the posterior in one table.

        Args:
            x: One data set, for importance weights and the boundary of the support. Default: the data of the fit; without any, those of a
                simulation.
            num_samples: Samples of the posterior (int, default 1000, at least 100).
            num_simulations: Simulations of the calibration (int, default 200), with 99 samples each.
            seed: Seed of samples and simulations (int, default 0).

        Returns:
            Standardization, training curve, effective sample size and Pareto k if the model has `log_joint`, samples at the boundary of the
            support, and calibration if it has `simulate`. `print` shows the table.

        Example:
            >>> from ddvi_fast.inference import Model, Training, fit_posterior
            >>> def simulate(n):
            ...     mu = torch.randn(n, 1)
            ...     return mu, mu + 0.5 * torch.randn(n, 1)
            >>> posterior = fit_posterior(Model(simulate=simulate), torch.ones(1), training=Training(steps=60, batch_size=64))
            >>> found = posterior.diagnose(num_samples=200, num_simulations=50)
            >>> found.left_out, found.pareto_k, found.calibration.names
            ([], None, ['z[0]', 'joint'])
        """
        return diagnose(self, x, num_samples=num_samples, num_simulations=num_simulations, seed=seed)

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
        path = _checks.path(path)
        _checks.require(overwrite or not path.exists(), "path", "a new folder", str(path), "overwrite=True replaces a posterior")
        tensors = checkpoint.module_tensors({"posterior": self.posterior, "whitening": self.whitening})
        if self.conditional and self.x is not None:
            tensors["x"] = self.x
        observation = self.observation
        state = {
            "kind": _FORMAT,
            "support": self.support.state(),
            "architecture": dataclasses.asdict(self.architecture),
            "conditional": self.conditional,
            "data_shape": list(self.data_shape),
            "missing": self.missing,
            "embedded": observation is not None and observation.embedding is not None,
            "history": self.history,
            "information": self.information,
            "notices": self.notices,
        }
        checkpoint.save(path, tensors, state)
        return path

    @classmethod
    @torch.inference_mode(False)
    def load(
        cls, path: str | Path, model: Any = None, x: Any = None, *, embedding: nn.Module | None = None, device: torch.device | str = "cpu"
    ) -> FittedPosterior:
        """Load a posterior that `save` wrote.

        Args:
            path: The folder.
            model: Model for weights and calibration; samples do not need it, unless the chain has informed steps.
            x: Observed data. Default: those that were saved.
            embedding: Network of the same architecture as the one that was trained, whose weights are replaced.
            device: Device of the posterior (default CPU).

        Returns:
            The posterior, in evaluation mode.

        Raises:
            InputError: If the folder does not exist, is corrupt or was written by an earlier version, if `embedding` does not fit, or if the
                chain has informed steps and there is no model with `log_joint`.
        """
        tensors, state = checkpoint.load(_checks.path(path), device := _checks.device(device))
        earlier, hint = state.get("kind") in _EARLIER, "fit the model again"
        _checks.require(not earlier, "path", "a posterior written by this version", f"{path} of an earlier version", hint)
        _checks.require(state.get("kind") == _FORMAT, "path", "a posterior written by FittedPosterior.save", str(path))
        has = embedding is not None
        _checks.require(has == state["embedded"], "embedding", "the network that was trained with it" if state["embedded"] else "None", embedding)
        require_embedding(embedding)
        lazy = embedding is not None and any(map(nn.parameter.is_lazy, (*embedding.parameters(), *embedding.buffers())))
        _checks.require(not lazy, "embedding", "a network with initialized parameters", "lazy ones", "call it once with data")
        support = Support.from_state(state["support"])
        sizes = {**state["architecture"], "hidden": tuple(state["architecture"]["hidden"])}
        architecture, dim = Architecture(**sizes), support.dim
        observation = Observation.like(_of_observation(tensors), embedding) if state["conditional"] else None
        posterior = build(architecture, dim, observation, 0)
        whitening = Whitening(*(make(dim, dtype=torch.float32, device="cpu") for make in (torch.zeros, torch.eye)))
        posterior.to(device), whitening.to(device)
        checkpoint.load_modules(tensors, {"posterior": posterior, "whitening": whitening})
        kept = tensors.get("x") if x is None else x
        options = {"conditional": state["conditional"], "model": model, "x": kept, "data_shape": state["data_shape"]}
        options["missing"] = state.get("missing")
        fitted = cls(posterior, support, whitening, architecture, **options)
        if any(architecture.looks().values()):
            fitted._needs("log_joint", "steps that see its gradient")
            posterior.inform(RowTarget(FlatModel(model, support, whitening)))
        fitted.history, fitted.information, fitted.notices = state["history"], state["information"], state["notices"]
        return fitted

    @property
    def observation(self) -> Observation | None:
        """Standardization of the data; None for the posterior of one data set."""
        return getattr(getattr(self.posterior, "encoder", None), "observation", None)

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
            return torch.zeros(1, 1, dtype=torch.float32, device=device), False
        x = self.x if x is None else x
        _checks.require(x is not None, "x", f"data of shape {shown(self.data_shape)} or rows of them", None)
        rows, many = observed_rows(x, self.data_shape, self.missing is not None)
        rows = rows.to(device)
        for surprise in self.observation.surprises(rows, column_names(self.data_shape)):
            tell(surprise)
        return rows, many

    def _simulator(self) -> Simulator:
        """The simulations of the model, as the posterior is to see them."""
        return Simulator(self.model, self.support, device=self.whitening.shift.device, missing=self.missing)

    def _row(self, x: Any) -> Tensor:
        """Data of `_rows` that are one data set, [1, ...]."""
        rows, many = self._rows(x)
        _checks.require(not many, "x", "one data set", rows)
        return rows

    @torch.no_grad()
    def _encode(self, rows: Tensor, seed: int) -> Any:
        """Output of the encoders, in evaluation mode even if an embedding has left it; what it draws from global generators is seeded."""
        with evaluation(self.posterior), seeded(Draws(seed), rows.device):
            return self.posterior.encode(rows)

    def _unconstrained(self, num_samples: int, rows: Tensor, seed: int) -> Tensor:
        """Samples in unconstrained coordinates [K, M, D]."""
        return self.whitening(torch.cat([y for y, _ in self._drawn(rows, num_samples, seed)]))

    def _drawn(self, rows: Tensor, num_samples: int, seed: int, first_row: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Coordinates [K', M, D] and log-ratios [K', M] in chunks over K, equal to those of one large call; `first_row` is the place of the rows."""
        num_samples = rng.samples(num_samples)
        if not len(rows):
            empty = rows.new_zeros(num_samples, 0, self.posterior.latent_dim, dtype=torch.float32)
            yield empty, empty.sum(-1)
            return
        encoded, chunk = self._encode(rows, seed), max(1, _ROWS // len(rows))
        for first in range(0, num_samples, chunk):
            sample = self.posterior.sample_encoded(encoded, min(chunk, num_samples - first), Draws(seed, first_row).importance(first))
            yield sample.z, sample.log_ratio

    def _data(self) -> str:
        return f"any data of shape {shown(self.data_shape)}" if self.conditional else "one data set"

    def __repr__(self) -> str:
        loss = f", last loss {self.history[-1]:.3f} nats" if self.history else ""
        return f"FittedPosterior({self.architecture.family}, {self.support.dim} parameters, {self._data()}{loss})"

    def _repr_html_(self) -> str:
        loss = {"last loss": f"{self.history[-1]:.3f} nats"} if self.history else {}
        rows = {"family": self.architecture.family, "parameters": ", ".join(self.support.entries()), "data": self._data(), **loss}
        return card("FittedPosterior", rows)


def _blocks(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Blocks of rows, each with the place of its first; one for no rows."""
    for first in range(0, max(1, len(rows)), _BLOCK):
        yield first, rows[first : first + _BLOCK]


def _of_observation(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the standardization in a saved posterior, by their names in it."""
    head = "posterior.encoder.observation."
    return {name.removeprefix(head): value for name, value in tensors.items() if name.startswith(head)}


def _repeated(encoded: Any, count: int) -> Any:
    """The output of the encoders for one row of data, as for `count` rows of the same data."""
    return type(encoded)(*(None if part is None else part.expand(count, *part.shape[1:]) for part in encoded))
