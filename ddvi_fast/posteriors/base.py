"""The interface of a posterior family: everything else is written once over `(z, log_ratio)`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddvi_fast import _checks, rng
from ddvi_fast._html import card
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.rng import Draws


class PosteriorSample(NamedTuple):
    """Samples `z` [K, N, D], and `log_ratio` [K, N] in nats: what multiplies `p(x, z)` in the importance weight, in logs.

    `log_ratio` is None for a family, or a setting of it, without a density.
    """

    z: Tensor
    log_ratio: Tensor | None


class Encoded(NamedTuple):
    """Mean and log-variance of the first Gaussian draw, [N, D] each, and a context [N, C] or None."""

    mean: Tensor
    log_var: Tensor
    context: Tensor | None


class Posterior(nn.Module):
    """A variational posterior `q(z | x)`.

    A family writes three methods: `encode`, whatever it computes from `x`; `latent_path`, which draws everything on the way
    to `z`; `log_ratio` of such a path. The importance weight is `log w = log p(x, z) + log_ratio` (docs/method.md, section 2).
    """

    latent_dim: int

    def sample(self, x: Tensor, num_samples: int = 1, draws: Draws | None = None) -> PosteriorSample:
        """Draw `num_samples` importance samples for each row of `x` [N, ...].

        `draws` says where the rows stand in the run (`Draws(0)` if not given): a row gets the same samples in any batch.
        """
        draws = check_request(x, num_samples, draws)
        return self.sample_encoded(self.encode(x, draws), num_samples, draws)

    def sample_encoded(self, encoded: Any, num_samples: int, draws: Draws) -> PosteriorSample:
        """`sample`, given what `encode` made of the rows."""
        path = self.latent_path(encoded, num_samples, draws)
        return PosteriorSample(path[-1], self.log_ratio(encoded, path) if self.has_density else None)

    @property
    def has_density(self) -> bool:
        """Whether samples come with a log-ratio, so that bounds exist."""
        return True

    def encode(self, x: Tensor, draws: Draws | None = None) -> Any:
        """What the family computes from `x` once; `draws` feed dropout while training."""
        raise NotImplementedError

    def latent_path(self, encoded: Any, num_samples: int, draws: Draws) -> Tensor:
        """All that is drawn, [S, K, N, D] with `z` last; S is 1 for a family that draws only `z`."""
        raise NotImplementedError

    def log_ratio(self, encoded: Any, path: Tensor) -> Tensor:
        """The log-ratio [K, N] in nats of a latent path [S, K, N, D], treating the path as data."""
        raise NotImplementedError

    def forward(self, x: Tensor, path: Tensor, draws: Draws | None = None) -> Tensor:
        """The log-ratio [K, N] of a latent path, from the data."""
        return self.log_ratio(self.encode(x, draws), path)

    def frozen_log_ratio(self, x: Tensor, path: Tensor, draws: Draws | None = None) -> Tensor:
        """`forward` with the parameters held fixed, so that gradients reach the path alone (Roeder et al. 2017)."""
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return torch.func.functional_call(self, frozen, (x, path, draws))

    def log_weights(self, model: LatentVariableModel, x: Tensor, num_samples: int = 1, draws: Draws | None = None) -> Tensor:
        """Log importance weights [K, N] in nats: their mean is the ELBO, their log-mean-exp the IWAE bound.

        Raises:
            InputError: a posterior without a density.
        """
        self.require_density()
        z, log_ratio = self.sample(x, num_samples, draws)
        return model.log_joint(x, z) + log_ratio

    def require_density(self) -> None:
        """Refuse a bound where there is no density."""
        _checks.require(self.has_density, "posterior", "one with a density, for a bound", f"{type(self).__name__}: {self.why_no_density}")

    why_no_density = "its samples come without a log-ratio"
    recordable = True  # whether a GPU can record its part of a training step, which may ask the device for no number

    def facts(self) -> dict[str, object]:
        """What a notebook shows of it."""
        counts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in self.named_children()}
        return {
            "latent dimensions": self.latent_dim,
            "density": "yes" if self.has_density else f"no: {self.why_no_density}",
            "parameters": f"{sum(parameter.numel() for parameter in self.parameters()):,}",
            **{f"of {name}": f"{count:,}" for name, count in counts.items() if count},
        }

    def _repr_html_(self) -> str:
        return card(type(self).__name__, self.facts())


def check_request(x: Tensor, num_samples: int, draws: Draws | None) -> Draws:
    """The checks that every family's `sample` makes; returns the draws to use."""
    _checks.tensor(x, "x")
    _checks.require(x.dim() >= 2, "x", "shape [N, ...]", x)
    _checks.require(num_samples >= 1, "num_samples", "at least 1", num_samples)
    return Draws(0) if draws is None else draws


def split_top(output: Tensor) -> tuple[Tensor, Tensor]:
    """An encoder's output [N, 2 D] as a mean and a log-variance, the latter kept within [-20, 10]."""
    mean, log_var = output.chunk(2, dim=-1)
    return mean, log_var.clamp(-20, 10)


def draw_start(mean: Tensor, log_var: Tensor, num_samples: int, draws: Draws) -> Tensor:
    """Reparametrised samples [K, N, D] of `N(mean, diag exp(log_var))`, from stream `START`."""
    noise = rng.normal(draws, (num_samples, *mean.shape), rng.START, device=mean.device, dtype=mean.dtype)
    return mean + torch.exp(0.5 * log_var) * noise
