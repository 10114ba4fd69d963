"""A model whose posterior and evidence are known: `p(z) = N(0, I_2)`, `p(x | z) = N(W z + b, s^2 I_3)`.

Its posterior is a Gaussian with correlated dimensions, so a diagonal Gaussian cannot reach the evidence and a diffusion can.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ddvi_fast import likelihoods, priors
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.objectives import PriorGuide
from ddvi_fast.posteriors import Diffusion, Gaussian
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import NoiseSchedule, make

WEIGHT = ((1.0, 0.6), (0.5, 1.0), (0.7, 0.8))
UNCORRELATED = ((1.0, 0.6), (0.5, -1.2), (0.7, 0.0))  # orthogonal columns: the posterior is a diagonal Gaussian
BIAS = (0.3, -0.2, 0.5)
SCALE = 0.8
DATA_DIM, LATENT_DIM = 3, 2
EXACT_PRIOR = PriorGuide(blur=0.0)  # no blur while training


def make_model(dtype: torch.dtype = torch.float32, weight: tuple[tuple[float, ...], ...] = WEIGHT) -> LatentVariableModel:
    """The model with frozen decoder and scale."""
    decoder = MLP(LATENT_DIM, [], DATA_DIM)
    with torch.no_grad():
        decoder.layers[0].weight.copy_(torch.tensor(weight))
        decoder.layers[0].bias.copy_(torch.tensor(BIAS))
    model = LatentVariableModel(priors.make("gaussian", dim=LATENT_DIM), decoder, likelihoods.make("gaussian", scale=SCALE))
    return model.to(dtype).requires_grad_(False)


def observations(n: int, seed: int = 5) -> Tensor:
    """Data [n, 3] drawn from the model."""
    return make_model().simulate(n, Draws(seed)).x


def exact_evidence(x: Tensor) -> Tensor:
    """log p(x) in nats, float64 [N], from `x ~ N(b, W W^T + s^2 I)`."""
    weight = torch.tensor(WEIGHT, dtype=torch.float64)
    covariance = weight @ weight.mT + SCALE**2 * torch.eye(DATA_DIM, dtype=torch.float64)
    return MultivariateNormal(torch.tensor(BIAS, dtype=torch.float64), covariance).log_prob(x.double())


def exact_posterior(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [N, 2] and covariance [2, 2], float64, of `p(z | x)`."""
    weight = torch.tensor(WEIGHT, dtype=torch.float64)
    covariance = torch.linalg.inv(torch.eye(LATENT_DIM, dtype=torch.float64) + weight.mT @ weight / SCALE**2)
    return (x.double() - torch.tensor(BIAS, dtype=torch.float64)) @ weight @ covariance / SCALE**2, covariance


def best_diagonal_gap() -> float:
    """Nats by which the best diagonal Gaussian posterior stays below the evidence: `-log(1 - rho^2) / 2`."""
    _, covariance = exact_posterior(torch.zeros(1, DATA_DIM))
    return -0.5 * math.log(1 - float(covariance[0, 1] ** 2 / (covariance[0, 0] * covariance[1, 1])))


def gaussian_posterior(seed: int = 11) -> Gaussian:
    """A diagonal Gaussian with a linear encoder, enough for the best one."""
    return Gaussian(MLP(DATA_DIM, [], 2 * LATENT_DIM, draws=Draws(seed)), LATENT_DIM)


def diffusion_posterior(
    seed: int = 12, schedule: NoiseSchedule | None = None, hidden_dim: int = 16, learn_variances: bool = False, **options
) -> Diffusion:
    """A small diffusion posterior with linear encoders."""
    schedule = make("cosine", 6) if schedule is None else schedule
    return Diffusion(
        encoder=MLP(DATA_DIM, [], 2 * LATENT_DIM, draws=Draws(seed)),
        context_encoder=MLP(DATA_DIM, [], 2, draws=Draws(seed + 1)),
        denoiser=ResidualMLP(LATENT_DIM, 2, schedule.num_steps, hidden_dim, draws=Draws(seed + 2)),
        schedule=schedule,
        learn_variances=learn_variances,
        **options,
    )
