"""Base class of posterior families, and helpers for Gaussian encoders."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, rng
from ddvi_fast._html import card
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.rng import Draws


class PosteriorSample(NamedTuple):
    """Samples of a posterior.

    Attributes:
        z: Samples [K, N, D].
        log_ratio: Logarithm [K, N] in nats of the factor of `p(x, z)` in the importance weight (docs/method.md, section 2); `-log q(z | x)`
            for a family with a tractable density. None if the family has no density.
    """

    z: Tensor
    log_ratio: Tensor | None


class Encoded(NamedTuple):
    """Output of the encoders.

    Attributes:
        mean: Mean of the first Gaussian [N, D].
        log_var: Its log-variance [N, D].
        context: Context vector of the data [N, C], or None.
    """

    mean: Tensor
    log_var: Tensor
    context: Tensor | None


class Posterior(nn.Module):
    """Base class of variational posteriors `q(z | x)`.

    A family implements `encode`, `latent_path` and `log_ratio`. The importance weight of a sample is `log w = log p(x, z) + log_ratio`
    (docs/method.md, section 2).

    Attributes:
        latent_dim: Number of latent dimensions, D.
        recordable: Whether a training step can be recorded as a CUDA graph, that is, needs no value from the device on the host.
        why_no_density: Reason for a missing density, for error messages.
    """

    latent_dim: int
    recordable = True
    why_no_density = "its samples have no log_ratio"

    def sample(self, x: Tensor, num_samples: int = 1, draws: Draws | None = None) -> PosteriorSample:
        """Draw samples for each row of data.

        Args:
            x: Data [N, ...].
            num_samples: Samples per row, K (int, default 1).
            draws: Position of the first row in the random stream. Default: `Draws(0)`. A row has the same samples in any batch.

        Returns:
            Samples `z` [K, N, D] and their `log_ratio` [K, N] in nats, or None for a family without a density.

        Raises:
            InputError: If `x` is not a floating-point tensor [N, ...], or if `num_samples` is below 1.
        """
        draws = check_sample_arguments(x, num_samples, draws)
        return self.sample_encoded(self.encode(x, draws), num_samples, draws)

    def sample_encoded(self, encoded: Any, num_samples: int, draws: Draws) -> PosteriorSample:
        """Draw samples as `sample` does, given the output of `encode`."""
        path = self.latent_path(encoded, num_samples, draws)
        return PosteriorSample(path[-1], self.log_ratio(encoded, path) if self.has_density else None)

    @property
    def has_density(self) -> bool:
        """Whether samples have a log-ratio, so that bounds can be computed."""
        return True

    def encode(self, x: Tensor, draws: Draws | None = None) -> Any:
        """Compute everything that depends on data `x` [N, ...] only; `draws` are used for dropout in training mode."""
        raise NotImplementedError

    def latent_path(self, encoded: Any, num_samples: int, draws: Draws) -> Tensor:
        """Draw all latent variables of each sample.

        Args:
            encoded: Output of `encode`.
            num_samples: Samples per row, K (int).
            draws: Position of the first row in the random stream.

        Returns:
            Latent paths [S, K, N, D], `z` last; S is 1 for a family that draws only `z`.
        """
        raise NotImplementedError

    def log_ratio(self, encoded: Any, path: Tensor) -> Tensor:
        """Compute the log-ratio [K, N] in nats of latent paths [S, K, N, D], with the paths as constants."""
        raise NotImplementedError

    def forward(self, x: Tensor, path: Tensor, draws: Draws | None = None) -> Tensor:
        """Compute the log-ratio [K, N] in nats of latent paths [S, K, N, D] for data `x` [N, ...]."""
        return self.log_ratio(self.encode(x, draws), path)

    def frozen_log_ratio(self, x: Tensor, path: Tensor, draws: Draws | None = None) -> Tensor:
        """Compute `forward` with constant parameters, so that gradients reach only the path (Roeder et al. 2017)."""
        return torch.func.functional_call(self, frozen_parameters(self), (x, path, draws))

    def log_weights(self, model: LatentVariableModel, x: Tensor, num_samples: int = 1, draws: Draws | None = None) -> Tensor:
        """Compute log importance weights. Their mean over samples estimates the ELBO, their log-mean-exp the IWAE bound.

        Args:
            model: The latent-variable model.
            x: Data [N, ...].
            num_samples: Samples per row, K (int, default 1).
            draws: Position of the first row in the random stream. Default: `Draws(0)`.

        Returns:
            Log-weights [K, N] in nats.

        Raises:
            InputError: If the posterior or the prior has no density.
        """
        self.require_density()
        z, log_ratio = self.sample(x, num_samples, draws)
        return model.log_joint(x, z) + log_ratio

    def require_density(self) -> None:
        """Raise `InputError` if the posterior has no density."""
        _checks.require(self.has_density, "posterior", "one with a density, for a bound", f"{type(self).__name__}: {self.why_no_density}")

    def facts(self) -> dict[str, object]:
        """Return the properties that a notebook shows, by name."""
        counts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in self.named_children()}
        return {
            "latent dimensions": self.latent_dim,
            "density": "yes" if self.has_density else f"no: {self.why_no_density}",
            "parameters": f"{sum(parameter.numel() for parameter in self.parameters()):,}",
            **{f"of {name}": f"{count:,}" for name, count in counts.items() if count},
        }

    def _repr_html_(self) -> str:
        return card(type(self).__name__, self.facts())


def check_sample_arguments(x: Tensor, num_samples: int, draws: Draws | None) -> Draws:
    """Check the arguments of `Posterior.sample` and return the draws to use."""
    _checks.tensor(x, "x")
    _checks.require(x.dim() >= 2, "x", "shape [N, ...]", x)
    _checks.require(num_samples >= 1, "num_samples", "at least 1", num_samples)
    return Draws(0) if draws is None else draws


def frozen_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a module by name, detached, for `torch.func.functional_call`."""
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def split_mean_log_var(output: Tensor) -> tuple[Tensor, Tensor]:
    """Split an encoder's output [N, 2 D] into mean and log-variance [N, D]; the log-variance is clamped to [-20, 10]."""
    mean, log_var = output.chunk(2, dim=-1)
    return mean, log_var.clamp(-20, 10)


def encode_with_context(posterior: Any, x: Tensor, draws: Draws | None) -> Encoded:
    """Compute mean, log-variance and context of data `x` [N, ...].

    The context comes from `posterior.context_encoder`, or if that is None from the last C outputs of `posterior.encoder`.
    """
    draws = draws if posterior.training else None
    if posterior.context_encoder is None:
        top, context = posterior.encoder(x, draws).tensor_split((2 * posterior.latent_dim,), dim=-1)
        return Encoded(*split_mean_log_var(top), context)
    # The dropout of the two encoders must not share its draws.
    context = posterior.context_encoder(x, None if draws is None else draws.lane("context"))
    return Encoded(*split_mean_log_var(posterior.encoder(x, draws)), context)


def with_context(z: Tensor, context: Tensor) -> Tensor:
    """Concatenate latents [K, N, D] and their context [N, C] to [K, N, D + C]."""
    return torch.cat((z, context.expand(*z.shape[:-1], -1)), -1)


def draw_start(mean: Tensor, log_var: Tensor, num_samples: int, draws: Draws, stream: int = rng.START) -> Tensor:
    """Draw reparametrized samples [K, N, D] of the Gaussian with `mean` and `log_var` [N, D] from a random stream (default `START`)."""
    noise = rng.normal(draws, (num_samples, *mean.shape), stream, device=mean.device, dtype=mean.dtype)
    return mean + torch.exp(0.5 * log_var) * noise
