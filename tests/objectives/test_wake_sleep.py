"""Wake-sleep objective: terms, parameter groups, gradients, draws."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import ops, rng
from ddvi_fast._checks import InputError
from ddvi_fast.objectives import DDVI, ELBO, IWAE, Progress
from ddvi_fast.objectives.pairs import Sleep, uniform_timesteps
from ddvi_fast.rng import Draws
from tests.linear_gaussian import diffusion_posterior, gaussian_posterior, make_model, observations

END = Progress(9, 10)


def objective(sleep: Sleep, wake=ELBO) -> DDVI:
    return DDVI(wake(make_model().requires_grad_(True), diffusion_posterior()), sleep)


def sleep_values(ddvi: DDVI, x: torch.Tensor, draws: Draws) -> dict[str, torch.Tensor]:
    return ddvi.pair_fit.terms(x, draws).values


def test_joint_update_adds_weighted_terms():
    ddvi, x, draws = objective(Sleep(0.3, 0.4, decoder=0.5)), observations(5), Draws(1, 10)
    (update,) = ddvi.updates(x, END, draws)
    terms = update.terms()
    assert update.group == "wake" and list(ddvi.parameter_groups()) == ["wake"]
    assert terms.weights == {"reconstruction": 1.0, "kl": 1.0, "sleep": 0.3, "sleep_top": 0.4, "sleep_decoder": 0.5}
    assert all(value.shape == (5,) for value in terms.values.values())
    expected = ddvi.wake.terms(x, END, draws).total() + ddvi.pair_fit.terms(x, draws).total()
    torch.testing.assert_close(terms.total(), expected)


def test_sleep_terms_are_the_posteriors_on_fantasies():
    ddvi, x, draws = objective(Sleep(0.3, 0.4, loss="huber", data=False)), observations(5), Draws(1, 10)
    values = sleep_values(ddvi, x, draws)
    z, fantasies = ddvi.wake.model.simulate(5, draws)[:2]
    t = uniform_timesteps(draws, 5, 6, "cpu")
    encoded = ddvi.posterior.encode(fantasies, draws)
    torch.testing.assert_close(values["sleep"], ddvi.posterior.denoising_loss(encoded.context, z, t, draws, "huber"))
    torch.testing.assert_close(values["sleep_top"], -ddvi.posterior.top_log_prob(encoded.mean, encoded.log_var, z, draws))


def test_the_decoders_loss_alone_is_not_left_out():
    (update,) = objective(Sleep(0.0, 0.0, data=True, decoder=2.0)).updates(observations(3), END, Draws(0))
    assert update.terms().weights == {"reconstruction": 1.0, "kl": 1.0, "sleep_decoder": 2.0}


@pytest.mark.parametrize("loss", ["squared", "kl"])
def test_many_timesteps_are_the_mean_of_their_rows(loss):
    ddvi, x, draws = objective(Sleep(1.0, 0.0, loss=loss, timesteps=3, data=False)), observations(5), Draws(1, 10)
    z, fantasies = ddvi.wake.model.simulate(5, draws)[:2]
    context, own = ddvi.posterior.encode(fantasies, draws).context, draws.spread(3)
    t = uniform_timesteps(own, 15, 6, torch.device("cpu"))
    rows = (context.repeat_interleave(3, 0), z.repeat_interleave(3, 0), t, own)
    each = ddvi.posterior.step_divergence(*rows) if loss == "kl" else ddvi.posterior.denoising_loss(*rows)
    torch.testing.assert_close(sleep_values(ddvi, x, draws)["sleep"], each.view(5, 3).mean(1))


def test_alternating_updates_have_groups_of_their_own():
    ddvi, x = objective(Sleep(0.3, 0.4, alternating=True, num_updates=3)), observations(5)
    updates = list(ddvi.updates(x, END, Draws(1)))
    assert [update.group for update in updates] == ["wake", "sleep", "sleep", "sleep"]
    assert list(updates[0].terms().values) == ["reconstruction", "kl"]
    groups = ddvi.parameter_groups()
    assert {id(p) for p in groups["sleep"]} == {id(p) for p in ddvi.posterior.parameters()}
    assert {id(p) for p in ddvi.wake.model.decoder.parameters()} < {id(p) for p in groups["wake"]}
    values = [update.terms().values["sleep"] for update in updates[1:]]
    assert not torch.equal(values[0], values[1]) and not torch.equal(values[1], values[2])


@pytest.mark.parametrize("alternating", [False, True])
def test_without_weights_only_the_wake_bound_is_left(alternating):
    ddvi, x = objective(Sleep(0.0, 0.0, alternating=alternating, decoder=0.0, classes=0.0)), observations(4)
    (update,) = ddvi.updates(x, END, Draws(0))
    assert list(update.terms().values) == ["reconstruction", "kl"]
    torch.testing.assert_close(update.terms().total(), ddvi.wake.terms(x, END, Draws(0)).total(), rtol=0, atol=0)
    assert list(ddvi.parameter_groups()) == ["wake"]


@pytest.mark.parametrize(
    ("sleep", "term"), [(Sleep(0.5, 0.0, decoder=0.0), "sleep"), (Sleep(0.0, 0.5, decoder=0.0), "sleep_top"), (Sleep(0.0, 0.0), "sleep_decoder")]
)
def test_one_sleep_term_alone(sleep, term):
    assert list(sleep_values(objective(sleep), observations(3), Draws(0))) == [term]


def test_iwae_as_the_wake_bound():
    (update,) = objective(Sleep(0.3, 0.4), wake=IWAE).updates(observations(3), END, Draws(0))
    assert list(update.terms().values) == ["bound", "sleep", "sleep_top", "sleep_decoder"]


@pytest.mark.parametrize("data", [False, True])
def test_images_keep_their_shape_for_the_encoders(data, monkeypatch):
    ddvi, seen = objective(Sleep(1.0, 0.0, data=data)), []
    encode = ddvi.posterior.encode
    monkeypatch.setattr(ddvi.posterior, "encode", lambda x, draws: seen.append(x.shape) or encode(x.flatten(1), draws))
    (update,) = ddvi.updates(observations(4).view(4, 3, 1), END, Draws(0))
    update.terms()
    assert seen == [(4, 3, 1)] * (1 if data else 2)  # data are encoded once for the bound and the pairs


def fantasies(ddvi: DDVI, x, draws: Draws, monkeypatch) -> list:
    """All (z, noise source) pairs that one batch's sleep updates are given."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(ddvi.posterior, "denoising_loss", lambda x, z, t, draws, loss: seen.append((z, draws)) or z.sum(-1))
        for update in ddvi.updates(x, END, draws):
            update.terms()
    return seen


def test_fantasies_of_two_batches_share_nothing(monkeypatch):
    ddvi, x = objective(Sleep(1.0, 1.0, "squared", alternating=True, num_updates=2, batch_factor=3)), observations(4)
    seen = fantasies(ddvi, x, Draws(0, 0), monkeypatch) + fantasies(ddvi, x, Draws(0, 4), monkeypatch)
    latents = torch.cat([z for z, _ in seen])
    assert len(latents) == 2 * 2 * 12
    assert len(latents.unique(dim=0)) == len(latents)


def test_noise_of_the_top_is_not_that_of_another_update(monkeypatch):
    ddvi = objective(Sleep(1.0, 1.0, "squared", alternating=True, num_updates=4))
    sources = [draws for _, draws in fantasies(ddvi, observations(4), Draws(0), monkeypatch)]
    tops = [draws.importance(1) for draws in sources]  # the draws of `top_log_prob`
    assert len({*sources, *tops}) == 8


def test_fantasies_do_not_depend_on_the_split():
    ddvi, x, draws = objective(Sleep(1.0, 1.0, batch_factor=2)), observations(6), Draws(3, 12)
    whole = sleep_values(ddvi, x, draws)
    parts = [sleep_values(ddvi, x[:2], draws), sleep_values(ddvi, x[2:], draws.advance(2))]
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, rtol=1e-4, atol=1e-5)


def test_timesteps_are_uniform_and_stand_at_their_draws():
    t = uniform_timesteps(Draws(5), 12_000, 6, torch.device("cpu"))
    counts = torch.bincount(t, minlength=6).double()
    assert len(counts) == 6
    assert ((counts - 2000).abs() < 4 * (12_000 * (1 / 6) * (5 / 6)) ** 0.5).all()
    assert torch.equal(t[100:], uniform_timesteps(Draws(5, 100), 11_900, 6, torch.device("cpu")))


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("sleep.num_updates", {"num_updates": 3}),
        ("sleep.num_updates", {"num_updates": 0, "alternating": True}),
        ("sleep.batch_factor", {"batch_factor": 0}),
        ("sleep.weight", {"weight": -0.1}),
        ("sleep.loss", {"loss": "hubr"}),
        ("sleep.data", {"data": True, "alternating": True}),
        ("sleep.batch_factor", {"data": True, "batch_factor": 2}),
        ("sleep.candidates", {"candidates": 0}),
        ("sleep.timesteps", {"timesteps": 0}),
        ("sleep.decoder", {"decoder": -1.0}),
        ("sleep.classes", {"classes": -1.0}),
    ],
)
def test_refuses_unusable_options(argument, options):
    with pytest.raises(InputError, match=rf"^{argument}: expected[^\n]*$"):
        Sleep(**options)


def test_refuses_the_top_of_a_chain_without_one():
    with pytest.raises(InputError, match=r"^sleep\.top_weight: expected 0 without a chain, got 'Gaussian'"):
        DDVI(ELBO(make_model(), gaussian_posterior()))


def test_the_exact_divergence_is_that_of_the_joint_densities():
    """Summed over its steps it is `-E_r log q(y_{0:T-1} | y_T, x)`: Monte Carlo with torch.distributions, at a trained step variance."""
    posterior = diffusion_posterior(3, learn_variances=True).double()
    with torch.no_grad():
        posterior.log_variance_factors.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(0))
    rows, schedule = 4000, posterior.schedule
    z = torch.tensor([[0.3, -0.7]], dtype=torch.float64).expand(rows, 2)
    encoded = posterior.encode(observations(1).double().expand(rows, -1))
    table = posterior.coefficients().double()
    for step in (0, 1, schedule.num_steps - 1):
        t = torch.full((rows,), step)
        exact = posterior.step_divergence(encoded.context, z, t, Draws(1)) / schedule.num_steps
        y, _ = ops.add_noise(z, t, schedule, draws=Draws(2))
        weight_z, weight_y = (column[step] for column in schedule.posterior_mean_weights())
        noise = rng.normal(Draws(3), (rows, 2), rng.START, dtype=torch.float64)
        following = weight_z * z + weight_y * y + schedule.posterior_variances[step].sqrt() * noise
        mean = table[step, 0] * y + table[step, 1] * posterior.denoiser(y, encoded.context, t)
        sampled = -torch.distributions.Normal(mean, table[step, 2]).log_prob(following).sum(-1)
        error = (exact.var() / rows + sampled.var() / rows).sqrt().detach()
        assert abs(float((exact.mean() - sampled.mean()).detach())) < 4 * float(error)


def test_the_exact_divergence_trains_variances_but_not_the_schedule():
    posterior = diffusion_posterior(3, learn_variances=True, learn_schedule=True)
    ddvi = DDVI(ELBO(make_model(), posterior), Sleep(1.0, 1.0, "kl", data=False))
    ddvi.pair_fit.terms(observations(8), Draws(0)).total().backward()
    assert posterior.log_variance_factors.grad.abs().sum() > 0
    denoiser_gradient = torch.cat([parameter.grad.flatten() for parameter in posterior.denoiser.parameters()])
    assert bool(torch.isfinite(denoiser_gradient).all()) and denoiser_gradient.abs().sum() > 0
