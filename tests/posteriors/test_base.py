"""The interface of posteriors, tested for every family."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ddvi_fast._checks import InputError
from ddvi_fast.posteriors import Gaussian, Hamiltonian, HierarchicalIAF, PathIntegral
from ddvi_fast.rng import Draws
from tests.linear_gaussian import diffusion_posterior, make_model, observations
from tests.posteriors.families import WITH_DENSITY

# A fixed schedule, since a learned one has no doubly reparametrised gradient.
MAKERS = {make.__name__: partial(make, make_model()) for make in WITH_DENSITY} | {"diffusion": diffusion_posterior}
FAMILIES = pytest.mark.parametrize("make_posterior", MAKERS.values(), ids=MAKERS)


class Encoder(torch.nn.Module):
    """Returns what it is given."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, x, draws=None):
        return self.output


def test_an_encoder_that_is_no_network_of_the_data_is_refused(one_line):
    one_line(lambda: Gaussian(torch.nn.Module(), 2), r"^encoder: expected a module with forward\(x, draws\)")
    for output in ((torch.zeros(5, 4),), None, torch.zeros(5, 4).numpy()):
        one_line(lambda output=output: Gaussian(Encoder(output), 2).sample(observations(5)), "^encoder: expected a tensor")


@FAMILIES
def test_shapes_and_same_draws_same_bits(make_posterior):
    posterior, x = make_posterior(), observations(5)
    first, second = posterior.sample(x, 4, Draws(7, 30)), posterior.sample(x, 4, Draws(7, 30))
    assert first.z.shape == (4, 5, 2) and first.log_ratio.shape == (4, 5)
    assert torch.equal(first.z, second.z) and torch.equal(first.log_ratio, second.log_ratio)
    assert not torch.equal(first.z, posterior.sample(x, 4, Draws(8, 30)).z)


@FAMILIES
def test_rows_get_their_samples_in_any_batch(make_posterior):
    posterior, x, draws = make_posterior(), observations(9), Draws(7, 30)
    whole = posterior.sample(x, 3, draws)
    parts = [posterior.sample(x[:4], 3, draws), posterior.sample(x[4:], 3, draws.advance(4))]
    # Matrix products of different heights may round differently; the noise is the same to the bit.
    torch.testing.assert_close(torch.cat([part.z for part in parts], 1), whole.z, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat([part.log_ratio for part in parts], 1), whole.log_ratio, rtol=1e-5, atol=1e-5)


@FAMILIES
def test_importance_samples_stand_at_their_place(make_posterior):
    posterior, x = make_posterior(), observations(3)
    whole, later = posterior.sample(x, 5, Draws(1)), posterior.sample(x, 2, Draws(1).importance(3))
    torch.testing.assert_close(later.z, whole.z[3:], rtol=1e-5, atol=1e-5)


@FAMILIES
def test_log_ratio_of_the_path_is_the_samplers(make_posterior):
    posterior, x, draws = make_posterior().double(), observations(6).double(), Draws(3)
    z, log_ratio, log_prior_ratio = posterior.sample(x, 4, draws)
    assert log_prior_ratio is None  # the posterior is in latent coordinates
    path = posterior.latent_path(posterior.encode(x), 4, draws)
    assert torch.equal(path[-1], z)
    torch.testing.assert_close(posterior(x, path), log_ratio)
    torch.testing.assert_close(posterior.frozen_log_ratio(x, path), log_ratio)


@FAMILIES
def test_frozen_log_ratio_reaches_the_path_alone(make_posterior):
    posterior, x = make_posterior(), observations(3)
    path = posterior.latent_path(posterior.encode(x), 2, Draws(0)).detach().requires_grad_()
    posterior.frozen_log_ratio(x, path).sum().backward()
    assert path.grad.abs().sum() > 0
    # Parts of the target keep their gradient: an auxiliary model and its context, or the uncontrolled motion.
    target = {
        HierarchicalIAF: ("reverse.", "context_encoder."),
        Hamiltonian: ("reverse.", "context_encoder.", "log_step_sizes"),
        PathIntegral: ("log_scales",),
    }
    reached = [name for name, parameter in posterior.named_parameters() if parameter.grad is not None]
    assert all(name.startswith(target.get(type(posterior), ())) for name in reached)


@FAMILIES
def test_refuses_bad_requests(make_posterior):
    posterior = make_posterior()
    for x, samples, argument in ((torch.zeros(3), 1, "x"), (torch.zeros(2, 3, dtype=torch.int64), 1, "x"), (torch.zeros(2, 3), 0, "num_samples")):
        with pytest.raises(InputError, match=rf"^{argument}: expected"):
            posterior.sample(x, samples)


@FAMILIES
def test_empty_batch(make_posterior):
    z, log_ratio, _ = make_posterior().sample(torch.zeros(0, 3), 4)
    assert z.shape == (4, 0, 2) and log_ratio.shape == (4, 0)
