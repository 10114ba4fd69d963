"""Small posteriors of every family for three-dimensional data, for tests of all families."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.posteriors import (
    IAF,
    Adversarial,
    Diffusion,
    Gaussian,
    Hamiltonian,
    HierarchicalIAF,
    PathIntegral,
    Planar,
    Posterior,
    RealNVP,
    Spline,
)
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import make
from tests.linear_gaussian import DATA_DIM

CONTEXT = 4


def _network(outputs: int, place: int) -> MLP:
    return MLP(DATA_DIM, [], outputs, draws=Draws(21).importance(place))


def _flow(family: type[Posterior], of: LatentVariableModel, **options: Any) -> Posterior:
    dim = of.prior.dim
    return family(_network(2 * dim, 0), _network(CONTEXT, 1), latent_dim=dim, context_dim=CONTEXT, draws=Draws(22), **options)


def gaussian(model: LatentVariableModel) -> Posterior:
    return Gaussian(_network(2 * model.prior.dim, 0), model.prior.dim)


def diffusion(model: LatentVariableModel) -> Posterior:
    schedule = make("geometric", 12, start=0.1, end=3.0)
    chain = ResidualMLP(model.prior.dim, CONTEXT, 12, 16, draws=Draws(23))
    encoders = {"encoder": _network(2 * model.prior.dim, 0), "context_encoder": _network(CONTEXT, 1)}
    return Diffusion(denoiser=chain, schedule=schedule, learn_schedule=True, learn_variances=True, **encoders)


def iaf(model: LatentVariableModel) -> Posterior:
    return _flow(IAF, model)


def planar(model: LatentVariableModel) -> Posterior:
    return _flow(Planar, model, num_steps=10)


def realnvp(model: LatentVariableModel) -> Posterior:
    return _flow(RealNVP, model, hidden_dim=16)


def spline(model: LatentVariableModel) -> Posterior:
    return _flow(Spline, model, hidden_dim=32)


def hierarchical_iaf(model: LatentVariableModel) -> Posterior:
    return _flow(HierarchicalIAF, model, hidden_dim=32)


def hamiltonian(model: LatentVariableModel) -> Posterior:
    # A copy, because tests convert posteriors to other dtypes and this one contains its model.
    return _flow(Hamiltonian, model, model=copy.deepcopy(model), hidden_dim=32)


def path_integral(model: LatentVariableModel) -> Posterior:
    control = ResidualMLP(model.prior.dim, CONTEXT, 20, 16, draws=Draws(23))
    return PathIntegral(_network(model.prior.dim, 0), control, _network(CONTEXT, 1), first_scale=0.3, last_scale=0.1)


def adversarial(model: LatentVariableModel) -> Posterior:
    return Adversarial(_network(model.prior.dim + CONTEXT, 0), model.prior.dim, CONTEXT, draws=Draws(24))


Maker = Callable[[LatentVariableModel], Posterior]
WITH_DENSITY: tuple[Maker, ...] = (gaussian, diffusion, iaf, planar, realnvp, spline, hierarchical_iaf, hamiltonian, path_integral)
ALL: tuple[Maker, ...] = (*WITH_DENSITY, adversarial)
