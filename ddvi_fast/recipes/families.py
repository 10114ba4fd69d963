"""Registry of posterior families: constructors, and the settings and capabilities of each family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from ddvi_fast import _checks
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.posteriors import IAF, Adversarial, Diffusion, Gaussian, Hamiltonian, HierarchicalIAF, PathIntegral, Planar, Posterior, RealNVP, Spline
from ddvi_fast.recipes.options import ChainOptions

if TYPE_CHECKING:
    from ddvi_fast.recipes.builder import Builder

MakeNetwork = Callable[[int], nn.Module]  # makes a network from x to that many outputs


@dataclass(frozen=True)
class Family:
    """A posterior family of the registry.

    Args:
        build: Function of a builder, the two makers of networks (encoder, context) and the model; it returns the posterior.
        settings: Names of the settings that only some families have, and that this one has; a name stands for all settings below it.
        per_class: Whether its encoders may have one head per class (semi-supervised and latent-cluster methods).
        shares_context: Whether its encoder may compute the context too (`recipe.shared_context`).
        location_only: Whether its encoder returns no variances outside the encoder's frame.
    """

    build: Callable[[Builder, MakeNetwork, MakeNetwork, LatentVariableModel | None], Posterior]
    settings: tuple[str, ...] = ()
    per_class: bool = False
    shares_context: bool = False
    location_only: bool = False


def make_diffusion(builder: Builder, encoder: nn.Module, context: nn.Module | None, chain: ChainOptions, groups: int | None = None, **more: Any):
    """A diffusion posterior over `encoder`, with one chain, or with `groups` chains side by side."""
    kind: type[Posterior] = more.pop("kind", Diffusion)
    directions = builder.latent_dim if chain.informed_steps else 0
    denoiser = ResidualMLP(
        builder.latent_dim, chain.context_dim + directions, chain.num_steps, chain.hidden_dim, groups,
        zero_output=builder.starts_at_prior, draws=builder.weights("denoiser"),
    )  # fmt: skip
    return kind(
        encoder,
        denoiser,
        builder.schedule(chain),
        context_encoder=context,
        parametrisation=chain.parametrisation,
        eta=chain.eta,
        final_variance=chain.final_variance,
        learn_schedule=chain.learn_schedule,
        learn_variances=chain.learn_variances,
        informed_steps=chain.informed_steps,
        frame_updates=chain.frame_updates,
        **builder.place,
    )


def _diffusion(builder: Builder, encoder: MakeNetwork, context: MakeNetwork, model: LatentVariableModel | None) -> Posterior:
    chain = builder.options.method.chain
    top, size = 2 * builder.latent_dim, chain.context_dim
    if builder.shares_context:
        return make_diffusion(builder, encoder(top + size), None, chain)
    return make_diffusion(builder, encoder(top), context(size) if size else None, chain)


def _gaussian(builder: Builder, encoder: MakeNetwork, context: MakeNetwork, model: LatentVariableModel | None) -> Posterior:
    return Gaussian(encoder(2 * builder.latent_dim), builder.latent_dim, **builder.place)


def _flow(kind: type[Posterior], **arguments: str) -> Callable[..., Posterior]:
    """Constructor of a family that transforms a Gaussian; `arguments` maps arguments of `kind` to names of `FlowOptions`."""

    def build(builder: Builder, encoder: MakeNetwork, context: MakeNetwork, model: LatentVariableModel | None) -> Posterior:
        flow, top = builder.options.method.flow, 2 * builder.latent_dim
        options: dict[str, Any] = {argument: getattr(flow, option) for argument, option in arguments.items()}
        if flow.num_steps is not None:
            options["num_steps"] = flow.num_steps
        if kind in (IAF, HierarchicalIAF):
            options["open_gates"] = builder.starts_at_prior
        if kind is Hamiltonian:
            options["model"] = model
        networks = (encoder(top + flow.context_dim), None) if builder.shares_context else (encoder(top), context(flow.context_dim))
        options |= {"draws": builder.weights("denoiser"), **builder.place}
        return kind(*networks, latent_dim=builder.latent_dim, context_dim=flow.context_dim, **options)

    return build


def _adversarial(builder: Builder, encoder: MakeNetwork, context: MakeNetwork, model: LatentVariableModel | None) -> Posterior:
    size, width = builder.latent_dim, builder.options.method.flow.context_dim
    top = size * (2 if builder.whitens else 1)
    return Adversarial(encoder(top + width), size, width, noise_dim=size, draws=builder.weights("denoiser"), **builder.place)


def _path_integral(builder: Builder, encoder: MakeNetwork, context: MakeNetwork, model: LatentVariableModel | None) -> Posterior:
    size, chain = builder.latent_dim, builder.options.method.chain
    control = ResidualMLP(
        size, chain.context_dim, chain.num_steps, chain.hidden_dim, zero_output=builder.starts_at_prior, draws=builder.weights("denoiser")
    )
    top = size * (2 if builder.whitens else 1)
    return PathIntegral(encoder(top), control, context(chain.context_dim), learn_scales=chain.learn_variances, **builder.place)


_CONTROL = (*(f"method.chain.{name}" for name in ("num_steps", "hidden_dim", "context_dim", "learn_variances")), "recipe.denoiser_lr")
_FLOW = ("method.flow.context_dim", "method.flow.num_steps")
_SHARED = (*_FLOW, "recipe.shared_context")

# The names of `method.posterior`.
FAMILIES = {
    "gaussian": Family(_gaussian, per_class=True),
    "diffusion": Family(
        _diffusion, ("method.chain", "recipe.denoiser_lr", "recipe.schedule_lr", "recipe.shared_context"), per_class=True, shares_context=True
    ),
    "iaf": Family(_flow(IAF), _SHARED, per_class=True, shares_context=True),
    "planar": Family(_flow(Planar), _SHARED, per_class=True, shares_context=True),
    "realnvp": Family(_flow(RealNVP), _SHARED, per_class=True, shares_context=True),
    "spline": Family(_flow(Spline), _SHARED, per_class=True, shares_context=True),
    "hierarchical_iaf": Family(
        _flow(HierarchicalIAF, num_levels="num_levels"), (*_SHARED, "method.flow.num_levels"), per_class=True, shares_context=True
    ),
    "hamiltonian": Family(_flow(Hamiltonian, num_leapfrog="num_leapfrog"), (*_SHARED, "method.flow.num_leapfrog"), shares_context=True),
    "path_integral": Family(_path_integral, _CONTROL, per_class=True, location_only=True),
    "adversarial": Family(_adversarial, _FLOW[:1], per_class=True, location_only=True),
}


def family_of(name: str) -> Family:
    """The family `name` of the registry.

    Raises:
        InputError: There is no such family; the message has the nearest names.
    """
    return FAMILIES[_checks.choice(name, FAMILIES, "method.posterior")]


def with_capability(capability: str) -> list[str]:
    """Names of the families that have a capability (a boolean field of `Family`).

    Example:
        >>> with_capability("location_only")
        ['path_integral', 'adversarial']
    """
    return [name for name, family in FAMILIES.items() if getattr(family, capability)]
