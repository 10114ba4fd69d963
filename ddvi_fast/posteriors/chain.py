"""Base class of posteriors that sample by a denoising chain from a Gaussian."""

from __future__ import annotations

from torch import Tensor

from ddvi_fast import ops
from ddvi_fast.denoisers import ResidualMLP, StepView
from ddvi_fast.posteriors.base import Encoded, Posterior, draw_start
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
        start = draw_start(*self.start(encoded), num_samples, draws)
        chain = self._run(encoded, start, draws, return_trajectory=False)
        return chain.z, self._with_start(chain.path, start, encoded)

    def latent_path(self, encoded: Encoded, num_samples: int, draws: Draws) -> Tensor:
        """Draw the trajectory [T + 1, K, N, D], the start first."""
        start = draw_start(*self.start(encoded), num_samples, draws)
        return self._run(encoded, start, draws, return_trajectory=True).trajectory

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

    def _run(self, encoded: Encoded, start: Tensor, draws: Draws, return_trajectory: bool) -> ops.ChainSample:
        options = {"draws": draws if self.has_density else None, "return_trajectory": return_trajectory}
        return ops.sample_chain(start, encoded.context, self.active_denoiser(), self.coefficients(), **options)

    def _with_start(self, path: Tensor | None, start: Tensor, encoded: Encoded) -> Tensor | None:
        """The log-ratio of the chain, `path`, plus that of the start."""
        return None if path is None else path - ops.gaussian_log_prob(start, *self.start(encoded))
