"""Tests of schedules and coefficient tables against golden values, textbook formulas, Bayes' rule and Monte Carlo."""

import pytest
import torch

from ddvi_fast import rng, schedules
from ddvi_fast.rng import Draws
from ddvi_fast.testing import assert_close

NAMES = ("constant", "linear", "quadratic", "sigmoid", "cosine")
EPS32 = 2.0**-24
ETAS = {"increment": (1.0,)}  # it has no other


@pytest.fixture(params=[(name, kind) for name in NAMES for kind in ("vp", "ve")], ids="-".join)
def schedule(request):
    name, kind = request.param
    return schedules.make(name, 12, kind=kind)


@pytest.mark.parametrize("steps", [5, 20, 40, 100])
@pytest.mark.parametrize("name", ["linear", "quadratic", "sigmoid", "cosine"])
def test_golden_betas(golden, name, steps):
    # A cosine beta is 1 - (ratio near 1), so the float32 golden value carries an absolute error of a few roundings of 1.
    atol = 10 * EPS32 if name == "cosine" else 0.0
    assert_close(schedules.make(name, steps).betas, torch.tensor(golden[f"betas/{name}/{steps}"]), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("key", ["posterior_variance", "posterior_mean_weight_x0", "posterior_mean_weight_xt"])
def test_golden_posterior(golden, key):
    def values(schedule):
        names = ("posterior_mean_weight_x0", "posterior_mean_weight_xt", "posterior_variance")
        return dict(zip(names, (*schedule.posterior_mean_weights(), schedule.posterior_variances), strict=True))[key]

    expected = torch.tensor(golden[f"uncond/{key}"])
    same_precision = schedules.NoiseSchedule(torch.tensor(golden["betas/linear/20"]))
    # The absolute 1e-12 is for the weight of y_1 at step 1, which is 0.
    assert_close(values(same_precision), expected, rtol=1e-5, atol=1e-12)
    # In float32 1 - abar_t loses eps / (1 - abar_t) of its relative accuracy, 1e-3 at step 1 where it is 1e-4. The float64
    # table does not, so it may differ from golden by that much: here with 3 roundings for each of two such factors.
    exact = schedules.make("linear", 20)
    noise = exact.noise_variances
    budget = 6 * EPS32 * (1 / noise + torch.cat((1 / noise[:1], 1 / noise[:-1])))
    assert ((values(exact) - expected).abs() <= budget * expected.abs() + 1e-12).all()


@pytest.mark.parametrize("name", NAMES)
def test_ancestral_eps_is_the_ddpm_mean(name):
    """mean = (y - beta / sqrt(1 - abar) eps) / sqrt(alpha) (Ho et al. 2020, equation 11)."""
    schedule = schedules.make(name, 30)
    alpha, abar = 1 - schedule.betas, torch.cumprod(1 - schedule.betas, 0)
    weight_state, weight_output = schedule.prediction_weights("eps", 1.0)
    assert_close(weight_state, alpha.rsqrt(), rtol=1e-12)
    assert_close(weight_output, -schedule.betas / (1 - abar).sqrt() * alpha.rsqrt(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_all_parametrisations_give_the_same_mean(schedule, eta):
    shape = (schedule.num_steps, 3)
    y, eps = (rng.normal(Draws(seed), shape, rng.NOISE, dtype=torch.float64) for seed in (1, 2))
    signal, noise = schedule.alpha_bars.sqrt().unsqueeze(1), schedule.noise_variances.sqrt().unsqueeze(1)
    x0 = (y - noise * eps) / signal

    def mean(parametrisation, output):
        weight_state, weight_output = (weight.unsqueeze(1) for weight in schedule.prediction_weights(parametrisation, eta))
        return weight_state * y + weight_output * output

    expected = mean("eps", eps)
    assert_close(mean("x0", x0), expected, rtol=1e-9, atol=1e-9)
    assert_close(mean("v", signal * eps - noise * x0), expected, rtol=1e-9, atol=1e-9)
    assert_close(mean("mean", expected), expected, rtol=0)
    assert_close(mean("increment", expected - schedule.alphas.sqrt().unsqueeze(1) * y), expected, rtol=1e-9, atol=1e-9)


def test_true_prediction_gives_the_posterior_mean(schedule):
    """With the true prediction, the ancestral chain's mean is that of r(y_{t-1} | y_t, y_0) for every parametrisation."""
    t = torch.arange(schedule.num_steps)
    y0, eps = (rng.normal(Draws(seed), (schedule.num_steps, 3), rng.NOISE, dtype=torch.float64) for seed in (1, 2))
    y = schedule.alpha_bars.sqrt().unsqueeze(1) * y0 + schedule.noise_variances.sqrt().unsqueeze(1) * eps
    weight_y0, weight_y = (weight.unsqueeze(1) for weight in schedule.posterior_mean_weights())
    for parametrisation in schedules.PARAMETRISATIONS:
        weight_state, weight_output = (weight.unsqueeze(1) for weight in schedule.prediction_weights(parametrisation, 1.0))
        output = schedule.target(parametrisation, y0, eps, t)
        assert_close(weight_state * y + weight_output * output, weight_y0 * y0 + weight_y * y, rtol=1e-9, atol=1e-9, name=parametrisation)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_any_eta_keeps_the_marginals(schedule, eta):
    """With the true noise, y_t ~ r(y_t | y_0) goes to y_{t-1} ~ r(y_{t-1} | y_0) (Song et al. 2021, lemma 1)."""
    weight_state, weight_output = schedule.prediction_weights("eps", eta)
    signal, noise = schedule.alpha_bars.sqrt(), schedule.noise_variances.sqrt()
    # y_t = signal y_0 + noise eps, so y_{t-1} = (A signal) y_0 + (A noise + B) eps + s xi.
    variance = (weight_state * noise + weight_output).square() + eta**2 * schedule.posterior_variances
    assert_close((weight_state * signal)[1:], signal[:-1], rtol=1e-10)
    assert_close(variance[1:], schedule.noise_variances[:-1], rtol=1e-8)


def test_posterior_follows_from_bayes(schedule):
    """r(y' | y, y0) r(y | y0) = r(y | y') r(y' | y0) at arbitrary points, with densities written out by torch."""
    normal, (weight_y0, weight_y) = torch.distributions.Normal, schedule.posterior_mean_weights()
    y0, before, y = torch.tensor([0.7, -0.4, 1.1], dtype=torch.float64)
    posterior = normal(weight_y0 * y0 + weight_y * y, schedule.posterior_variances.sqrt(), validate_args=False).log_prob(before)[1:]
    forward = normal(schedule.alphas.sqrt() * before, schedule.betas.sqrt()).log_prob(y)[1:]
    marginal = normal(schedule.alpha_bars.sqrt() * y0, schedule.noise_variances.sqrt())
    # Small variances make these log-densities large, so their difference is judged on their own scale.
    difference = posterior + marginal.log_prob(y)[1:] - forward - marginal.log_prob(before)[:-1]
    assert (difference.abs() < 1e-7 * (posterior.abs() + forward.abs() + 1)).all()


@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_marginals_by_monte_carlo(kind):
    """Noising step by step gives the mean and variance that `alpha_bars` and `noise_variances` state."""
    schedule, count = schedules.make("linear", 4, kind=kind, start=0.1, end=0.4), 40_000
    y = torch.full((count,), 1.5, dtype=torch.float64)
    for i in range(schedule.num_steps):
        noise = rng.normal(Draws(3), (count, 1), rng.CHAIN + i, dtype=torch.float64).squeeze(1)
        y = schedule.alphas[i].sqrt() * y + schedule.betas[i].sqrt() * noise
        variance = schedule.noise_variances[i]
        assert (y.mean() - 1.5 * schedule.alpha_bars[i].sqrt()).abs() < 4 * (variance / count).sqrt()
        assert (y.var() - variance).abs() < 4 * variance * (2 / count) ** 0.5


def test_table_columns(schedule):
    table = schedule.coefficients("v", 0.5, final_variance=0.03, dtype=torch.float64)
    weight_state, weight_output = schedule.prediction_weights("v", 0.5)
    variances = 0.25 * schedule.posterior_variances
    variances[0] = 0.03
    expected = torch.stack((weight_state, weight_output, variances.sqrt(), schedule.alphas.sqrt(), schedule.betas), 1)
    assert_close(table, expected, rtol=1e-12)
    assert schedule.coefficients().dtype == torch.float32
    assert_close(schedule.coefficients()[0, 2], schedule.posterior_variances[1].sqrt().float(), rtol=1e-6)
    assert (schedule.coefficients(eta=0.0)[:, 2] == 0).all()


def test_increments_by_hand():
    """Two steps with betas 0.36 and 0.75: the signal is 0.8, then 0.8 * 0.5 = 0.4, and the noise variance 0.36, then 0.84."""
    schedule = schedules.NoiseSchedule(torch.tensor([0.36, 0.75], dtype=torch.float64))
    found = schedule.coefficients("increment", dtype=torch.float64)
    by_hand = torch.tensor([[0.8, 1.0, 0.6, 0.8, 0.36], [0.5, 1.0, 0.75**0.5, 0.5, 0.75]], dtype=torch.float64)
    assert_close(found, by_hand, rtol=1e-12)
    # The target is mu~ - A y, with mu~_1 = x0 and mu~_2 = (0.8 * 0.75 x0 + 0.5 * 0.36 y_2) / 0.84.
    x0, eps = torch.tensor([[[1.5], [-0.7]], [[0.3], [2.0]]], dtype=torch.float64)
    first = 1.5 - 0.8 * (0.8 * 1.5 + 0.6 * 0.3)
    y = 0.4 * -0.7 + 0.84**0.5 * 2.0
    second = (0.6 * -0.7 + 0.18 * y) / 0.84 - 0.5 * y
    target = schedule.target("increment", x0, eps, torch.tensor([0, 1]))
    assert_close(target, torch.tensor([[first], [second]], dtype=torch.float64), rtol=1e-12)


def test_zero_increments_reverse_a_stationary_process():
    """Noising a standard normal keeps it one, and the step back with mean sqrt(alpha) y and variance beta is Bayes' rule."""
    schedule = schedules.make("cosine", 7)
    weight_state, _, deviation, scale, beta = schedule.coefficients("increment", dtype=torch.float64).unbind(1)
    before, after = rng.normal(Draws(1), (7, 2), 0, dtype=torch.float64).unbind(1)
    normal = torch.distributions.Normal
    standard = normal(torch.zeros(7, dtype=torch.float64), 1.0)
    noised = standard.log_prob(before) + normal(scale * before, beta.sqrt()).log_prob(after)
    assert_close(standard.log_prob(after) + normal(weight_state * after, deviation).log_prob(before), noised, rtol=1e-9)


@pytest.mark.parametrize("parametrisation", schedules.PARAMETRISATIONS)
def test_regression_table(schedule, parametrisation):
    """Its columns are the process's own marginal, and a target from which the chain's mean is that of `r`, checked at random points."""
    table = schedule.regression_table(parametrisation, 0.25, dtype=torch.float64)
    signal, deviation, c0, c1, weight = table.unbind(1)
    assert_close(signal**2, schedule.alpha_bars, rtol=1e-12)
    assert_close(deviation**2, schedule.noise_variances, rtol=1e-12)
    assert bool((weight == 0.25).all())
    x0, eps = rng.normal(Draws(1), (12, 2), 0, dtype=torch.float64).unbind(1)
    y = signal * x0 + deviation * eps
    scale_state, scale_output = schedule.prediction_weights(parametrisation)
    weight_x0, weight_state = schedule.posterior_mean_weights()
    assert_close(scale_state * y + scale_output * (c0 * x0 + c1 * eps), weight_x0 * x0 + weight_state * y, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("parametrisation", schedules.PARAMETRISATIONS)
def test_divergence_table(schedule, parametrisation, eta):
    """The squared error in its weights, plus the constant, is the divergence of two normals plus the entropy of the first."""
    steps, draws = schedule.num_steps, Draws(2)
    deviations = torch.exp(rng.normal(draws, (steps, 1), 0, dtype=torch.float64)[:, 0])
    table, constant = schedule.divergence_table(parametrisation, eta, deviations, dtype=torch.float64)
    c0, c1, weight = table[:, 2:].unbind(1)
    x0, eps, output = rng.normal(draws, (steps, 3), 1, dtype=torch.float64).unbind(1)
    got = weight * (output - (c0 * x0 + c1 * eps)) ** 2 + constant

    y = schedule.alpha_bars.sqrt() * x0 + schedule.noise_variances.sqrt() * eps
    scale_state, scale_output = schedule.prediction_weights(parametrisation, eta)
    weight_x0, weight_state = schedule.posterior_mean_weights()
    chain = torch.distributions.Normal(scale_state * y + scale_output * output, deviations)
    noising = torch.distributions.Normal(weight_x0 * x0 + weight_state * y, schedule.posterior_variances.sqrt(), validate_args=False)
    expected = steps * (torch.distributions.kl_divergence(noising, chain) + noising.entropy())
    assert_close(got[1:], expected[1:], rtol=1e-6, name="later steps")  # at the first step r is a point
    assert_close(got[0], -steps * chain.log_prob(x0)[0], rtol=1e-6, name="the first step")


def test_divergence_table_trains_the_chain_and_not_the_noising():
    """A learned schedule's gradient passes through A, B and s only; finite differences of these agree with it."""
    betas = schedules.make("linear", 4, start=0.1, end=0.5).betas
    deviations = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64, requires_grad=True)
    upstream = rng.normal(Draws(3), (4, 5), 0, dtype=torch.float64)

    def columns(learned):
        return schedules.NoiseSchedule(learned).divergence_table("v", 1.0, deviations, dtype=torch.float64)[0]

    learned = betas.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((columns(learned) * upstream).sum(), learned)
    noising = schedules.NoiseSchedule(betas)

    def by_hand(at):
        signal, deviation = noising.alpha_bars.sqrt(), noising.noise_variances.sqrt()
        weight_x0, weight_state = noising.posterior_mean_weights()
        a, b = schedules.NoiseSchedule(at).prediction_weights("v", 1.0)
        c0, c1 = (weight_x0 + (weight_state - a) * signal) / b, (weight_state - a) * deviation / b
        return (torch.stack((c0, c1, 2 * b**2 / deviations.detach() ** 2), 1) * upstream[:, 2:]).sum()

    step = 1e-6
    differences = [(by_hand(betas + step * unit) - by_hand(betas - step * unit)) / (2 * step) for unit in torch.eye(4, dtype=torch.float64)]
    assert_close(gradient, torch.stack(differences), rtol=1e-5)
    assert not torch.autograd.grad(columns(learned)[:, :2].sum(), learned)[0].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["vp", "ve"])
@pytest.mark.parametrize("steps", [2, 7, 100, 1000, 1500])
def test_rescale_keeps_terminal_snr(name, kind, steps):
    rescaled = schedules.make(name, steps, kind=kind, rescale=True)
    assert rescaled.num_steps == steps and (rescaled.betas > 0).all()
    # The linear schedule's signal ends at 4e-5, whose complement to 1 is read back through 1 - beta.
    assert_close(rescaled.terminal_snr(), schedules.make(name, 1000, kind=kind).terminal_snr(), rtol=1e-6)


@pytest.mark.parametrize("kind", ["vp", "ve"])
@pytest.mark.parametrize("parametrisation", schedules.PARAMETRISATIONS)
def test_learned_schedule_has_finite_gradients(kind, parametrisation):
    initial = schedules.make("linear", 6, kind=kind)
    learned = schedules.LearnedSchedule(initial)
    assert_close(learned().betas, initial.betas, rtol=1e-5)
    for eta in ETAS.get(parametrisation, (0.0, 0.5, 1.0)):
        table = learned().coefficients(parametrisation, eta)
        learned.raw.grad = None
        (table * rng.normal(Draws(1), tuple(table.shape), 0)).sum().backward()
        assert torch.isfinite(learned.raw.grad).all() and (learned.raw.grad != 0).all()


@pytest.mark.parametrize("parametrisation", schedules.PARAMETRISATIONS)
def test_learned_schedule_gradient_is_right(parametrisation):
    raw = torch.tensor([-4.0, -3.0, -2.0, -3.5], dtype=torch.float64, requires_grad=True)
    eta = ETAS.get(parametrisation, (0.7,))[0]
    assert torch.autograd.gradcheck(lambda r: schedules.NoiseSchedule(r.sigmoid()).coefficients(parametrisation, eta, dtype=torch.float64), raw)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: schedules.make("linear", 1), "num_steps: expected an integer of at least 2, got 1"),
        (lambda: schedules.make("linear", 2.5), "num_steps"),
        (lambda: schedules.make("cosin", 10), "did you mean cosine"),
        (lambda: schedules.make("linear", 10, strat=1e-3), "did you mean start"),
        (lambda: schedules.make("linear", 10, kind="vpp"), "did you mean vp"),
        (lambda: schedules.make("constant", 10, beta=1.5), "betas: expected values in"),
        (lambda: schedules.make("linear", 10).coefficients("epss"), "did you mean eps"),
        (lambda: schedules.make("linear", 10).coefficients(eta=1.01), "eta: expected a number in"),
        (lambda: schedules.make("linear", 10).coefficients(eta=-0.1), "eta: expected a number in"),
        (lambda: schedules.make("linear", 10).coefficients(eta=0.0, final_variance=0.1), "final_variance: expected None"),
        (lambda: schedules.make("linear", 10).coefficients(final_variance=0.0), "final_variance: expected a positive"),
        (lambda: schedules.make("linear", 10).coefficients("increment", 0.5), "eta, final_variance: expected 1 and None with increment"),
        (lambda: schedules.make("linear", 10).coefficients("increment", final_variance=0.1), "eta, final_variance: expected 1 and None"),
    ],
)
def test_bad_input(call, message, one_line):
    one_line(call, message)
