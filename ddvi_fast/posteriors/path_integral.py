"""Path integral sampler posterior: a controlled Brownian motion with exact discrete-time weights (Zhang and Chen 2022)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.posteriors.base import Encoded, frozen_parameters, require_encoders, split_mean_log_var
from ddvi_fast.posteriors.chain import ChainPosterior
from ddvi_fast.precision import as_float32
from ddvi_fast.priors import Prior
from ddvi_fast.rng import Draws


class PathIntegral(ChainPosterior):
    """Path integral sampler `dz = u(z, t, x) dt + sigma(t) dW` from the origin, in Euler-Maruyama steps (Zhang and Chen 2022).

    Without the control `u` the motion ends in `N(0, V I)`. The log-ratio compares the path measures P without and Q with control:
    `log_ratio = log dP/dQ - log N(z; 0, V I)`. Both are Gaussian step by step, so the ratio is exact for any number of steps. Conditioned
    on its end, the uncontrolled path is a backward chain of Gaussians, so `ops.sample_chain` runs the sampler with the table of
    `coefficients`. The first step starts at the origin, so its control depends on `x` only; it is the output of `encoder`.

    Args:
        encoder: Network called as `encoder(x, draws)`, from x [N, ...] to [N, D]: mean of the first step. In the encoder's frame it returns
            [N, 2 D], mean and log-variance of the frame, and the first step has mean 0.
        denoiser: Control of the later steps, in units of each step's noise. It must have a context.
        context_encoder: Network called as `context_encoder(x, draws)`, from x to [N, C].
        first_scale: Standard deviation of the first step's noise (float, default 0.3). In the encoder's frame all scales are multiplied by one
            number so that the uncontrolled motion ends in N(0, I).
        last_scale: Standard deviation of the last step's noise (float, default 0.03); the steps between are geometric.
        learn_scales: Train the standard deviations (bool, default True).
        coordinates: Coordinates of the family, see `Posterior` (default ``latent``).
        prior: Prior of the latents, for the prior's coordinates.

    Raises:
        InputError: If a scale is not positive, or if the denoiser has no context.

    Example:
        >>> from ddvi_fast import denoisers, networks
        >>> control = denoisers.ResidualMLP(latent_dim=2, context_dim=3, num_steps=10)
        >>> posterior = PathIntegral(networks.MLP(5, [8], 2), control, networks.MLP(5, [8], 3))
        >>> posterior.sample(torch.zeros(6, 5), num_samples=7).log_ratio.shape
        torch.Size([7, 6])
    """

    @_checks.typed
    def __init__(
        self, encoder: nn.Module, denoiser: ResidualMLP, context_encoder: nn.Module, *,
        first_scale: float = 0.3, last_scale: float = 0.03, learn_scales: bool = True,
        coordinates: str = "latent", prior: Prior | None = None,
    ) -> None:  # fmt: skip
        super().__init__(coordinates, prior)
        _checks.require(first_scale > 0 and last_scale > 0, "first_scale, last_scale", "positive numbers", (first_scale, last_scale))
        _checks.require(denoiser.context_dim > 0, "denoiser", "one with a context", denoiser)
        require_encoders(encoder=encoder, context_encoder=context_encoder)
        self.encoder, self.context_encoder, self.denoiser, self.latent_dim = encoder, context_encoder, denoiser, denoiser.latent_dim
        scales = torch.linspace(math.log(first_scale), math.log(last_scale), denoiser.num_steps + 1, **as_float32)
        if self.whitens:
            scales = scales - 0.5 * torch.logsumexp(2 * scales, 0)
        self.log_scales = nn.Parameter(scales, requires_grad=learn_scales)

    def coefficients(self) -> Tensor:
        """Return the table of `ops.sample_chain`, float32 [T, 5], the last step first.

        A step is `y' = y + s_k (u_k + xi)`. The reverse step is that of the uncontrolled motion conditioned on its end: with `V_k` its
        variance after step `k`, `r(y_{k-1} | y_k) = N(V_{k-1} / V_k y_k, V_{k-1} s_k^2 / V_k)`.
        """
        scales = self.log_scales.double().exp()
        reached = scales.square().cumsum(0)
        shrink = reached[:-1] / reached[1:]
        later = scales[1:]
        table = torch.stack((torch.ones_like(later), later, later, shrink, shrink * later.square()), 1)
        return table.flip(0).float()

    def encode(self, x: Tensor, draws: Draws | None = None) -> Encoded:
        """Return mean and log-variance [N, D] of the state after the first step, and the context [N, C]."""
        draws = draws if self.training else None
        context = self.context_encoder(x, None if draws is None else draws.lane("context"))
        mean = self.encoder(x, draws)
        if self.whitens:
            return Encoded(*split_mean_log_var(mean), context)
        _checks.require(mean.shape[-1] == self.latent_dim, "encoder", f"an output [N, {self.latent_dim}]", mean)
        return Encoded(mean, (2 * self.log_scales[0]).to(mean).expand_as(mean), context)

    _starts_standard = False

    def start(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        mean, log_var = super().start(encoded)
        return mean, (2 * self.log_scales[0]).to(mean).expand_as(mean) if self.whitens else log_var

    def forward(self, x: Tensor, path: Tensor, draws: Draws | None = None, uncontrolled: Tensor | None = None) -> Tensor:
        """Compute the log-ratio as in `Posterior`; `uncontrolled` [T, 2] replaces the last two columns of the table."""
        table = self.coefficients()
        table = table if uncontrolled is None else torch.cat((table[:, :3], uncontrolled), 1)
        encoded = self.encode(x, draws)
        return self.log_ratio_of_unwhitened(encoded, path, partial(self._path_log_ratio, table=table))

    def frozen_log_ratio(self, x: Tensor, path: Tensor, draws: Draws | None = None) -> Tensor:
        """Compute the log-ratio as in `Posterior`; the uncontrolled motion, which belongs to the target, is not held constant."""
        frozen = torch.func.functional_call(self, frozen_parameters(self), (x, path, draws, self.coefficients()[:, 3:]))
        return self._with_noising_gradient(frozen, x, path, draws)
