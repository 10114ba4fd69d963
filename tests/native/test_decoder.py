"""The gradient of a log-likelihood for the latents of a multilayer perceptron in C++, against autograd in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import ddvi_fast
from ddvi_fast import likelihoods, networks, priors, rng, testing
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.posteriors.score import LikelihoodGradient
from ddvi_fast.rng import Draws

# D, hidden widths, P: no hidden layer, single ones, below and above every block size, the digits' decoder.
SHAPES = ((3, (), 7), (1, (1,), 1), (2, (33, 17), 49), (20, (100,), 784), (5, (16, 300, 48), 97), (2, (256, 256), 64))
LIKELIHOODS = {
    "bernoulli": {},
    "gaussian": {"scale": 0.6},
    "gaussian of a scale for each dimension and a range": {"scale": 0.5, "value_range": (-1, 2)},
    "binomial": {"total": 3},
}


def likelihood_gradient(model: LatentVariableModel, x: Tensor, z: Tensor) -> Tensor | None:
    """The kernel's gradient, or None where it supports the model or the tensors not."""
    gradient = LikelihoodGradient.of(model, x)
    return None if gradient is None or not gradient.takes(z) else gradient(z)


def made(shape: tuple, likelihood: str = "bernoulli", activation: str = "relu") -> LatentVariableModel:
    latents, hidden, width = shape
    options, name = LIKELIHOODS[likelihood], likelihood.split()[0]
    options = options | ({"width": width} if "each" in likelihood else {})
    decoder = networks.MLP(latents, hidden, width, activation=activation, draws=Draws(1))
    model = LatentVariableModel(priors.make("gaussian", dim=latents), decoder, likelihoods.make(name, **options))
    if name == "gaussian":
        scale = model.likelihood.log_scale
        with torch.no_grad():
            scale.add_(0.3 * rng.normal(Draws(2), (1, scale.numel()), 0).view_as(scale))
    return model


def data_and_latents(model: LatentVariableModel, *rows: int) -> tuple[Tensor, Tensor]:
    """Data [N, P] and latents [.., N, D] of rows [.., N], each with a missing count where the likelihood knows them."""
    x = model.simulate(rows[-1], Draws(3)).x
    if isinstance(model.likelihood, likelihoods.Binomial) and x.numel():
        x[:, 0] = torch.nan
    return x, 2 * rng.normal(Draws(4), (*rows, model.decoder.inputs), 0)


def by_autograd(model: LatentVariableModel, x: Tensor, z: Tensor, dtype: torch.dtype) -> Tensor:
    with ddvi_fast.use_backend("reference"):
        point = z.to(dtype).requires_grad_()
        return torch.autograd.grad(copy.deepcopy(model).to(dtype).log_likelihood(x.to(dtype), point).sum(), point)[0]


@pytest.mark.parametrize("activation", networks.ACTIVATIONS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_gradient_of_autograd(isa, shape, likelihood, activation, poison_empty):
    model = made(shape, likelihood, activation)
    for rows in ((0,), (1,), (3, 23), (130,)):
        x, z = data_and_latents(model, *rows)
        found = likelihood_gradient(model, x, z)
        assert found is not None and not found.requires_grad
        testing.assert_within_budget(found, *(by_autograd(model, x, z, dtype) for dtype in (torch.float32, torch.float64)), floor=2e-6)


def test_rows_do_not_depend_on_each_other_nor_on_threads(isa, same_for_any_threads):
    model = made((5, (16, 300, 48), 97))
    x, z = data_and_latents(model, 3, 70)
    same_for_any_threads(lambda: [likelihood_gradient(model, x, z)], (1, 2, 5))
    whole = likelihood_gradient(model, x, z)
    assert torch.equal(likelihood_gradient(model, x[9:33], z[:, 9:33]), whole[:, 9:33])
    assert torch.equal(likelihood_gradient(model, x[7:8], z[1:, 7:8]), whole[1:, 7:8])
    broken = z.clone()
    broken[1, 5] = torch.nan
    found = likelihood_gradient(model, x, broken)
    assert found[1, 5].isnan().all() and torch.equal(found[:, 6:], whole[:, 6:]) and torch.equal(found[0], whole[0])


@pytest.mark.parametrize("layout", [testing.strided, lambda x: x[:, :1].expand_as(x), lambda x: x.mT.contiguous().mT])
def test_layouts(layout):
    model = made((4, (30,), 50))
    x, z = data_and_latents(model, 2, 9)
    for given in ((x, layout(z)), (layout(x), z)):
        assert torch.equal(likelihood_gradient(model, *given), likelihood_gradient(model, *(part.clone() for part in given)))
    images = likelihood_gradient(model, x.view(9, 5, 10), z)
    assert torch.equal(images, likelihood_gradient(model, x, z))
    assert torch.equal(likelihood_gradient(model, x[:1], z), likelihood_gradient(model, x[:1].expand(9, -1), z)), "one row of data for all latents"


class OwnDensity(LatentVariableModel):
    """A model with a log-likelihood of its own."""

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        return 2 * super().log_likelihood(x, z)


class OwnLikelihood(likelihoods.Bernoulli):
    """A likelihood with a density of its own."""

    def log_prob(self, output: Tensor, x: Tensor) -> Tensor:
        return 2 * super().log_prob(output, x)


def _unsupported() -> dict[str, LatentVariableModel]:
    plain, shape = made((4, (30,), 50)), (4, (30,), 50)
    hooked, scaled = made(shape), made(shape)
    hooked.decoder.register_forward_hook(lambda module, inputs, output: 2 * output)
    nn.utils.parametrizations.weight_norm(scaled.decoder.layers[0])
    return {
        "a model's own density": OwnDensity(plain.prior, plain.decoder, plain.likelihood),
        "a likelihood's own density": LatentVariableModel(plain.prior, plain.decoder, OwnLikelihood()),
        "another decoder": LatentVariableModel(plain.prior, nn.Sequential(plain.decoder), plain.likelihood),
        "hooks": hooked,
        "a parametrized weight": scaled,
    }


@pytest.mark.parametrize("name", _unsupported())
def test_it_leaves_other_models_alone(name):
    x, z = data_and_latents(made((4, (30,), 50)), 9)
    assert likelihood_gradient(_unsupported()[name], x, z) is None


def test_it_leaves_other_tensors_and_backends_alone():
    model = made((4, (30,), 50))
    x, z = data_and_latents(model, 9)
    assert likelihood_gradient(model, x, z) is not None
    assert likelihood_gradient(model, x[:4], z) is None and likelihood_gradient(model, x[:, :7], z) is None
    assert likelihood_gradient(copy.deepcopy(model).double(), x, z) is None and likelihood_gradient(model, x, z.double()) is None
    assert likelihood_gradient(model.to("meta"), x.to("meta"), z.to("meta")) is None
    model = made((4, (30,), 50))
    with ddvi_fast.use_backend("reference"):
        assert likelihood_gradient(model, x, z) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert likelihood_gradient(model, x, z) is None
