"""Directions of informed steps: the gradient of a model's log joint density at a predicted latent (docs/method.md, section 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ddvi_fast import _checks
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import evaluation, frozen
from ddvi_fast.posteriors.placing import standard_log_prob
from ddvi_fast.posteriors.score import LikelihoodGradient
from ddvi_fast.priors import Prior

MAX_NORM = 5.0  # largest norm of a direction, in units of the square root of the number of coordinates


class HasLogJoint(Protocol):
    """Interface of a model that informed steps can see without the prior's coordinates and without classes."""

    def log_joint(self, x: Any, z: Tensor) -> Tensor:
        """Compute log p(x, z) [.., N] in nats of data `x` [N, ...] and latents `z` [.., N, D]; rows do not depend on each other."""


class Target:
    """Log-density that informed steps climb: `log p(x | g(u)) + log p(u)` in the prior's coordinates, otherwise `log p(x, z)`.

    It is no module: the model is trained, moved and saved in its own place.

    Args:
        model: The model.
        prior: Prior of the posterior's coordinates, or None for coordinates of the latents.

    Raises:
        InputError: If the model does not have what the coordinates need.
    """

    def __init__(self, model: LatentVariableModel | HasLogJoint, prior: Prior | None) -> None:
        whole = isinstance(model, LatentVariableModel)
        _checks.require(whole or callable(getattr(model, "log_joint", None)), "target", "a model with log_joint(x, z)", model)
        _checks.require(whole or prior is None, "target", "a LatentVariableModel, in the prior's coordinates", model)
        if whole and prior is None:
            model.prior.require_density()
        same = prior is None or model.prior is prior
        _checks.require(same, "target", "a model with the prior of the posterior's coordinates", model)
        self.model, self.prior = model, prior
        # Only the density of the class is known to be the sum of those of its parts.
        self.plain = whole and type(model).log_joint is LatentVariableModel.log_joint

    def log_density(self, x: Tensor, u: Tensor, labels: Tensor | None) -> Tensor:
        """Compute the log-density [.., N] in nats at `u` [.., N, D] for data `x` [N, ...], given classes `labels` that broadcast to [.., N]."""
        if self.prior is not None:
            return self.model.log_likelihood(x, self.prior.push(u, labels)) + standard_log_prob(u)
        if labels is not None:
            return self.model.log_likelihood(x, u) + self.model.prior.log_prob(u, labels)
        return self.model.log_joint(x, u)

    @torch.no_grad()
    def values(self, x: Tensor, u: Tensor, labels: Tensor | None) -> Tensor:
        """Compute `log_density` as a constant, with the model in evaluation mode."""
        with _constant(self.model):
            return self.log_density(x, u, labels)

    def at(self, x: Tensor, labels: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Prepare the gradient of `log_density` for data `x` [N, ...] and classes `labels` that broadcast to [.., N].

        Returns:
            Function of `u` [.., N, D] that returns the gradient for `u` [.., N, D], a constant in any grad mode, with the model in evaluation
            mode. The model must not change between its calls.
        """
        if torch.compiler.is_compiling():  # a compiler leaves it to PyTorch: it does not differentiate any density within a graph
            return lambda u: torch.compiler.disable(Target._gradient)(self, x, u, labels, None)
        fused = LikelihoodGradient.of(self.model, x) if self.plain else None
        return lambda u: self._gradient(x, u, labels, fused)

    @_checks.outside_inference_mode
    def _gradient(self, x: Tensor, u: Tensor, labels: Tensor | None, fused: LikelihoodGradient | None) -> Tensor:
        point = u.detach().requires_grad_()
        if fused is not None and fused.takes(u):
            return self._fused_gradient(fused, point, labels)
        with _constant(self.model), torch.enable_grad():
            return torch.autograd.grad(self.log_density(x, point, labels).sum(), point)[0]

    def _fused_gradient(self, of_likelihood: LikelihoodGradient, u: Tensor, labels: Tensor | None) -> Tensor:
        """The gradient with that of the log-likelihood from its kernel."""
        with _constant(self.model.prior), torch.enable_grad():
            if self.prior is None:
                return of_likelihood(u) + torch.autograd.grad(self.model.prior.log_prob(u, labels).sum(), u)[0]
            z = self.prior.push(u, labels)
            return torch.autograd.grad(z, u, of_likelihood(z))[0] - u.detach()


def clipped(direction: Tensor) -> Tensor:
    """Scale down each row of `direction` [.., D] whose norm is above `MAX_NORM sqrt(D)`."""
    largest = MAX_NORM * math.sqrt(direction.shape[-1])
    norm = torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    return direction * (largest / norm.clamp(min=largest))


@contextmanager
def _constant(model: Any) -> Iterator[None]:
    """Context in which a model that is a module is in evaluation mode, and its parameters take no gradients, which kernels would compute in vain."""
    if not isinstance(model, nn.Module):
        yield
        return
    with evaluation(model), frozen(model):
        yield
