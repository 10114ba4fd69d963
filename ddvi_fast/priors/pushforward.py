"""Prior that a user gives as a sampler of noise, without a density (docs/method.md, section 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from torch import Tensor

from ddvi_fast import _checks
from ddvi_fast.priors.base import Prior


class Pushforward(Prior):
    """Distribution of `push(u)` for `u ~ N(0, I)`, or of `push(u, labels)` for a uniform class.

    It has no density, so posteriors need `coordinates="prior"` for a bound.

    Args:
        push: Differentiable function or module from noise [..., U], and int64 labels [...] if there are classes, to latents [..., D]. A module
            is trained with the model if its parameters require gradients; its noise has their data type and device.
        noise_dim: Number of coordinates of the noise, U (int).
        dim: Number of latent dimensions, D (int).
        num_classes: Number of equally likely classes, C (int). Default: no classes.

    Raises:
        InputError: If an argument is out of range.

    Example:
        >>> import torch
        >>> circle = Pushforward(lambda u: torch.nn.functional.normalize(u, dim=-1), noise_dim=2, dim=2)
        >>> round(circle.sample(5).norm(dim=1).mean().item(), 4)
        1.0
    """

    @_checks.typed
    def __init__(self, push: Callable[..., Tensor], noise_dim: int, dim: int, num_classes: int | None = None) -> None:
        super().__init__()
        _checks.require(callable(push), "push", "a function of noise", push)
        _checks.require(noise_dim >= 1, "noise_dim", "at least 1", noise_dim)
        _checks.require(dim >= 1, "dim", "at least 1", dim)
        _checks.require(num_classes is None or num_classes >= 1, "num_classes", "None or at least 1", num_classes)
        self.sampler, self.noise_dim, self.dim, self.num_classes = push, noise_dim, dim, num_classes

    def require_density(self) -> NoReturn:
        """Raise `InputError`."""
        _checks.fail("prior", "one with a density", "a Pushforward prior, which is known by its samples", 'use coordinates="prior"')

    def _push(self, u: Tensor, labels: Tensor | None) -> Tensor:
        parameter = next(self.parameters(), u)
        arguments = (u.to(parameter),) if labels is None else (u.to(parameter), labels.to(parameter.device))
        z = self.sampler(*arguments)
        _checks.require(z.shape == (*u.shape[:-1], self.dim), "push", f"latents of shape {[*u.shape[:-1], self.dim]}", z)
        return z.to(u)
