"""Priors against their definitions in docs/method.md, section 5: golden moments, total mass, independent densities, classes, gradients."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from ddvi_fast import InputError, priors
from ddvi_fast.priors.centres import Centres
from ddvi_fast.rng import Draws

F64 = torch.float64
LEVELS = torch.tensor([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99], dtype=F64)
CURVES = ["pinwheel", "swiss_roll_noisy", "square"]  # with classes, along something narrow
CLASSED = ["mixture", *CURVES]
DENSE = ["gaussian", *CLASSED]


@pytest.mark.parametrize(
    ("key", "name", "options"),
    [
        ("pinwheel", "pinwheel", {}),
        ("pinwheel4", "pinwheel", {"num_classes": 4}),
        ("swiss_roll", "swiss_roll", {}),
        ("swiss_roll_noisy", "swiss_roll_noisy", {}),
        ("square", "square", {"noise_level": 3}),
    ],
)
def test_golden_moments_and_quantiles(golden, key, name, options):
    theirs, ours = 10_000, 100_000
    z = priors.make(name, **options).sample(ours, Draws(3), dtype=F64)
    error = math.sqrt(1 / theirs + 1 / ours)
    expected = {part: torch.tensor(golden[f"prior/{key}/{part}"], dtype=F64) for part in ("mean", "cov", "quantiles")}
    centred = z - z.mean(0)
    products = (centred[:, :, None] * centred[:, None, :]).flatten(1)
    assert ((z.mean(0) - expected["mean"]).abs() < 4 * error * z.std(0)).all()
    assert ((products.mean(0) - expected["cov"].flatten()).abs() < 4 * error * products.std(0)).all()
    reached = (z.unsqueeze(1) < expected["quantiles"]).to(F64).mean(0)
    assert ((reached - LEVELS[:, None]).abs() < 4 * error * (LEVELS * (1 - LEVELS)).sqrt()[:, None]).all()


@pytest.mark.parametrize("name", ["mixture", "swiss_roll_noisy", "square"])
def test_density_integrates_to_one(name):
    axis = torch.linspace(-4, 4, 201, dtype=F64)
    prior = priors.make(name)
    mass = sum(prior.log_prob(part).exp().sum() for part in torch.cartesian_prod(axis, axis).split(20_000)) * (axis[1] - axis[0]) ** 2
    assert abs(mass.item() - 1) < 1e-4


def test_pinwheel_arm_integrates_to_one():
    prior = priors.make("pinwheel")
    arm = prior.sample(2000, Draws(0), torch.zeros(2000, dtype=torch.int64), dtype=F64)
    step = 0.0025  # half a tangential standard deviation: the rectangle rule is exact to far below the tolerance
    axes = [torch.arange(low - 0.2, high + 0.2, step, dtype=F64) for low, high in zip(arm.amin(0), arm.amax(0), strict=True)]
    mass = 0.0
    for part in torch.cartesian_prod(*axes).split(50_000):
        mass += prior.log_prob(part, torch.zeros(len(part), dtype=torch.int64)).exp().sum().item() * step**2
    assert abs(mass - 1) < 1e-3


def test_pinwheel_density_against_every_root_on_a_fine_grid():
    z = torch.rand(30, 2, dtype=F64, generator=torch.Generator().manual_seed(1)) * 2.2 - 1.1
    assert torch.allclose(priors.make("pinwheel").log_prob(z), torch.stack([_pinwheel_by_bisection(point) for point in z]), rtol=1e-7, atol=1e-7)


def _pinwheel_by_bisection(point: torch.Tensor) -> torch.Tensor:
    """Every f that some arm's map takes to `point`, by sign changes and bisection, each weighted by its numerical Jacobian."""
    radius, theta = point.norm().item(), math.atan2(point[1], point[0])
    terms = []
    for arm in range(10):

        def angle(phi: float, arm: int = arm) -> float:
            return phi - 0.25 * math.exp(radius * math.cos(phi)) - 2 * math.pi * arm / 10 - theta

        grid = [-math.pi + 2 * math.pi * i / 2000 for i in range(2001)]
        for low, high in itertools.pairwise(grid):
            turn = 2 * math.pi * round((angle(low) + angle(high)) / (4 * math.pi))
            if (angle(low) - turn) * (angle(high) - turn) > 0:
                continue
            rising = angle(low) < angle(high)
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (middle, high) if (angle(middle) < turn) == rising else (low, middle)
            slope = (angle(low + 1e-6) - angle(low - 1e-6)) / 2e-6
            first, second = radius * math.cos(low), radius * math.sin(low)
            exponent = -0.5 * ((first - 1) / 0.15) ** 2 - 0.5 * (second / 0.005) ** 2
            terms.append(exponent - math.log(2 * math.pi * 0.15 * 0.005) - math.log(abs(slope)))
    return torch.logsumexp(torch.tensor(terms, dtype=F64), 0) - math.log(10)


@pytest.mark.parametrize("name", CURVES)
def test_mean_log_density_of_samples_is_that_of_the_nodes(name):
    # Samples and density agree: minus the entropy, once by Monte Carlo and once by quadrature in the prior's own coordinates.
    prior = priors.make(name)
    value = prior.log_prob(prior.sample(20_000, Draws(5), dtype=F64))
    nodes, log_weights = prior.integration_nodes(80)
    entropy = (log_weights.exp() * prior.log_prob(nodes)).sum()
    assert abs(value.mean() - entropy) < 4 * value.std() / math.sqrt(len(value)) + 1e-3


@pytest.mark.parametrize("name", CURVES)
def test_released_estimate_approaches_the_density(name):
    prior = priors.make(name)
    z = prior.sample(300, Draws(9), dtype=F64)
    bandwidth = {"pinwheel": 0.003}.get(name, 0.03)
    smooth = prior.log_prob_kde(z, num_points=40_000, bandwidths=(bandwidth,), clamp=None)
    assert (smooth - prior.log_prob(z)).median().abs() < 0.25


def test_released_estimate_is_clamped():
    far = torch.full((1, 2), 50.0)
    assert priors.make("square").log_prob_kde(far, num_points=100).item() == pytest.approx(-1000)


@pytest.mark.parametrize("name", DENSE)
def test_gradient_against_finite_differences(name):
    prior = priors.make(name)
    z = (prior.sample(6, Draws(2), dtype=F64) + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(prior.log_prob, (z,), eps=1e-7, atol=1e-3, rtol=1e-4)
    if prior.num_classes:
        labels = torch.arange(6)
        assert torch.autograd.gradcheck(lambda z: prior.log_prob(z, labels), (z,), eps=1e-7, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", CLASSED)
def test_samples_land_in_their_partition(name):
    prior = priors.make(name)
    labels = torch.arange(5000) % prior.num_classes
    z = prior.sample(5000, Draws(4), labels, dtype=F64)
    each = torch.stack([prior.log_prob(z, torch.full((5000,), label)) for label in range(prior.num_classes)], 1)
    share = torch.softmax(each, 1).gather(1, labels[:, None]).squeeze(1)
    hit = (each.argmax(1) == labels).to(F64)
    # Calibration: the posterior probability of the true class has the mean of the posterior's own expectation of it.
    expected = torch.softmax(each, 1).square().sum(1)
    assert abs((share - expected).mean()) < 4 * (share - expected).std() / math.sqrt(5000) + 1e-9
    assert hit.mean() > 0.85


@pytest.mark.parametrize("name", [*DENSE, "swiss_roll"])
def test_same_bits_for_any_split(name):
    prior, draws = priors.make(name), Draws(11)
    whole = prior.sample(37, draws)
    parts = torch.cat([prior.sample(5, draws), prior.sample(13, draws.advance(5)), prior.sample(19, draws.advance(18))])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, prior.sample(37, Draws(12)))


def test_labels_of_samples_are_known_afterwards():
    prior, draws = priors.make("mixture", scale=0.01), Draws(8)
    nearest = torch.cdist(prior.sample(500, draws), prior.means.detach()).argmin(1)
    assert torch.equal(nearest, prior.sample_labels(500, draws))


@pytest.mark.parametrize("name", DENSE)
def test_integration_nodes_give_the_moments(name):
    prior = priors.make(name)
    nodes, log_weights = prior.integration_nodes(100)
    weights = log_weights.exp()
    z = prior.sample(100_000, Draws(6), dtype=F64)
    assert abs(weights.sum().item() - 1) < 1e-9
    for function in (lambda z: z.T, lambda z: z.T**2, lambda z: z[:, 0] * z[:, 1], lambda z: torch.exp(torch.sin(2 * z[:, 0]))):
        values = function(z)
        error = (values.mean(-1) - (weights * function(nodes)).sum(-1)).abs()
        assert (error < 4 * values.std(-1) / math.sqrt(len(z))).all()


def test_integration_nodes_agree_with_a_grid_over_the_plane():
    prior = priors.make("swiss_roll_noisy")
    axis = torch.linspace(-4, 4, 161, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    by_grid = (prior.log_prob(grid).exp() * torch.cos(grid[:, 0] - grid[:, 1])).sum() * (axis[1] - axis[0]) ** 2
    nodes, log_weights = prior.integration_nodes(200)
    assert abs(by_grid - (log_weights.exp() * torch.cos(nodes[:, 0] - nodes[:, 1])).sum()) < 1e-5


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("distance", [5.0, 50.0, 1000.0])
def test_far_tails_are_finite_and_point_home(name, distance):
    prior = priors.make(name)
    z = torch.tensor([[distance, 0.3 * distance]], requires_grad=True)
    value = prior.log_prob(z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert torch.isfinite(value).all() and torch.isfinite(slope).all()
    assert prior.log_prob(2 * z.detach()) < value
    exact = z.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(prior.log_prob(exact).sum(), exact)
    # Exponents near 5e7 are rounded by a few nats in float32, which shifts the weights of a curve's nodes by some percent.
    assert torch.allclose(slope.double(), expected, rtol=5e-2)


def test_pinwheel_tails_fall_and_do_not_depend_on_precision():
    z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(3))
    z = z / z.norm(dim=1, keepdim=True) * torch.linspace(1.7, 6, 2000)[:, None]
    prior = priors.make("pinwheel")
    assert torch.allclose(prior.log_prob(z).double(), prior.log_prob(z.double()), rtol=1e-3)
    assert (prior.log_prob(2.5 * z) < prior.log_prob(z)).float().mean() > 0.95


def test_pinwheel_gradient_can_be_differentiated():
    z = (priors.make("pinwheel").sample(4, Draws(2), dtype=F64) + 0.01).requires_grad_()
    upstream = torch.linspace(0.5, 1.5, 4, dtype=F64, requires_grad=True)
    assert torch.autograd.gradgradcheck(priors.make("pinwheel").log_prob, (z,), (upstream,), eps=1e-7, atol=1.0, rtol=1e-4)


def test_blurred_pinwheel_integrates_to_one():
    axis = torch.linspace(-4, 4, 401, dtype=F64)
    mass = priors.make("pinwheel").blurred(0.3).log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(mass.item() - 1) < 1e-4


def test_pinwheel_samples_follow_the_definition():
    # Undo the map by its textbook formula: f must then be the two normals of docs/method.md, section 5.
    prior, draws = priors.make("pinwheel"), Draws(13)
    z, labels = prior.sample(20_000, draws, dtype=F64), prior.sample_labels(20_000, draws)
    first = z.norm(dim=1)  # |f| = f_1 up to f_2^2 / 2, which is 1e-5
    angle = 2 * math.pi * labels / 10 + 0.25 * torch.exp(first)
    second = z[:, 0] * angle.sin() + z[:, 1] * angle.cos()
    for value, mean, std in ((first, 1.0, 0.15), (second, 0.0, 0.005)):
        assert abs(value.mean() - mean) < 4 * std / math.sqrt(20_000) + 2e-5
        assert abs(value.std() - std) < 4 * std / math.sqrt(40_000) + 2e-5


def test_square_with_hard_corners():
    prior = priors.make("square", corner_width=0.0)
    inside, beyond = torch.tensor([[0.0, 1.0]], dtype=F64), torch.tensor([[1.1, 1.1]], dtype=F64)
    edge = -math.log(8) - math.log(0.06) - 0.5 * math.log(2 * math.pi)
    assert prior.log_prob(inside).item() == pytest.approx(edge, abs=1e-9)
    assert prior.log_prob(beyond).item() == -math.inf
    assert priors.make("square").log_prob(inside).item() == pytest.approx(edge, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: priors.make("pinwheal"), "did you mean pinwheel"),
        (lambda: priors.make("pinwheel", num_clases=3), "did you mean num_classes"),
        (lambda: priors.make("swiss_roll").log_prob(torch.zeros(1, 2)), "noise=0.1"),
        (lambda: priors.make("gaussian").log_prob(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)), "labels"),
        (lambda: priors.make("gaussian").sample_labels(2, Draws(0)), "labels"),
        (lambda: priors.make("square").sample(1, labels=torch.tensor([10])), "labels"),
        (lambda: priors.make("square").log_prob(torch.zeros(1, 3)), "z"),
        (lambda: priors.make("gaussian", dim=3).integration_nodes(4), "2 latent dimensions"),
    ],
)
def test_bad_input_gets_one_clear_line(call, words):
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_variants_by_name():
    assert priors.make("less_noisy_square").noise_level == 3
    assert priors.make("less_noisy_swiss_roll").noise == priors.make("swiss_roll_noisy").noise == 0.1


@pytest.mark.parametrize("name", DENSE)
def test_blur_widens_in_the_samples_as_in_the_density(name):
    prior = priors.make(name).blurred(0.05)
    value = prior.log_prob(prior.sample(20_000, Draws(7), dtype=F64))
    nodes, log_weights = prior.integration_nodes(80)
    assert abs(value.mean() - (log_weights.exp() * prior.log_prob(nodes)).sum()) < 4 * value.std() / math.sqrt(len(value)) + 2e-3


def test_the_last_few_blurred_priors_are_kept_and_are_no_part_of_the_prior():
    prior = priors.make("pinwheel")
    narrow, wide = prior.blurred(0.1), prior.blurred(0.2)
    assert prior.blurred(0.1) is narrow and prior.blurred(0.2) is wide and prior.blurred(0) is prior
    for width in (0.3, 0.4, 0.5):
        prior.blurred(width)
        assert prior.blurred(0.2) is wide  # asked for again and again
    assert prior.blurred(0.1) is not narrow
    assert list(prior.modules()) == [prior]


def test_a_blurred_learned_prior_is_made_anew():
    prior = Centres(priors.make("gaussian", dim=2), 3, 0.1)
    assert prior.blurred(0.1) is not prior.blurred(0.1)


@pytest.mark.parametrize(
    ("prior", "name"),
    [(priors.Gaussian, "scale"), (priors.Mixture, "scale"), (priors.Centres, "scale"), (priors.Pinwheel, "radial_std"),
     (priors.Pinwheel, "tangential_std"), (priors.Square, "noise_level")],
)  # fmt: skip
@pytest.mark.parametrize("value", [0.0, 1e-46, 1e39])
def test_a_width_that_single_precision_does_not_hold_is_refused(prior, name, value, one_line):
    one_line(lambda: prior(**{name: value}), rf"{name}: expected a number in \[1e-18, 1e\+18\]")


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1", None])
@pytest.mark.parametrize(
    ("prior", "name"),
    [(priors.Gaussian, "scale"), (priors.Mixture, "scale"), (priors.Pinwheel, "radial_std"), (priors.Pinwheel, "tangential_std"),
     (priors.Pinwheel, "rate"), (priors.Square, "noise_level"), (priors.Square, "corner_width"), (priors.SwissRoll, "noise")],
)  # fmt: skip
def test_a_width_outside_its_domain_is_refused(prior, name, value, one_line):
    one_line(lambda: prior(**{name: value}), f"{name}: expected a (finite )?number")


def test_numpys_numbers_make_the_same_priors():
    for prior, options in ((priors.Gaussian, {"dim": 3, "scale": 0.5}), (priors.Pinwheel, {"num_classes": 4, "rate": 0.25})):
        made = prior(**{name: np.array([value])[0] for name, value in options.items()})
        assert all(type(getattr(made, name)) in (int, float) for name in options)
        assert torch.equal(made.sample(5), prior(**options).sample(5))
