"""Base class of posteriors that sample by a denoising chain from a Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from ddvi_fast import ops, rng
from ddvi_fast.denoisers import ResidualMLP, StepView
from ddvi_fast.posteriors.base import Encoded, Posterior, draw_start
from ddvi_fast.posteriors.placing import less_standard_log_prob
from ddvi_fast.reference.chain import step_log_ratio
from ddvi_fast.rng import Draws


class ChainPosterior(Posterior):
    """Base class of posteriors that draw a Gaussian start, then run `ops.sample_chain`.

    A family implements `encode`, which returns an `Encoded` of the start, and `coefficients`, and has an attribute `denoiser`.
    """

    denoiser: ResidualMLP

    def coefficients(self) -> Tensor:
        """Return the table of `ops.sample_chain`, float32 [T, 5]."""
        raise NotImplementedError

    def active_denoiser(self) -> ResidualMLP | StepView:
        """Return the network of the chain."""
        return self.denoiser

    def draw(self, encoded: Encoded, num_samples: int, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """Draw samples as in `Posterior`; the chain accumulates the log-ratio of the path."""
        start = self._drawn_start(encoded, num_samples, draws)
        chain = self.run(encoded, start, draws=draws)
        return chain.z, self._with_start(chain.path, start, encoded)

    def latent_path(self, encoded: Encoded, num_samples: int, draws: Draws) -> Tensor:
        """Draw the trajectory [T + 1, K, N, D], the start first."""
        start = self._drawn_start(encoded, num_samples, draws)
        return self.run(encoded, start, draws=draws, return_trajectory=True).trajectory

    @property
    def _starts_standard(self) -> bool:
        """Whether the start is drawn from N(0, I)."""
        return self.whitens

    def _drawn_start(self, encoded: Encoded, num_samples: int, draws: Draws) -> Tensor:
        """Starts [K, N, D] of the chain."""
        if not self._starts_standard:
            return draw_start(*self.start(encoded), num_samples, draws)
        like = encoded.mean
        return rng.normal(draws, (num_samples, *like.shape), rng.START, device=like.device, dtype=like.dtype)

    def log_ratio(self, encoded: Encoded, path: Tensor) -> Tensor:
        self.require_density()
        return self._path_log_ratio(encoded, path, self.coefficients())

    def frozen_log_ratio(self, x: Tensor, path: Tensor, draws: Draws | None = None) -> Tensor:
        """Compute the log-ratio as in `Posterior`; the noising from the encoder's frame, which belongs to the target, is not held constant."""
        return self._with_noising_gradient(super().frozen_log_ratio(x, path, draws), x, path, draws)

    def _with_noising_gradient(self, log_ratio: Tensor, x: Tensor, path: Tensor, draws: Draws | None) -> Tensor:
        """Add to a frozen log-ratio [K, N] the encoder's gradient of log r(v_1 | v_0): the last variable of `path` has its `v_0` in the frame."""
        if not self.whitens:
            return log_ratio
        v = self.whitened(self.encode(x, draws), path[-1].detach())
        scale, variance = self.coefficients()[0, 3:].detach().to(v)
        noising = -0.5 * (path[-2].detach() - scale * v).square().sum(-1) / variance
        return log_ratio + noising - noising.detach()

    def _path_log_ratio(self, encoded: Encoded, path: Tensor, table: Tensor) -> Tensor:
        """The log-ratio [K, N] of trajectories [T + 1, K, N, D] under a table of coefficients [T, 5]."""
        along = ops.trajectory_log_ratio(path, encoded.context, self.active_denoiser(), table)
        return along - ops.gaussian_log_prob(path[0], *self.start(encoded))

    def run(
        self, encoded: Encoded, start: Tensor, *, draws: Draws | None = None, noise: Tensor | None = None, return_trajectory: bool = False
    ) -> ops.ChainSample:
        """Run the chain from given starts.

        Args:
            encoded: Output of `encode`.
            start: Starts [K, N, D] in the chain's coordinates.
            draws: Position of the first row in the random stream; a chain without a density ignores it.
            noise: Standard normals [T, K, N, D] in place of `draws`.
            return_trajectory: Return all states too (bool, default False).
        """
        options = {"draws": draws if self.has_density else None, "noise": noise, "return_trajectory": return_trajectory}
        return ops.sample_chain(start, encoded.context, self.active_denoiser(), self.coefficients(), **options)

    def step_mean(self, encoded: Encoded, v: Tensor, step: int, table: Tensor) -> Tensor:
        """Compute the mean [.., N, D] of the 0-based active step `step` at states `v` [.., N, D], given the table of the chain [T, 5]."""
        output = self.active_denoiser()(v, encoded.context, torch.full(v.shape[:-1], step, device=v.device))
        return table[step, 0] * v + table[step, 1] * output

    def step_log_ratio(self, encoded: Encoded, v: Tensor, following: Tensor, step: int, table: Tensor) -> Tensor:
        """Compute `log r(y_t | y_{t-1}) - log q(y_{t-1} | y_t, x)` [.., N] in nats of one step (docs/method.md, section 2).

        Args:
            encoded: Output of `encode`.
            v: States before the step [.., N, D].
            following: States after it.
            step: 0-based number of the step among the active ones.
            table: Table of the chain [T, 5].
        """
        table = table.to(v)
        deviation, scale, beta = table[step, 2:].unbind()
        noise = (following - self.step_mean(encoded, v, step, table)) / deviation
        return step_log_ratio(v, following, noise, deviation, scale, beta)

    def _with_start(self, path: Tensor | None, start: Tensor, encoded: Encoded) -> Tensor | None:
        """The log-ratio of the chain, `path`, plus that of the start."""
        if path is None:
            return None
        return less_standard_log_prob(path, start) if self._starts_standard else path - ops.gaussian_log_prob(start, *self.start(encoded))
