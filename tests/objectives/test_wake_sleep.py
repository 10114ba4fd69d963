"""Wake-sleep objective: terms, parameter groups, gradients, draws."""

from __future__ import annotations

import pytest
import torch

from ddvi_fast import ops, rng
from ddvi_fast._checks import InputError
from ddvi_fast.distributed import Part, part_of_batch
from ddvi_fast.objectives import DDVI, ELBO, IWAE, Progress
from ddvi_fast.objectives.wake_sleep import Sleep, uniform_timesteps
from ddvi_fast.rng import Draws
from tests.linear_gaussian import BIAS, SCALE, WEIGHT, diffusion_posterior, exact_posterior, gaussian_posterior, make_model, observations

END = Progress(9, 10)


def objective(sleep: Sleep, wake=ELBO) -> DDVI:
    return DDVI(wake(make_model().requires_grad_(True), diffusion_posterior()), sleep)


def test_joint_update_adds_weighted_terms():
    ddvi, x, draws = objective(Sleep(0.3, 0.4)), observations(5), Draws(1, 10)
    (update,) = ddvi.updates(x, END, draws)
    terms = update.terms()
    assert update.group == "wake" and list(ddvi.parameter_groups()) == ["wake"]
    assert terms.weights == {"reconstruction": 1.0, "kl": 1.0, "sleep": 0.3, "sleep_top": 0.4}
    assert all(value.shape == (5,) for value in terms.values.values())
    expected = ddvi.wake.wake_terms(x, END, draws).total() + ddvi.sleep_terms(x, draws).total()
    torch.testing.assert_close(terms.total(), expected)


def test_sleep_terms_are_the_posteriors_on_fantasies():
    ddvi, x, draws = objective(Sleep(0.3, 0.4, loss="huber")), observations(5), Draws(1, 10)
    terms = ddvi.sleep_terms(x, draws)
    z, fantasies = ddvi.wake.model.simulate(5, draws)[:2]
    t = uniform_timesteps(draws, 5, 6, "cpu")
    torch.testing.assert_close(
        terms.values["sleep"], ddvi.posterior.denoising_loss(ddvi.posterior.encode_context(fantasies, draws), z, t, draws, "huber")
    )
    torch.testing.assert_close(terms.values["sleep_top"], -ddvi.posterior.top_log_prob(*ddvi.posterior.encode_top(fantasies, draws), z, draws))


def test_fine_steps_of_a_share_of_the_fantasies_see_anothers_context(monkeypatch):
    plain, rows, draws = objective(Sleep(1.0, 0.0)), 4000, Draws(1, 10)
    schedule = plain.posterior.schedule
    ratios = (schedule.noise_variances / schedule.alpha_bars).sqrt()
    limit = float(ratios[1:3].mean())  # between the second and the third step
    contexts = {}
    for mixed in (0.0, 0.3, 1.0):
        ddvi, x = objective(Sleep(1.0, 0.0, "squared", mixed=mixed, mixed_noise=limit)), observations(5).repeat(rows // 5, 1)
        with monkeypatch.context() as patch:
            keep = lambda context, z, t, draws, loss, mixed=mixed: contexts.__setitem__(mixed, (context, t)) or z.sum(-1)  # noqa: E731
            patch.setattr(ddvi.posterior, "denoising_loss", keep)
            ddvi.sleep_terms(x, draws)
    own, fine = contexts[0.0][0], contexts[0.0][1] < 2
    changed = {mixed: (contexts[mixed][0] != own).any(-1) for mixed in (0.3, 1.0)}
    assert not changed[0.3][~fine].any() and torch.equal(changed[1.0], fine)
    share, error = float(changed[0.3][fine].float().mean()), (0.3 * 0.7 / int(fine.sum())) ** 0.5
    assert abs(share - 0.3) < 4 * error


def test_data_come_with_latents_of_their_exact_posterior(monkeypatch):
    rows, seen = 4000, []
    ddvi, x = objective(Sleep(1.0, 0.0, "squared", data=0.75, candidates=2)), observations(2).repeat_interleave(rows // 2, 0)
    monkeypatch.setattr(ddvi.posterior, "encode_context", lambda x, draws: seen.append(x))
    monkeypatch.setattr(ddvi.posterior, "denoising_loss", lambda context, z, t, draws, loss: seen.append(z) or z.sum(-1))
    ddvi.sleep_terms(x, Draws(4, 100))
    (shown, z), (means, covariance) = seen, exact_posterior(x[:: rows // 2])
    of_data = (shown == x).all(1)
    assert abs(float(of_data.double().mean()) - 0.75) < 4 * (0.75 * 0.25 / rows) ** 0.5
    for number in range(2):
        own = z[rows // 2 * number : rows // 2 * (number + 1)][of_data[rows // 2 * number : rows // 2 * (number + 1)]].double()
        # Latents of the same datum share their candidates, of which about one in five has a large weight.
        error = (covariance.diagonal() * (1 / len(own) + 5 / (2 * rows))).sqrt()
        assert ((own.mean(0) - means[number]).abs() < 4 * error).all()
        assert ((own.T.cov() - covariance).abs() < 0.1 * covariance.diagonal().max()).all()


def test_the_decoder_learns_the_evidence_from_those_latents():
    """Its gradient, averaged over many draws, is that of the exact log-evidence of a linear-Gaussian model."""
    ddvi, x = objective(Sleep(1.0, 0.0, data=1.0, decoder=2.0, candidates=50)), observations(2).repeat_interleave(20, 0)
    bias = ddvi.wake.model.decoder.layers[0].bias
    gradients = []
    for number in range(100):
        terms = ddvi.sleep_terms(x, Draws(number))
        assert terms.weights["sleep_decoder"] == 2.0
        gradients.append(torch.autograd.grad(terms.values["sleep_decoder"].mean(), bias)[0])
    weight = torch.tensor(WEIGHT)
    covariance = weight @ weight.mT + SCALE**2 * torch.eye(3)
    exact = -torch.linalg.solve(covariance, (observations(2) - torch.tensor(BIAS)).mean(0))
    sampled, error = torch.stack(gradients).mean(0), torch.stack(gradients).std(0) / 10
    assert ((sampled - exact).abs() < 4 * error + 0.01 * exact.abs()).all()


def test_the_decoders_loss_alone_is_not_left_out():
    (update,) = objective(Sleep(0.0, 0.0, data=1.0, decoder=2.0)).updates(observations(3), END, Draws(0))
    assert update.terms().weights == {"reconstruction": 1.0, "kl": 1.0, "sleep_decoder": 2.0}


@pytest.mark.parametrize("loss", ["squared", "kl"])
def test_many_timesteps_are_the_mean_of_their_rows(loss):
    ddvi, x, draws = objective(Sleep(1.0, 0.0, loss=loss, timesteps=3)), observations(5), Draws(1, 10)
    z, fantasies = ddvi.wake.model.simulate(5, draws)[:2]
    context, own = ddvi.posterior.encode_context(fantasies, draws), draws.spread(3)
    t = uniform_timesteps(own, 15, 6, torch.device("cpu"))
    rows = (context.repeat_interleave(3, 0), z.repeat_interleave(3, 0), t, own)
    each = ddvi.posterior.step_divergence(*rows) if loss == "kl" else ddvi.posterior.denoising_loss(*rows)
    torch.testing.assert_close(ddvi.sleep_terms(x, draws).values["sleep"], each.view(5, 3).mean(1))


def test_data_replace_fantasies_in_every_process_as_in_one():
    sleep = Sleep(1.0, 1.0, batch_factor=2, data=0.6, decoder=1.0, timesteps=3, mixed=0.5, mixed_noise=10.0)
    ddvi, x, draws = objective(sleep), observations(6), Draws(3, 12)
    whole, parts = ddvi.sleep_terms(x, draws).values, []
    for number in range(3):
        with part_of_batch(Part(number, 3)):
            parts.append(ddvi.sleep_terms(x[2 * number : 2 * number + 2], draws.advance(2 * number)).values)
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value, rtol=1e-4, atol=1e-5)


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
    ddvi, x = objective(Sleep(0.0, 0.0, alternating=alternating)), observations(4)
    (update,) = ddvi.updates(x, END, Draws(0))
    assert list(update.terms().values) == ["reconstruction", "kl"]
    torch.testing.assert_close(update.terms().total(), ddvi.wake.wake_terms(x, END, Draws(0)).total(), rtol=0, atol=0)
    assert list(ddvi.parameter_groups()) == ["wake"]


@pytest.mark.parametrize(("sleep", "term"), [(Sleep(0.5, 0.0), "sleep"), (Sleep(0.0, 0.5), "sleep_top")])
def test_one_sleep_term_alone(sleep, term):
    assert list(objective(sleep).sleep_terms(observations(3), Draws(0)).values) == [term]


def test_sleep_gives_the_decoder_no_gradient():
    ddvi = objective(Sleep(1.0, 1.0))
    ddvi.sleep_terms(observations(8), Draws(0)).total().backward()
    assert all(parameter.grad is None for parameter in ddvi.wake.model.parameters())
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in ddvi.posterior.parameters())


def test_iwae_as_the_wake_bound():
    (update,) = objective(Sleep(0.3, 0.4), wake=IWAE).updates(observations(3), END, Draws(0))
    assert list(update.terms().values) == ["bound", "sleep", "sleep_top"]


def test_images_keep_their_shape_in_fantasies():
    ddvi, seen = objective(Sleep(1.0, 0.0)), []
    encode = ddvi.posterior.encode_context
    ddvi.posterior.encode_context = lambda x, draws: seen.append(x.shape) or encode(x, draws)
    ddvi.sleep_terms(observations(4).view(4, 3, 1), Draws(0))
    assert seen == [(4, 3, 1)]


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
    ddvi, x, draws = objective(Sleep(1.0, 1.0, batch_factor=2, mixed=0.5, mixed_noise=10.0)), observations(6), Draws(3, 12)
    whole = ddvi.sleep_terms(x, draws).values
    parts = [ddvi.sleep_terms(x[:2], draws).values, ddvi.sleep_terms(x[2:], draws.advance(2)).values]
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
        ("sleep.data", {"data": 1.1}),
        ("sleep.candidates", {"candidates": 0}),
        ("sleep.timesteps", {"timesteps": 0}),
        ("sleep.decoder", {"decoder": 1.0}),
        ("sleep.decoder", {"decoder": 1.0, "data": 0.5, "alternating": True}),
    ],
)
def test_refuses_unusable_options(argument, options):
    with pytest.raises(InputError, match=rf"^{argument}: expected[^\n]*$"):
        Sleep(**options)


def test_refuses_another_family():
    with pytest.raises(InputError, match=r"^posterior: expected a Diffusion posterior, got 'Gaussian'"):
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
    ddvi = DDVI(ELBO(make_model(), posterior), Sleep(1.0, 1.0, "kl"))
    ddvi.sleep_terms(observations(8), Draws(0)).total().backward()
    assert posterior.log_variance_factors.grad.abs().sum() > 0
    denoiser_gradient = torch.cat([parameter.grad.flatten() for parameter in posterior.denoiser.parameters()])
    assert bool(torch.isfinite(denoiser_gradient).all()) and denoiser_gradient.abs().sum() > 0
