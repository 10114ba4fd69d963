"""Small untrained posteriors in any coordinates, whose samples cover the posterior of a small model under any prior."""

from __future__ import annotations

import math
from typing import Any

import torch

from ddvi_fast import likelihoods, priors
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors import IAF, Adversarial, Diffusion, Gaussian, Hamiltonian, HierarchicalIAF, PathIntegral, Planar, Posterior, RealNVP, Spline
from ddvi_fast.posteriors.class_conditional import ClassConditional, ClassDiffusion, PerClass
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import make as make_schedule

COORDINATES = ("latent", "prior", "encoder", "prior+encoder")
DATA_DIM, CONTEXT, STEPS, WIDTH = 3, 3, 4, 16
WEIGHT = ((0.6, 0.2), (-0.3, 0.5), (0.1, -0.4))
FLOWS = {"iaf": IAF, "planar": Planar, "realnvp": RealNVP, "spline": Spline, "hierarchical_iaf": HierarchicalIAF, "hamiltonian": Hamiltonian}
WITH_DENSITY = ("gaussian", *FLOWS, "path_integral", "diffusion")
PER_CLASS = (*(name for name in WITH_DENSITY if name != "hamiltonian"), "class_diffusion")


def circle(u: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(u, dim=-1)


def rays(u: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    angle = 2 * math.pi / 3 * labels.unsqueeze(-1) + 0.2 * u
    return (1 + 0.3 * u) * torch.cat((torch.cos(angle), torch.sin(angle)), -1)


DENSE_PRIORS = {
    "gaussian": lambda: priors.make("gaussian", dim=2),
    "mixture": lambda: priors.Mixture(num_classes=3, scale=0.4, radius=1.0),
    "pinwheel": lambda: priors.Pinwheel(num_classes=3, radial_std=0.2, tangential_std=0.1),
    "swiss_roll_noisy": lambda: priors.SwissRoll(noise=0.3, num_classes=3),
    "square": lambda: priors.Square(noise_level=8.0, num_classes=3, corner_width=0.1),
    "centres": lambda: priors.Centres(num_centres=3, scale=6.0),
}
THIN_PRIORS = {
    "swiss_roll": lambda: priors.SwissRoll(num_classes=3),
    "circle": lambda: priors.Pushforward(circle, noise_dim=2, dim=2),
    "rays": lambda: priors.Pushforward(rays, noise_dim=1, dim=2, num_classes=3),
}
PRIORS = DENSE_PRIORS | THIN_PRIORS


def make_model(prior: str) -> LatentVariableModel:
    """A model with a fixed linear decoder and a wide likelihood; only learned priors have parameters that require gradients."""
    decoder = MLP(2, [], DATA_DIM, draws=Draws(1)).requires_grad_(False)
    decoder.layers[0].weight.copy_(torch.tensor(WEIGHT))
    return LatentVariableModel(PRIORS[prior](), decoder, likelihoods.make("gaussian", scale=0.9).requires_grad_(False))


def make(name: str, model: LatentVariableModel, coordinates: str = "latent", by_class: bool = False, **options: Any) -> Posterior:
    """An untrained posterior `name` in these coordinates; `by_class` is a `ClassConditional`, whose classes have a family each.

    Its Gaussians are somewhat wider than the prior, and its networks are random, so that nothing is zero by chance.
    """
    prior, pushes, whitens = model.prior, "prior" in coordinates, "encoder" in coordinates
    dim, classes = prior.dim, prior.num_classes if by_class else None
    if pushes:
        dim = prior.noise_dim if by_class else prior.joint_noise_dim
    spread = 1.2 if pushes else 1.3 * float(prior.sample(500).detach().square().mean().sqrt())
    top = head(dim, 2 * dim, classes, 0, spread)
    context = head(dim, CONTEXT, classes, 1)
    options |= {"coordinates": coordinates, "prior": prior if pushes else None}
    family = _family(name, dim, spread, top, context, classes, whitens, model, options)
    return ClassConditional(MLP(DATA_DIM, [], classes, draws=Draws(30)), family, prior) if by_class else family


def head(dim: int, outputs: int, classes: int | None, place: int, spread: float | None = None) -> torch.nn.Module:
    """A linear network from data to `outputs`, for each class if there are `classes`. With a spread, its last half is its log-variance."""
    network = MLP(DATA_DIM, [], outputs * (classes or 1), draws=Draws(21).importance(place))
    with torch.no_grad():
        network.layers[0].weight.mul_(0.3)
        network.layers[0].bias.mul_(0.3)
        if spread is not None:
            network.layers[0].bias.view(-1, 2, dim)[:, 1] += 2 * math.log(spread)
    return network if classes is None else PerClass(network, classes)


def chain_network(dim: int, classes: int | None = None, further: int = 0) -> ResidualMLP:
    network = ResidualMLP(dim, CONTEXT + further, STEPS, WIDTH, classes, draws=Draws(23))
    with torch.no_grad():
        network.last.mul_(0.2)
        network.last_bias.mul_(0.2)
        network.embedding.sub_(0.5)
    return network


def _family(name, dim, spread, top, context, classes, whitens, model, options) -> Posterior:
    if name == "gaussian":
        return Gaussian(top, dim, **options)
    if name in FLOWS:
        more = {"model": model} if name == "hamiltonian" else {}
        more |= {"hidden_dim": WIDTH} if name not in ("iaf", "planar") else {}
        return FLOWS[name](top, context, latent_dim=dim, context_dim=CONTEXT, num_steps=2, draws=Draws(22), **more, **options)
    location = top if whitens else head(dim, dim, classes, 0)
    if name == "path_integral":
        each = spread / math.sqrt(STEPS + 1)
        return PathIntegral(location, chain_network(dim), context, first_scale=1.2 * each, last_scale=0.9 * each, **options)
    if name == "adversarial":
        return Adversarial(head(dim, (2 if whitens else 1) * dim + CONTEXT, classes, 0), dim, CONTEXT, draws=Draws(24), **options)
    kind, groups = (ClassDiffusion, classes) if name == "class_diffusion" else (Diffusion, None)
    schedule = make_schedule("linear", STEPS, start=0.05, end=0.3)
    options |= {} if whitens else {"parametrisation": "eps"}
    informed = options.get("informed_steps", 0)
    options |= {"target": model} if informed or options.get("frame_updates") else {}
    posterior = kind(top, chain_network(dim, groups, dim if informed else 0), schedule, context_encoder=context, **options)
    with torch.no_grad():  # the steps of an untrained chain should not be narrower than those back along the noising process
        wide = schedule.betas if whitens else schedule.betas / schedule.alphas
        posterior.log_variance_factors += torch.log(wide / posterior.coefficients()[:, 2].square()) + torch.linspace(0.05, 0.15, STEPS)
        if informed:
            posterior.direction_gains.copy_(torch.linspace(0.5, 0.8, STEPS))
    return posterior
