"""The diffusion posterior: its density, errors, and recovery of a known posterior."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from ddvi_fast import metrics, ops, priors, rng
from ddvi_fast._checks import InputError
from ddvi_fast.denoisers import ResidualMLP
from ddvi_fast.engine.engine import Engine
from ddvi_fast.networks import MLP
from ddvi_fast.objectives import DDVI, ELBO, Objective, Progress
from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.objectives.wake_sleep import Sleep
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws
from ddvi_fast.schedules import make
from tests.linear_gaussian import (
    EXACT_PRIOR,
    best_diagonal_gap,
    diffusion_posterior,
    exact_evidence,
    exact_posterior,
    gaussian_posterior,
    make_model,
    observations,
)


def train(objective: Objective, steps: int, batch: int, lr: float) -> None:
    """Fresh data at every step, cosine decay."""
    engine, model = Engine(objective, Optimisation(lr=lr, max_norm=None, factors={})), make_model()
    for step in range(steps):
        x = model.simulate(batch, Draws(77, step * batch)).x
        for update in objective.updates(x, Progress(step, steps), Draws(3, step * batch)):
            engine.step(update, Progress(step / steps, 1))


@pytest.fixture(scope="module")
def trained() -> Diffusion:
    posterior = diffusion_posterior(schedule=make("geometric", 10, start=0.1, end=3.0), learn_schedule=True, learn_variances=True)
    train(DDVI(ELBO(make_model(), posterior, KLSchedule("constant"), guide=EXACT_PRIOR), Sleep(0.1, 0.1, "squared")), steps=600, batch=128, lr=2e-2)
    return posterior


@pytest.mark.slow
def test_trained_posterior_has_the_exact_mean_and_covariance(trained):
    x = observations(50, seed=99)
    mean, covariance = exact_posterior(x)
    z = trained.sample(x, 1000).z.detach().double()
    assert (z.mean(0) - mean).square().mean().sqrt() < 0.05
    deviations = (z - z.mean(0)).flatten(0, 1)
    # The off-diagonal entry is -0.30: a diagonal posterior differs by seven times the tolerance.
    assert (deviations.T @ deviations / len(deviations) - covariance).abs().max() < 0.04


@pytest.mark.slow
def test_importance_weights_with_fewer_steps_are_unbiased_for_the_evidence(trained):
    # After training, since the weights of an untrained chain have no finite variance.
    x = observations(8, seed=98)
    trained.use_steps(5)
    ratio = (trained.log_weights(make_model(), x, 4000).detach().double() - exact_evidence(x)).exp()
    trained.use_steps(10)
    assert ratio.std(0).max() < 5
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / 4000**0.5).all()


def test_trained_gaussian_reaches_the_best_diagonal_one_and_no_more():
    posterior = gaussian_posterior()
    train(ELBO(make_model(), posterior, KLSchedule("constant"), guide=EXACT_PRIOR), steps=400, batch=128, lr=3e-2)
    x = observations(200, seed=99)
    weights = torch.stack([metrics.elbo(make_model(), posterior, x, 50, Draws(part)) for part in range(8)]).double()
    gap = float(exact_evidence(x).mean() - weights.mean())
    assert gap == pytest.approx(best_diagonal_gap(), abs=0.02)


@pytest.mark.parametrize("parametrisation", ["eps", "x0", "v", "mean"])
@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_log_ratio_against_normals_written_out(parametrisation, kind):
    schedule = make("linear", 5, start=0.1, end=0.5, kind=kind)
    posterior = diffusion_posterior(schedule=schedule, parametrisation=parametrisation, learn_variances=True).double()
    with torch.no_grad():
        posterior.log_variance_factors.copy_(torch.linspace(-0.5, 0.5, 5))
    x = observations(4).double()
    encoded = posterior.encode(x)
    path = posterior.latent_path(encoded, 3, Draws(2))
    table = posterior.coefficients().double()
    expected = -Normal(encoded.mean, (0.5 * encoded.log_var).exp()).log_prob(path[0]).sum(-1)
    for step in range(5):
        weight_state, weight_output, deviation, scale, beta = table[step]
        y, following = path[4 - step], path[5 - step]
        t = torch.full((3, 4), step)
        output = posterior.denoiser(y, encoded.context.expand(3, 4, 2), t)
        expected = expected + Normal(scale * following, beta.sqrt()).log_prob(y).sum(-1)
        expected = expected - Normal(weight_state * y + weight_output * output, deviation).log_prob(following).sum(-1)
    torch.testing.assert_close(posterior.log_ratio(encoded, path), expected)
    torch.testing.assert_close(posterior.sample(x, 3, Draws(2)).log_ratio, expected)


def test_learned_variances_scale_the_step_deviations():
    posterior = diffusion_posterior(learn_variances=True)
    before = posterior.coefficients()
    with torch.no_grad():
        posterior.log_variance_factors.fill_(2 * torch.log(torch.tensor(3.0)).item())
    after = posterior.coefficients()
    torch.testing.assert_close(after[:, 2], 3 * before[:, 2])
    assert torch.equal(after[:, [0, 1, 3, 4]], before[:, [0, 1, 3, 4]])


@pytest.mark.parametrize("number", [2, 3, 6])
def test_fewer_steps_still_give_a_density(number):
    posterior, x = diffusion_posterior(learn_variances=True), observations(4)
    posterior.use_steps(number)
    assert posterior.coefficients().shape == (number, 5)
    assert posterior.latent_path(posterior.encode(x), 1, Draws(0)).shape[0] == number + 1
    whole, coarse = make("cosine", 6), posterior.schedule
    torch.testing.assert_close(coarse.alpha_bars[-1], whole.alpha_bars[-1])
    path = posterior.latent_path(posterior.encode(x), 1, Draws(0))
    torch.testing.assert_close(posterior(x, path), posterior.sample(x, 1, Draws(0)).log_ratio, rtol=1e-4, atol=1e-4)


def test_a_deterministic_chain_samples_without_a_density():
    posterior, x = diffusion_posterior(eta=0.0), observations(3)
    z, log_ratio, _ = posterior.sample(x, 2)
    assert z.shape == (2, 3, 2) and log_ratio is None
    path = torch.zeros(7, 1, 3, 2)
    for bound in (lambda: posterior.log_weights(make_model(), x), lambda: ELBO(make_model(), posterior), lambda: posterior(x, path)):
        with pytest.raises(InputError, match=r"^posterior: expected one with a density, for a bound, got Diffusion: eta = 0[^\n]*no log_ratio$"):
            bound()


def test_denoising_loss_and_top_density_by_hand():
    posterior, x, z, draws = diffusion_posterior(), observations(4), torch.linspace(-1, 1, 8).view(4, 2), Draws(1)
    t = torch.tensor([0, 2, 4, 5])
    encoded, noise = posterior.encode(x), rng.normal(draws, (4, 2), rng.NOISE)
    signal = posterior.schedule.alpha_bars[t].float().unsqueeze(1)
    y = signal.sqrt() * z + (1 - signal).sqrt() * noise
    target = signal.sqrt() * noise - (1 - signal).sqrt() * z
    expected = (posterior.denoiser(y, encoded.context, t) - target).square().mean(-1)
    torch.testing.assert_close(posterior.denoising_loss(posterior.encode_context(x), z, t, draws), expected)
    y_T, _ = ops.add_noise(z, torch.full((4,), 5), posterior.schedule, draws=draws.importance(1))
    top = Normal(encoded.mean, (0.5 * encoded.log_var).exp()).log_prob(y_T).sum(-1)
    torch.testing.assert_close(posterior.top_log_prob(*posterior.encode_top(x), z, draws), top)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("schedule", {"schedule": make("cosine", 7)}),
        ("context_encoder", {"denoiser": ResidualMLP(2, 0, 6, 16)}),
        ("parametrisation", {"parametrisation": "increment"}),
        ("parametrisation", {"parametrisation": "eps", "coordinates": "encoder"}),
        ("coordinates", {"coordinates": "prio"}),
        ("prior", {"coordinates": "prior"}),
        ("prior", {"prior": priors.make("gaussian")}),
        ("eta", {"eta": 0.0, "learn_variances": True}),
        ("eta", {"eta": 0.0, "learn_schedule": True}),
        ("eta", {"eta": 1.5}),
        ("parametrisation", {"parametrisation": "epsilon"}),
        ("final_variance", {"final_variance": -1.0}),
    ],
)
def test_refuses_parts_that_do_not_fit(argument, options):
    parts = {"denoiser": ResidualMLP(2, 2, 6, 16), "schedule": make("cosine", 6), "context_encoder": MLP(3, [], 2)} | options
    with pytest.raises(InputError, match=rf"^{argument}: expected[^\n]*$"):
        Diffusion(encoder=MLP(3, [], 4), **parts)


def test_a_context_behind_the_encoders_output_is_that_of_a_network_of_its_own():
    encoder, x = MLP(3, [], 6, draws=Draws(1)), observations(5)
    first, last = MLP(3, [], 4), MLP(3, [], 2)
    with torch.no_grad():
        for part, rows in ((first, slice(0, 4)), (last, slice(4, 6))):
            part.layers[0].weight.copy_(encoder.layers[0].weight[rows])
            part.layers[0].bias.copy_(encoder.layers[0].bias[rows])
    parts = {"denoiser": ResidualMLP(2, 2, 6, 16, draws=Draws(2)), "schedule": make("cosine", 6)}
    shared, apart = Diffusion(encoder, **parts), Diffusion(first, context_encoder=last, **parts)
    for found, expected in zip(shared.sample(x, 3, Draws(4))[:2], apart.sample(x, 3, Draws(4))[:2], strict=True):
        torch.testing.assert_close(found, expected)
    short = Diffusion(first, **parts)  # its encoder has no outputs left for the context
    with pytest.raises(InputError, match=r"^context: expected[^\n]*$"):
        short.sample(x)


@pytest.mark.parametrize("number", [1, 7])
def test_refuses_a_number_of_steps_it_does_not_have(number):
    with pytest.raises(InputError, match=rf"^number: expected from 2 to 6, got {number}"):
        diffusion_posterior().use_steps(number)


def test_the_schedule_follows_its_betas_and_the_steps_in_use():
    posterior = diffusion_posterior()
    assert posterior.coefficients() is posterior.coefficients(), "the table is cached"
    posterior.betas.copy_(make("quadratic", 6).betas)
    assert torch.equal(posterior.coefficients(), make("quadratic", 6).coefficients("v"))
    posterior.use_steps(3)
    assert torch.equal(posterior.coefficients(), make("quadratic", 6).at(torch.tensor([1, 3, 5])).coefficients("v"))
    posterior.betas = make("cosine", 6).betas
    posterior.use_steps(6)
    assert torch.equal(posterior.coefficients(), make("cosine", 6).coefficients("v"))


def test_tables_asked_for_in_inference_mode_leave_training_alone():
    posterior, x = diffusion_posterior(), observations(3)
    with torch.inference_mode():
        posterior.sample(x, 2)
    posterior.sample(x, 2).log_ratio.sum().backward()
    assert all(parameter.grad is not None for parameter in posterior.denoiser.parameters())
