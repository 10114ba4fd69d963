"""Priors as functions of noise (docs/method.md, section 7): `push` against samples, densities, evidence, finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ddvi_fast import InputError, likelihoods, priors, rng
from ddvi_fast.evidence import log_evidence_quadrature
from ddvi_fast.models import LatentVariableModel
from ddvi_fast.networks import MLP
from ddvi_fast.priors.base import normal_of_uniform
from ddvi_fast.priors.centres import REACH
from ddvi_fast.priors.quadrature import normal_quadrature
from ddvi_fast.rng import Draws

F64 = torch.float64
MAKERS = {
    "gaussian": lambda: priors.make("gaussian", dim=3, scale=0.7),
    "mixture": lambda: priors.make("mixture", learnable=True),
    "pinwheel": lambda: priors.make("pinwheel"),
    "blurred_pinwheel": lambda: priors.make("pinwheel").blurred(0.05),
    "swiss_roll": lambda: priors.make("swiss_roll"),
    "swiss_roll_noisy": lambda: priors.make("swiss_roll_noisy", num_classes=7),
    "square": lambda: priors.make("square"),
    "hard_square": lambda: priors.make("square", corner_width=0.0),
    "centres": lambda: priors.Centres(num_centres=5),
    "pinwheels": lambda: priors.Centres(priors.make("pinwheel"), num_centres=4, scale=0.3),
    "blurred_squares": lambda: priors.Centres(priors.make("square"), num_centres=4, scale=0.3).blurred(0.05),
    "one_hot": lambda: priors.OneHotGaussian(style_dim=2, num_classes=4),
    "circle": lambda: priors.Pushforward(lambda u: torch.nn.functional.normalize(u, dim=-1), 2, 2),
    "rays": lambda: priors.Pushforward(lambda u, labels: torch.cat((u, u * labels.unsqueeze(-1)), -1), 1, 2, num_classes=3),
}
SIZES = {
    "gaussian": (3, 3), "swiss_roll": (1, 1), "swiss_roll_noisy": (3, 3), "square": (3, 3), "hard_square": (3, 3), "pinwheels": (3, 4),
    "blurred_squares": (3, 4), "circle": (2, 2), "rays": (1, 2),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", MAKERS)
def test_samples_are_their_noise_pushed(name, dtype):
    prior, draws = MAKERS[name](), Draws(3, 40)
    drawn = prior.draw(2000, draws, dtype=dtype)
    assert (prior.noise_dim, prior.joint_noise_dim) == SIZES.get(name, (2, 3))
    assert drawn.noise.shape == (2000, prior.noise_dim) and drawn.z.dtype == drawn.noise.dtype == dtype
    assert torch.equal(drawn.z, prior.sample(2000, draws, dtype=dtype))
    exact = 1e-5 if dtype == torch.float32 else 1e-12
    pushed = prior.push(drawn.noise, drawn.labels)
    assert pushed.dtype == dtype
    torch.testing.assert_close(pushed, drawn.z, rtol=0, atol=exact)
    if prior.num_classes:
        assert torch.equal(drawn.labels, prior.sample_labels(2000, draws))
        labels = drawn.labels.flip(0)
        again = prior.draw(2000, draws, labels, dtype=dtype)
        assert torch.equal(again.z, prior.sample(2000, draws, labels, dtype=dtype))
        torch.testing.assert_close(prior.push(again.noise, labels), again.z, rtol=0, atol=exact)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", MAKERS)
def test_joint_noise_carries_the_class_of_the_same_samples(name, dtype):
    prior, draws = MAKERS[name](), Draws(3, 40)
    apart, joint = prior.draw(2000, draws, dtype=dtype), prior.draw(2000, draws, joint=True, dtype=dtype)
    assert joint.noise.shape == (2000, prior.joint_noise_dim) and joint.noise.dtype == dtype
    exact = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(joint.z, apart.z, rtol=0, atol=exact)
    torch.testing.assert_close(prior.push(joint.noise), joint.z, rtol=0, atol=exact)
    assert joint.labels is None if prior.num_classes is None else torch.equal(joint.labels, apart.labels)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("name", ["mixture", "swiss_roll", "square", "pinwheels", "blurred_squares", "one_hot"])
def test_noise_is_standard_normal(name, joint):
    noise = MAKERS[name]().draw(100_000, Draws(8), joint=joint, dtype=F64).noise
    size = noise.shape[1]
    for moment, expected, variance in ((noise, 0.0, 1.0), (noise**2, 1.0, 2.0), (noise**3, 0.0, 15.0), (noise**4, 3.0, 96.0)):
        assert ((moment.mean(0) - expected).abs() < 4 * math.sqrt(variance / len(noise))).all()
    products = (noise.T @ noise / len(noise))[~torch.eye(size, dtype=torch.bool)]
    assert (products.abs() < 4 / math.sqrt(len(noise))).all()
    levels = torch.special.ndtri(torch.tensor([0.001, 0.05, 0.3, 0.5, 0.9, 0.999], dtype=F64))
    shares = (noise.unsqueeze(0) < levels[:, None, None]).double().mean(1)
    expected = torch.special.ndtr(levels).unsqueeze(1)
    assert ((shares - expected).abs() < 4 * (expected * (1 - expected) / len(noise)).sqrt()).all()


def test_the_class_coordinate_divides_the_normal_distribution_evenly():
    prior = priors.Mixture(torch.arange(5.0).unsqueeze(1), scale=0.1)
    edges = torch.special.ndtri(torch.arange(1, 5, dtype=F64) / 5)
    below, above = (prior.push(torch.stack((edges + shift, torch.zeros(4, dtype=F64)), 1)).squeeze(1) for shift in (-1e-9, 1e-9))
    assert below.tolist() == [0, 1, 2, 3] and above.tolist() == [1, 2, 3, 4]
    ends = torch.tensor([[-40.0, 0.0], [40.0, 0.0], [-math.inf, 0.0], [math.inf, 0.0]])
    assert prior.push(ends).squeeze(1).tolist() == [0, 4, 0, 4]


@pytest.mark.parametrize("name", ["swiss_roll", "swiss_roll_noisy", "square", "hard_square"])
def test_a_position_is_the_same_within_its_class_and_on_the_whole_curve(name):
    prior = MAKERS[name]()
    u = torch.randn(50, prior.noise_dim, dtype=F64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(prior.num_classes).unsqueeze(1)
    whole = torch.special.ndtri((labels + torch.special.ndtr(u[:, 0])) / prior.num_classes).unsqueeze(-1)
    joint = torch.cat((whole, u[:, 1:].expand(prior.num_classes, -1, -1)), -1)
    torch.testing.assert_close(prior.push(u, labels), prior.push(joint), rtol=0, atol=1e-12)


def test_the_square_moves_across_its_edge_then_along_it():
    u = torch.tensor([[0.1, 0.0, 0.0], [0.1, 1.0, 0.0], [0.1, 0.0, 1.0]], dtype=F64)  # just beyond the middle of the perimeter
    soft, hard = (MAKERS[name]().push(u) for name in ("square", "hard_square"))
    expected = torch.tensor([[0.0, 0.0], [0.0, -0.06], [-0.01, 0.0]], dtype=F64)
    torch.testing.assert_close(soft - soft[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(hard - hard[0], expected * torch.tensor([0.0, 1.0], dtype=F64), rtol=0, atol=1e-12)


def test_the_largest_uniform_rounds_to_one_and_has_a_finite_normal():
    ends = normal_of_uniform(torch.tensor([2**-25, 1.0]))
    assert ends.isfinite().all() and ends.sum().abs() < 1e-6


def noise_grid(prior, along=200, across=24):
    """Nodes [M, U] and log-weights [M] of N(0, I): trapezoidal in the first coordinate, Gauss-Hermite in the others."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(across)
    others = torch.from_numpy(nodes), torch.from_numpy(np.log(weights / weights.sum()))
    axes = [normal_quadrature(along, reach=15), *[others] * (prior.noise_dim - 1)]
    grid, log_weights = (torch.cartesian_prod(*(axis[part] for axis in axes)).view(-1, prior.noise_dim) for part in (0, 1))
    return grid, log_weights.sum(-1)


# Wide enough for a grid over the plane; each class of the square is one edge, on which `push` is smooth.
WIDE = {
    "gaussian": (lambda: priors.make("gaussian", dim=2, scale=0.7), 6.0, 121),
    "mixture": (lambda: priors.make("mixture", num_classes=4), 5.0, 121),
    "pinwheel": (lambda: priors.Pinwheel(num_classes=3, tangential_std=0.05), 2.4, 241),
    "swiss_roll_noisy": (lambda: priors.SwissRoll(noise=0.2, num_classes=3), 5.0, 121),
    "square": (lambda: priors.Square(noise_level=5, num_classes=4, corner_width=0.08), 2.0, 121),
    "centres": (lambda: priors.Centres(priors.Square(noise_level=5, num_classes=4, corner_width=0.08), 2, scale=1.5).double(), 5.0, 161),
}


@pytest.mark.parametrize("name", WIDE)
def test_pushed_noise_has_the_density_of_the_prior(name):
    make, reach, count = WIDE[name]
    prior = make()
    axis = torch.linspace(-reach, reach, count, dtype=F64)
    plane, cell = torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2
    labels = [None] if prior.num_classes is None else [torch.tensor(label) for label in range(prior.num_classes)]
    for label in labels:
        found = torch.stack(statistics(*pushed_grid(prior, label)))
        expected = torch.stack(statistics(plane, prior.log_prob(plane, label).exp() * cell))
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def statistics(z, weights):
    """Total mass, means, second moments and a smooth function of latents [M, 2] with weights [M]."""
    first, second = z.unbind(1)
    functions = (torch.ones_like(first), first, second, first**2, second**2, first * second, torch.exp(torch.sin(2 * first)) * torch.cos(second))
    return [(weights * value).sum() for value in functions]


def pushed_grid(prior, label):
    """Latents of a grid in the noise of one class, and their weights; the base prior of centres has its classes one by one."""
    if isinstance(prior, priors.Centres):
        parts = [pushed_grid(prior.base, torch.tensor(inner)) for inner in range(prior.base.num_classes)]
        z = prior.centres[label] + prior.scale * torch.cat([z for z, _ in parts])
        return z.detach(), torch.cat([weights for _, weights in parts]) / len(parts)
    u, log_weights = noise_grid(prior)
    return prior.push(u, label), log_weights.exp()


def test_centres_push_through_their_base():
    prior = priors.Centres(priors.make("pinwheel"), num_centres=4, scale=0.3)
    u = torch.randn(6, 4, dtype=F64, generator=torch.Generator().manual_seed(1))
    labels, inner = torch.tensor([3, 0, 2, 1, 1, 0]), torch.floor(10 * torch.special.ndtr(u[:, 1])).long()
    expected = prior.centres.double()[labels] + 0.3 * prior.base.push(u[:, 2:], inner)
    carried = torch.special.ndtri((labels + 0.3) / 4).double()
    torch.testing.assert_close(prior.push(u[:, 1:], labels), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(prior.push(torch.cat((carried.unsqueeze(1), u[:, 1:]), 1)), expected, rtol=0, atol=1e-9)


EXACT = {
    **{name: make for name, (make, _, _) in WIDE.items() if name != "centres"},
    "pinwheel": lambda: priors.make("pinwheel"),
    "swiss_roll": lambda: priors.make("swiss_roll"),
    "swiss_roll_noisy": lambda: priors.make("swiss_roll_noisy"),
    "centres": lambda: priors.Centres(num_centres=3).double(),
    "one_hot": lambda: priors.OneHotGaussian(style_dim=2, num_classes=3),
}


class Waves(torch.nn.Module):
    """A smooth decoder, on which quadrature is exact to rounding."""

    def __init__(self, dim):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(dim, 8, dtype=F64, generator=torch.Generator().manual_seed(3)))

    def forward(self, z):
        return torch.sin(z @ self.weight + torch.arange(8))


def small_model(prior):
    return LatentVariableModel(prior, Waves(prior.dim), likelihoods.make("bernoulli"))


def evidence_over_noise(model, x, labels, grid):
    """`log sum_c p(c) int p(u) p(x | push(u, c)) du` [N] by a grid in `u`; `labels` is None where the noise carries the class, or there is none."""
    u, log_weights = grid
    each = []
    for label in [None] if labels is None else labels:
        z = model.prior.push(u, label)
        each.append(torch.logsumexp(model.likelihood.pairwise(model.decoder(z), x) + log_weights.unsqueeze(1), 0))
    return (torch.logsumexp(torch.stack(each), 0) - math.log(len(each))).detach()


@pytest.fixture
def all_nodes(monkeypatch):
    """The quadrature of the evidence uses its full resolution for every row."""
    monkeypatch.setattr("ddvi_fast.evidence._TOLERANCE", 0.0)


@pytest.mark.parametrize("name", EXACT)
def test_evidence_over_noise_is_that_over_latents(name, all_nodes):
    model = small_model(EXACT[name]())
    x = (torch.rand(5, 8, dtype=F64, generator=torch.Generator().manual_seed(2)) < 0.5).double()
    classes = None if model.prior.num_classes is None else torch.arange(model.prior.num_classes)
    grid = noise_grid(model.prior, along=160, across=60 if model.prior.noise_dim < 3 else 20)
    error = 1e-5 if name == "centres" else 1e-6  # the prior around each centre has a fifth of the resolution
    found = evidence_over_noise(model, x, classes, grid)
    torch.testing.assert_close(found, log_evidence_quadrature(model, x, resolution=200), rtol=0, atol=error)


@pytest.mark.parametrize("name", ["swiss_roll", "swiss_roll_noisy"])
def test_evidence_over_noise_that_carries_the_class(name, all_nodes):
    model = small_model(EXACT[name]())
    x = (torch.rand(5, 8, dtype=F64, generator=torch.Generator().manual_seed(2)) < 0.5).double()
    found = evidence_over_noise(model, x, None, noise_grid(model.prior, along=400, across=12))
    torch.testing.assert_close(found, log_evidence_quadrature(model, x, resolution=100), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_gradient_against_finite_differences(name):
    prior = MAKERS[name]().double()
    generator = torch.Generator().manual_seed(4)
    u = torch.randn(9, prior.joint_noise_dim, dtype=F64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(prior.push, (u,), eps=1e-7, atol=1e-5)
    if prior.num_classes:
        labels = torch.arange(9) % prior.num_classes
        u = torch.randn(9, prior.noise_dim, dtype=F64, generator=generator).requires_grad_()
        assert torch.autograd.gradcheck(lambda u: prior.push(u, labels), (u,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_latents_and_gradients_are_finite_in_the_tails(name):
    prior = MAKERS[name]()
    ends = torch.tensor([-60.0, -25.0, -15.0, -8.0, 8.0, 15.0, 25.0, 60.0])
    for labels in [None] if prior.num_classes is None else [None, *torch.arange(prior.num_classes)]:
        size = prior.joint_noise_dim if labels is None else prior.noise_dim
        u = torch.cat([torch.where(torch.arange(size) == place, ends.unsqueeze(1), 0.3) for place in range(size)]).requires_grad_()
        z = prior.push(u, labels)
        (gradient,) = torch.autograd.grad(z.sum(), u)
        assert bool(z.isfinite().all()) and bool(gradient.isfinite().all())


@pytest.mark.parametrize("labels", [None, torch.tensor(0)])
def test_the_start_of_the_roll_is_resolved_in_float32(labels):
    # The radius is 3 sqrt(Phi(u) / C), which in float32 is not zero for the first class down to -18.
    prior = priors.make("swiss_roll")
    u = torch.tensor([[-18.0], [-15.0], [-8.0], [-3.0], [0.0], [2.0], [5.0]], requires_grad=True)
    exact = u.detach().double().requires_grad_()
    log_radius = torch.special.log_ndtr(exact).squeeze(1) / 2 + math.log(3) - (0 if labels is None else math.log(10) / 2)
    radius = torch.linalg.vector_norm(prior.push(u, labels).double(), dim=1)
    torch.testing.assert_close(radius.log(), log_radius, rtol=0, atol=1e-4)
    (found,), (expected,) = torch.autograd.grad(radius.log().sum(), u), torch.autograd.grad(log_radius.sum(), exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-6)


def test_learned_priors_get_gradients_through_samples_and_blur():
    for prior in (MAKERS["mixture"](), MAKERS["centres"](), MAKERS["pinwheels"]()):
        (parameter,) = [one for one in prior.parameters() if one.requires_grad]
        for pushed in (prior, prior.blurred(0.1)):
            sample = pushed.draw(200, Draws(1))
            (gradient,) = torch.autograd.grad(sample.z.sum(), parameter)
            (again,) = torch.autograd.grad(pushed.push(sample.noise, sample.labels).sum(), parameter)
            counts = torch.bincount(sample.labels, minlength=prior.num_classes).float().unsqueeze(1)
            slope = torch.ones(2) if isinstance(prior, priors.Mixture) else REACH * (1 - torch.tanh(parameter).square())
            torch.testing.assert_close(gradient, counts * slope, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(gradient, again, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ("gaussian", "circle")])
def test_labels_broadcast_with_noise(name):
    prior = MAKERS[name]()
    u = torch.randn(5, prior.noise_dim, generator=torch.Generator().manual_seed(1))
    all_classes = torch.arange(prior.num_classes).unsqueeze(1)
    z = prior.push(u, all_classes)
    assert z.shape == (prior.num_classes, 5, prior.dim)
    for label in range(prior.num_classes):
        torch.testing.assert_close(z[label], prior.push(u, torch.tensor(label)))
        torch.testing.assert_close(z[label, 3], prior.push(u[3], torch.tensor(label)))


class Ring(priors.Prior):
    """A prior that is known by its own samples."""

    dim = 2

    def _sample(self, n, draws, labels, device):
        return torch.nn.functional.normalize(rng.normal(draws, (n, 2), rng.PRIOR, device=device), dim=1)

    def _log_prob(self, z, labels):
        return torch.zeros(z.shape[:-1])


def test_a_prior_without_noise_is_sampled_and_is_the_base_of_centres():
    ring = Ring()
    drawn = ring.draw(5, Draws(2))
    assert torch.equal(drawn.z, ring.sample(5, Draws(2))) and drawn.noise.shape == (5, 0) and drawn.labels is None
    prior = priors.Centres(ring, num_centres=3, scale=0.5)
    drawn = prior.draw(40, Draws(2))
    torch.testing.assert_close((drawn.z - prior.centres[drawn.labels]).norm(dim=1), torch.full((40,), 0.5))
    for one in (ring, prior):
        with pytest.raises(InputError, match=rf"^prior: expected one that makes latents of normal noise, got a {type(one).__name__} prior [^\n]*$"):
            one.push(torch.zeros(3, 2))
        with pytest.raises(InputError, match=r"^prior: "):
            one.draw(3, joint=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: priors.make("square").push(torch.zeros(2, 2)), r"u: expected shape \[..., 3\], got a float32 tensor of shape \[2, 2\]"),
        (lambda: priors.make("pinwheel").push(torch.zeros(2, 2)), r"u: expected shape \[..., 3\]"),
        (lambda: priors.make("pinwheel").push(torch.zeros(2, 3), torch.tensor([0, 1])), r"u: expected shape \[..., 2\]"),
        (lambda: priors.make("pinwheel").push(torch.zeros(2, 2), torch.tensor([0, 10])), r"labels: expected classes in \[0, 10\)"),
        (lambda: priors.make("gaussian").push(torch.zeros(2, 2), torch.tensor([0, 1])), "labels: expected None for a Gaussian prior"),
        (lambda: priors.make("gaussian").push([0.0, 1.0]), "u: expected a tensor"),
        (lambda: priors.make("pinwheel").draw(2, labels=torch.tensor([0, 1]), joint=True), "labels: expected None with joint=True"),
        (lambda: MAKERS["circle"]().log_prob(torch.zeros(2)), "prior: expected one with a density, got a Pushforward prior"),
        (lambda: priors.Pushforward(lambda u: u, 3, 2).integration_nodes(9), "prior: expected at most 2 coordinates of noise"),
        (
            lambda: priors.Pushforward(lambda u: u, 3, 2).sample(4),
            r"push: expected latents of shape \[4, 2\], got a float64 tensor",
        ),
        (
            lambda: log_evidence_quadrature(small_model(priors.make("gaussian", dim=3)), torch.ones(1, 8)),
            "model: expected at most 2 latent dimensions",
        ),
        (lambda: priors.Pushforward(lambda u: u, 0, 2), "noise_dim: expected at least 1"),
        (lambda: priors.Pushforward(3, 2, 2), "push: expected a function"),
    ],
)
def test_bad_input_gets_one_clear_line(call, words):
    with pytest.raises(InputError, match=f"^{words}[^\n]*$"):
        call()


def roll(u, labels=None):
    """The curve of the swiss roll, written in another way."""
    position = torch.special.ndtr(u[..., 0]) if labels is None else (labels + torch.special.ndtr(u[..., 0])) / 10
    return 3 * position.sqrt().unsqueeze(-1) * torch.view_as_real(torch.exp(4.5j * math.pi * position.sqrt()))


@pytest.mark.parametrize("classes", [None, 10])
def test_the_roll_as_a_sampler_of_noise_is_the_built_in_one(classes, all_nodes):
    theirs, ours = priors.Pushforward(roll, 1, 2, num_classes=classes), priors.make("swiss_roll")
    u = torch.randn(100, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    labels = None if classes is None else torch.arange(100) % 10
    torch.testing.assert_close(theirs.push(u, labels), ours.push(u, labels))
    model = small_model(theirs)
    x = (torch.rand(5, 8, dtype=F64, generator=torch.Generator().manual_seed(2)) < 0.5).double()
    found = log_evidence_quadrature(model, x)
    model.prior = ours
    torch.testing.assert_close(found, log_evidence_quadrature(model, x, resolution=100), rtol=0, atol=1e-6)


def test_evidence_of_many_latents_made_of_little_noise():
    model = small_model(priors.Pushforward(lambda u: torch.cat((u.sin(), u.cos(), u / 2), -1), 2, 6))
    x = torch.ones(2, 8, dtype=F64)
    u, log_weights = noise_grid(model.prior, along=100, across=60)
    expected = torch.logsumexp(model.likelihood.pairwise(model.decoder(model.prior.push(u)), x) + log_weights.unsqueeze(1), 0)
    torch.testing.assert_close(log_evidence_quadrature(model, x, resolution=100), expected.detach(), rtol=0, atol=1e-6)


def test_a_network_of_noise_is_learned_and_saved_with_the_prior():
    prior = priors.Pushforward(MLP(3, [8], 2), 3, 2)
    sample = prior.draw(50, Draws(1), dtype=F64)
    assert sample.z.dtype == F64 and len(list(prior.parameters())) > 0
    assert all(one.abs().sum() > 0 for one in torch.autograd.grad(sample.z.square().sum(), list(prior.parameters())))
    other = priors.Pushforward(MLP(3, [8], 2), 3, 2)
    other.load_state_dict(prior.state_dict())
    assert torch.equal(other.sample(50), prior.sample(50))
