"""Objectives of `fit_posterior`: the evidence bound of observed data, and the fit to simulations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ddvi_fast import ops, rng
from ddvi_fast.inference.model import FlatModel, Simulations, Simulator, for_coordinates
from ddvi_fast.inference.whitening import Whitening
from ddvi_fast.networks import evaluation
from ddvi_fast.objectives import Objective, Progress, Terms
from ddvi_fast.posteriors import Diffusion, Posterior
from ddvi_fast.posteriors.base import draw_start
from ddvi_fast.rng import Draws

COVERING = "covering"
_POINTS = 16384  # points of frame updates with whose simulations the information is estimated
_COVERS_FROM = 0.5  # fraction of the steps after which the covering term is used


class EvidenceBound(Objective):
    """Minus the evidence bound `E_q[log p(x, z) + log_ratio]` of one data set, for a posterior without data as input.

    The ELBO (reverse KL) is mode-seeking and can miss modes. From half of the steps on a mass-covering forward-KL term on the posterior's own
    importance-weighted samples is added, as in the wake phase of reweighted wake-sleep (Bornschein and Bengio 2015). Its weight is the
    relative effective sample size.

    Terms, nats: `bound`, and `covering`, the weighted mean of minus `log q` along the samples' paths, up to a constant.

    Args:
        posterior: Posterior over the coordinates of the model's whitening.
        model: Density of the model.
        data: Data that the model's density gets.
        num_samples: Posterior samples per step (int).
    """

    def __init__(self, posterior: Posterior, model: FlatModel, data: Any, num_samples: int) -> None:
        super().__init__()
        self.posterior, self.model, self.data, self.num_samples = posterior, model, data, num_samples

    def terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        sample = self.posterior.sample(x, self.num_samples, draws)
        log_weights = for_coordinates(lambda y: self.model.log_joint(self.data, y), sample.z[:, 0]) + sample.log_ratio[:, 0]
        if not progress.fixed(_covers):
            return Terms({"bound": -log_weights}, {"bound": 1.0})
        shares = torch.softmax(log_weights.detach(), 0)
        effective = 1 / (self.num_samples * shares.square().sum())
        # Equal weights carry nothing: E_q[grad log q] = 0, and less 1 the noise of its estimate vanishes with their differences.
        covering = (self.num_samples * shares - 1) * self._log_ratio_of_samples(x, draws)
        return Terms({"bound": -log_weights, COVERING: covering}, {"bound": 1.0, COVERING: effective})

    def _log_ratio_of_samples(self, x: Tensor, draws: Draws) -> Tensor:
        """Log-ratios [K] of the samples of `draws`, with the samples as constants."""
        with torch.no_grad():
            path = self.posterior.unwhitened_path(self.posterior.encode(x, draws), self.num_samples, draws)
        return self.posterior(x, path, draws)[:, 0]


def _covers(progress: Progress) -> bool:
    return progress.fraction >= _COVERS_FROM


class Rows:
    """Rows of data for the evidence bound: all of them, or a random part of them, with equally many samples each.

    Args:
        x: Data [M, ...].
        count: Number of samples per step, over all rows (int).
        each: Least number of samples for each row (int, default 1).
    """

    def __init__(self, x: Tensor, count: int, each: int = 1) -> None:
        self.x, self.count, self.num_samples = x, min(max(1, count // each), len(x)), max(each, count // len(x))

    def take(self, draws: Draws) -> Tensor:
        """Return the rows of one step."""
        if self.count == len(self.x):
            return self.x
        return self.x[rng.integers(draws, self.count, len(self.x), rng.ORDER).to(self.x.device)]


class FrameFit(Objective):
    """Minus `log N(u; mean(x), scale(x))` over simulations, which fits the encoder's frame of a posterior (docs/method.md, section 7).

    Terms, nats: `frame`, and `bound`, minus the evidence bound of the frame's Gaussian, if rows of data train it too.

    Args:
        posterior: Posterior whose encoder is trained.
        whitening: Map from the posterior's coordinates to unconstrained parameters.
        simulator: Source of the simulations.
        num_rows: Simulations per step (int).
        model: Density of the model for the bound, or None (default) for no bound.
        rows: Rows of data of the bound.
    """

    def __init__(
        self, posterior: Posterior, whitening: Whitening, simulator: Simulator, num_rows: int, model: FlatModel | None = None,
        rows: Rows | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.posterior, self.whitening, self.simulator, self.num_rows = posterior, whitening, simulator, num_rows
        self.model, self.rows = model, rows

    def terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        u, x = self.simulator.take(self.num_rows, draws)
        values = {"frame": -ops.gaussian_log_prob(self.whitening.inverse(u), *_gaussian(self.posterior, x, draws))}
        if self.rows is not None:
            values["bound"] = frame_bound(self.posterior, self.model, self.rows, draws.lane("bound"))
        return Terms(values, dict.fromkeys(values, 1.0))


class Simulated(Objective):
    """Minus a bound on `log q(z | x)` over simulations, plus minus the evidence bound of observed data if the model has a density.

    For a diffusion posterior the two are the sleep term with exact weights and the wake term of docs/method.md, section 3, in the encoder's
    frame (section 7), which the first does not train. Terms, nats: `chain` (the steps of the chain) and `start` (`y_T`, and the scale of the
    frame), up to the entropy of the noising process, or `density` for a family with a tractable density; `bound`; `frame`, that of `FrameFit`, if
    the frame is trained too; and `frame_bound`, the bound of `FrameFit`, which trains the encoder of a frame that is updated.

    Args:
        posterior: Posterior with data as input, in the encoder's frame.
        whitening: Map from the posterior's coordinates to unconstrained parameters.
        simulator: Source of the simulations.
        num_rows: Simulations per step (int).
        model: Density of the model for the bound, or None (default) for no bound.
        rows: Rows of data of the bound. Default: the simulated data.
        frame_rows: Rows of data of the bound of an updated frame's encoder. Default: no such bound.
    """

    def __init__(
        self, posterior: Posterior, whitening: Whitening, simulator: Simulator, num_rows: int, model: FlatModel | None = None,
        rows: Rows | None = None, frame_rows: Rows | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.posterior, self.whitening, self.simulator, self.num_rows = posterior, whitening, simulator, num_rows
        self.model, self.rows, self.frame_rows = model, rows, frame_rows

    def terms(self, x: Tensor, progress: Progress, draws: Draws) -> Terms:
        u, x = self.simulator.take(self.num_rows, draws)
        values = self._fit(self.whitening.inverse(u), x, draws)
        if self.model is not None:
            x = x if self.rows is None else self.rows.take(draws.lane("bound"))
            values["bound"] = self._bound(x, 1 if self.rows is None else self.rows.num_samples, draws.lane("bound"))
        if self.frame_rows is not None:
            values["frame_bound"] = frame_bound(self.posterior, self.model, self.frame_rows, draws.lane("levels"))
        return Terms(values, dict.fromkeys(values, 1.0))

    def _fit(self, u: Tensor, x: Tensor, draws: Draws) -> dict[str, Tensor]:
        encoded = self.posterior.encode(x, draws)
        if not isinstance(self.posterior, Diffusion):
            return {"density": -self.posterior.log_density(encoded, u)}
        t = even_timesteps(draws, len(u), self.posterior.schedule.num_steps, u.device)
        v = self.posterior.whitened(encoded, u).detach()
        start = self.posterior.log_scale(encoded).detach() - self.posterior.top_log_prob(*self.posterior.start(encoded), v, draws)
        trained = self.posterior.sees_model and encoded.mean.requires_grad
        frame = {"frame": -ops.gaussian_log_prob(u, encoded.mean, encoded.log_var)} if trained else {}
        return {"chain": self.posterior.step_divergence(encoded.context, v, t, draws, encoded), "start": start, **frame}

    def _bound(self, x: Tensor, num_samples: int, draws: Draws) -> Tensor:
        with evaluation(self.posterior):  # observed data are few, so that statistics of their batch would be wrong
            sample = self.posterior.sample_encoded(self.posterior.encode(x, draws), num_samples, draws)
        return -_log_weights(self.model, x, sample.z, sample.log_ratio)

    @torch.no_grad()
    def information(self, simulations: Simulations, draws: Draws) -> float:
        """Estimate by how many nats the loss of simulations is lower than with data of other simulations, up to the fourth standard error.

        Differences count as at most 1 nat each. The estimate is 0 if the posterior is the same for all data, as wide as the prior.
        """
        if isinstance(self.posterior, Diffusion) and self.posterior.frame_updates:
            simulations = Simulations(*(part[: _POINTS // (2 * self.posterior.latent_dim)] for part in simulations))
        with evaluation(self.posterior):
            y = self.whitening.inverse(simulations.u)
            with_own, with_other = (sum(self._fit(y, x, draws).values()) for x in (simulations.x, simulations.x.roll(1, 0)))
        gain = (with_other - with_own).double().clamp(-1, 1)
        return max(0.0, float(gain.mean() - 4 * gain.std() / math.sqrt(len(gain))))


def _log_weights(model: FlatModel, x: Tensor, y: Tensor, log_ratio: Tensor) -> Tensor:
    """Mean log-weights [N] over samples `y` [K, N, D] with their log-ratios [K, N], for data `x` [N, ...]."""
    return (for_coordinates(lambda y: model.log_joint_of_rows(x, y), y) + log_ratio).mean(0).to(y.dtype)


def frame_bound(posterior: Posterior, model: FlatModel, rows: Rows, draws: Draws) -> Tensor:
    """Compute minus the evidence bound [N] in nats of the Gaussian of the encoder at rows of data."""
    x = rows.take(draws)
    with evaluation(posterior):
        mean, log_var = _gaussian(posterior, x, draws)
    y = draw_start(mean, log_var, rows.num_samples, draws)
    return -_log_weights(model, x, y, -ops.gaussian_log_prob(y, mean, log_var))


def _gaussian(posterior: Posterior, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [N, D] of the encoder's Gaussian, without updates of the frame."""
    return posterior.encode_top(x, draws) if isinstance(posterior, Diffusion) else posterior.encode(x, draws)[:2]


def even_timesteps(draws: Draws, rows: int, num_steps: int, device: torch.device) -> Tensor:
    """Return 0-based timesteps, int64 [rows], that are uniform and spread evenly over the chain.

    Their sum has a lower variance than that of independent timesteps (as in Kingma et al. 2021, "Variational diffusion models"). Rows must be
    exchangeable, since a row's timestep depends on its position in the batch.
    """
    places = torch.arange(rows, device=device) + rng.uniform(draws, (rows, 1), rng.TIME, device=device).squeeze(1)
    return (places / rows * num_steps).long().clamp(max=num_steps - 1)
