"""A model over latent and class whose posterior and evidence are known, and small posteriors over both.

`p(c) = 1/3`, `p(z | c) = N(mean_c, 0.4^2 I_2)`, `p(x | z) = N(W z + b, 0.7^2 I_3)` with orthogonal columns of `W`: so `p(z | x, c)` is
a diagonal Gaussian whose mean is linear in x, and `p(c | x)` a softmax of linear functions of x. Both are in reach of linear networks.
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
from ddvi_fast.posteriors import IAF, Diffusion, Gaussian, Posterior
from ddvi_fast.posteriors.class_conditional import ClassConditional, ClassDiffusion, PerClass
from ddvi_fast.priors import Prior
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import make

MEANS = torch.tensor([[1.2, 0.3], [-0.8, 1.0], [0.1, -1.1]])
WEIGHT = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.0, 0.6]])
BIAS = torch.tensor([0.2, -0.1, 0.4])
SPREAD, SCALE = 0.4, 0.7
CLASSES, LATENT_DIM, DATA_DIM = 3, 2, 3

# The columns are orthogonal; the third row is zero in the first column.
assert float(WEIGHT[:, 0] @ WEIGHT[:, 1]) == 0


def make_model() -> LatentVariableModel:
    """The model with frozen decoder and scale."""
    decoder = MLP(LATENT_DIM, [], DATA_DIM)
    with torch.no_grad():
        decoder.layers[0].weight.copy_(WEIGHT)
        decoder.layers[0].bias.copy_(BIAS)
    model = LatentVariableModel(priors.Mixture(MEANS, SPREAD), decoder, likelihoods.make("gaussian", scale=SCALE))
    return model.requires_grad_(False)


def observations(n: int, seed: int = 5) -> Tensor:
    """Data [n, 3] drawn from the model."""
    return make_model().simulate(n, Draws(seed)).x


def log_joint(x: Tensor) -> Tensor:
    """log p(x, c) in nats, float64 [C, N]."""
    weight = WEIGHT.double()
    covariance = SPREAD**2 * weight @ weight.mT + SCALE**2 * torch.eye(DATA_DIM, dtype=torch.float64)
    means = MEANS.double() @ weight.mT + BIAS.double()
    return torch.stack([MultivariateNormal(mean, covariance).log_prob(x.double()) for mean in means]) - math.log(CLASSES)


def exact_posterior() -> ClassConditional:
    """q(z, c | x) = p(z, c | x), by linear networks."""
    weight = WEIGHT.double()
    precision = 1 / SPREAD**2 + weight.square().sum(0) / SCALE**2  # of p(z | x, c), diagonal
    slope = (weight / SCALE**2 / precision).mT  # [D, P]
    offsets = MEANS.double() / SPREAD**2 / precision - slope @ BIAS.double()
    encoder = MLP(DATA_DIM, [], CLASSES * 2 * LATENT_DIM)
    classifier = MLP(DATA_DIM, [], CLASSES)
    covariance = SPREAD**2 * weight @ weight.mT + SCALE**2 * torch.eye(DATA_DIM, dtype=torch.float64)
    means = MEANS.double() @ weight.mT + BIAS.double()
    directions = means @ torch.linalg.inv(covariance)
    with torch.no_grad():
        rows = encoder.layers[0].weight.zero_().view(CLASSES, 2 * LATENT_DIM, DATA_DIM)
        rows[:, :LATENT_DIM] = slope.float()
        biases = encoder.layers[0].bias.view(CLASSES, 2 * LATENT_DIM)
        biases[:, :LATENT_DIM] = offsets.float()
        biases[:, LATENT_DIM:] = -precision.log().float()
        classifier.layers[0].weight.copy_(directions.float())
        classifier.layers[0].bias.copy_((-0.5 * (directions * means).sum(1)).float())
    return ClassConditional(classifier, Gaussian(PerClass(encoder, CLASSES), LATENT_DIM), make_model().prior)


def family(name: str, seed: int = 20, num_steps: int = 5, shared_context: bool = True, learn_variances: bool = False, **options):
    """A small q(z | x, c): ``gaussian``, ``iaf`` or ``diffusion``, with `options` of the family."""
    encoder = PerClass(MLP(DATA_DIM, [], CLASSES * 2 * LATENT_DIM, draws=Draws(seed)), CLASSES)
    if name == "gaussian":
        return Gaussian(encoder, LATENT_DIM, **options)
    if name == "iaf":
        contexts = PerClass(MLP(DATA_DIM, [], CLASSES * 4, draws=Draws(seed + 1)), CLASSES)
        return IAF(encoder, contexts, LATENT_DIM, 4, draws=Draws(seed + 2), **options)
    contexts = MLP(DATA_DIM, [], 2, draws=Draws(seed + 1))
    if not shared_context:
        contexts = PerClass(MLP(DATA_DIM, [], 2 * CLASSES, draws=Draws(seed + 1)), CLASSES)
    return ClassDiffusion(
        encoder,
        ResidualMLP(LATENT_DIM, 2, num_steps, 64, groups=CLASSES, draws=Draws(seed + 2)),
        make("cosine", num_steps),
        context_encoder=contexts,
        learn_variances=learn_variances,
        **options,
    )


def posterior(name: str, seed: int = 20, **options) -> ClassConditional:
    """A small posterior over latent and class, untrained."""
    classifier = MLP(DATA_DIM, [], CLASSES, draws=Draws(seed + 5))
    return ClassConditional(classifier, family(name, seed, **options), make_model().prior)


def placed(name: str, coordinates: str, prior: Prior, seed: int = 20) -> ClassConditional:
    """A small posterior over latent and class of three-dimensional data: ``gaussian``, ``iaf`` or ``diffusion`` in any coordinates.

    The classes share the flow or the chain, and have heads of their own in the encoders.
    """
    dim = prior.noise_dim if "prior" in coordinates else prior.dim
    place = {"coordinates": coordinates, "prior": prior if "prior" in coordinates else None}

    def heads(outputs: int, number: int) -> PerClass:
        return PerClass(MLP(DATA_DIM, [], prior.num_classes * outputs, draws=Draws(seed + number)), prior.num_classes)

    family: Posterior
    if name == "gaussian":
        family = Gaussian(heads(2 * dim, 0), dim, **place)
    elif name == "iaf":
        family = IAF(heads(2 * dim, 0), heads(4, 1), dim, 4, draws=Draws(seed + 2), **place)
    else:
        chain = ResidualMLP(dim, 2, 5, 16, draws=Draws(seed + 2))
        family = Diffusion(heads(2 * dim, 0), chain, make("geometric", 5), context_encoder=heads(2, 1), **place)
    return ClassConditional(MLP(DATA_DIM, [], prior.num_classes, draws=Draws(seed + 5)), family, prior)
