"""The densities of the examples of posteriordb against their reference draws."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast.inference import Support, Training, fit_posterior
from ddvi_fast.inference.compare import moment_errors
from examples import posteriordb

DRAWS = 4000


@pytest.fixture
def folder(shared_data):
    return shared_data("posteriordb/arK-arK.npz").parent


@pytest.mark.parametrize("name", posteriordb.NAMES)
def test_reference_draws_satisfy_steins_identity(folder, name) -> None:
    """For draws `u` of a density p, the mean of `(u - E u) grad log p(u)` is minus the identity and that of `grad log p(u)` is 0."""
    problem, (names, draws) = posteriordb.load(name, folder), posteriordb.reference(name, folder)
    support, draws = Support(problem.model.support), draws[:DRAWS]
    z = problem.model.parameters(draws)
    assert torch.allclose(problem.model.reported(z), draws, rtol=1e-3, atol=1e-3) and len(names) == draws.shape[1]
    u = support.unconstrain(z).double().requires_grad_()
    constrained, log_det = support.constrain(u)
    (gradient,) = torch.autograd.grad((problem.model.log_joint(problem.x, constrained) + log_det).sum(), u)
    centered = u.detach() - u.detach().mean(0)
    for value, expected in ((gradient, 0.0), (centered * gradient, -1.0)):
        error = (value.mean(0) - expected).abs() / (value.std(0) / len(value) ** 0.5)
        assert float(error.max()) < 5, (name, expected, error)


def test_the_posterior_of_a_regression_is_found(folder) -> None:
    problem, (_, draws) = posteriordb.load("kidiq-kidscore_interaction", folder), posteriordb.reference("kidiq-kidscore_interaction", folder)
    training = Training(steps=60, batch_size=64)
    posterior = fit_posterior(problem.model, problem.x, support=problem.model.support, training=training)
    mean, deviation = moment_errors(problem.model.reported(posterior.sample(4000)), draws)
    assert mean < 0.2 and deviation < 0.2
