"""The posterior families by the names that a configuration gives them, over networks of the data set's kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ddvi_fast import _checks
from ddvi_fast.config.schema import MethodConfig
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.posteriors import IAF, Adversarial, Gaussian, Hamiltonian, HierarchicalIAF, PathIntegral, Planar, Posterior, RealNVP, Spline
from ddvi_fast.rng import Draws


@dataclass(frozen=True)
class Parts:
    """What a family is made of.

    Args:
        encoder, context: make a network from x to so many outputs.
        model: for a family that follows its gradient.
        method: the family's options.
        latent_dim: D.
        draws: where further networks draw their initial weights.
        still: where means start with the prior's spread, start what follows them near the identity.
        shared: a flow's encoder gives its context, too.
    """

    encoder: Callable[[int], nn.Module]
    context: Callable[[int], nn.Module]
    model: LatentVariableModel
    method: MethodConfig
    latent_dim: int
    draws: Draws
    still: bool
    shared: bool = False


def make(parts: Parts) -> Posterior:
    """The posterior `parts.method.posterior`, one of `FAMILIES`."""
    return FAMILIES[parts.method.posterior](parts)


def _gaussian(parts: Parts) -> Gaussian:
    return Gaussian(parts.encoder(2 * parts.latent_dim), parts.latent_dim)


def _flow(family: type[Posterior], **more: str) -> Callable[[Parts], Posterior]:
    """A family of a Gaussian and a context; `more` maps its arguments to options of the configuration."""

    def build(parts: Parts) -> Posterior:
        flow = parts.method.flow
        options: dict[str, Any] = {argument: getattr(flow, option) for argument, option in more.items()}
        if flow.num_steps is not None:
            options["num_steps"] = flow.num_steps
        if family in (IAF, HierarchicalIAF):
            options["open_gates"] = parts.still
        if family is Hamiltonian:
            options["model"] = parts.model
        fits = parts.method.posterior in SHARING or not parts.shared
        _checks.require(fits, "recipe.shared_context", f"false, for a posterior other than {', '.join(SHARING)}", parts.method.posterior)
        top, width = 2 * parts.latent_dim, flow.context_dim
        encoder, context = (parts.encoder(top + width), None) if parts.shared else (parts.encoder(top), parts.context(width))
        return family(encoder, context, latent_dim=parts.latent_dim, context_dim=flow.context_dim, draws=parts.draws, **options)

    return build


def _adversarial(parts: Parts) -> Adversarial:
    width = parts.method.flow.context_dim
    return Adversarial(parts.encoder(parts.latent_dim + width), parts.latent_dim, width, noise_dim=parts.latent_dim, draws=parts.draws)


def _path_integral(parts: Parts) -> PathIntegral:
    chain = parts.method.chain
    control = ResidualMLP(parts.latent_dim, chain.context_dim, chain.num_steps, chain.hidden_dim, zero_output=parts.still, draws=parts.draws)
    return PathIntegral(parts.encoder(parts.latent_dim), control, parts.context(chain.context_dim), learn_scales=chain.learn_variances)


# Whose encoder may give their context, too.
SHARING = ("iaf", "planar", "realnvp", "spline")

# Those that `method.flow` describes whole.
FLOWS: dict[str, Callable[[Parts], Posterior]] = {
    "iaf": _flow(IAF),
    "planar": _flow(Planar),
    "realnvp": _flow(RealNVP),
    "spline": _flow(Spline),
    "hierarchical_iaf": _flow(HierarchicalIAF, num_levels="num_levels"),
    "hamiltonian": _flow(Hamiltonian, num_leapfrog="num_leapfrog"),
}

# All families but the diffusion, which the released recipe and class-conditional chains need in pieces.
FAMILIES: dict[str, Callable[[Parts], Posterior]] = {"gaussian": _gaussian, **FLOWS, "path_integral": _path_integral, "adversarial": _adversarial}
