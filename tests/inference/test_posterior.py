"""The fitted posterior: densities against closed forms and quadrature, batch-independent samples, saving and loading."""

from __future__ import annotations

import copy
import json
import math
import pickle
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Beta, Gamma, LogNormal, Normal, constraints

from ddvi_fast import InputError, ops
from ddvi_fast.inference import Architecture, FittedPosterior, Model, Support, Training, fit_posterior, load
from ddvi_fast.inference.model import Whitening
from ddvi_fast.inference.networks import _start_as_stationary, build

FAMILIES = [pytest.param("flow", marks=pytest.mark.skipif(find_spec("zuko") is None, reason="zuko is not installed")), "gaussian"]
SMALL = Architecture(num_steps=6, width=64, hidden=(16,), context_dim=4)


def untrained(support: Support, shift: float = 0.4, scale: float = 0.7) -> FittedPosterior:
    """An untrained chain, which samples N(0, I) in the encoder's frame, in shifted and scaled coordinates. Half of either is the frame's."""
    whitening = Whitening(torch.full((support.dim,), shift / 2), 2 * scale * torch.eye(support.dim))
    posterior = build(SMALL, support.dim, None, 0)
    with torch.no_grad():
        frame = shift / 2 / (2 * scale), -2 * math.log(2)  # mean and log-variance
        posterior.encoder.output.copy_(torch.tensor(frame).repeat_interleave(support.dim))
    return FittedPosterior(posterior, support, whitening, SMALL, conditional=False)


def bent(posterior: FittedPosterior) -> FittedPosterior:
    """The same with random weights in the chain."""
    denoiser = posterior.posterior.denoiser
    with torch.no_grad():
        denoiser.last.copy_(0.15 * torch.randn(denoiser.last.shape, generator=torch.Generator().manual_seed(0)))
        denoiser.embedding.copy_(0.4 * torch.rand(denoiser.embedding.shape, generator=torch.Generator().manual_seed(1)))
    return posterior


def conditional(**options) -> FittedPosterior:
    def simulate(n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 1)
        return z, z.unsqueeze(2) + torch.randn(n, 1, 3)

    return fit_posterior(Model(simulate=simulate), architecture=SMALL, training=Training(steps=3, batch_size=32), **options)


def test_an_untrained_chain_is_exactly_the_gaussian_it_starts_from() -> None:
    posterior = untrained(Support(constraints.positive, 1))
    z = torch.tensor([[0.2], [1.0], [3.7]])
    for bound in ("elbo", "iwae"):  # both are tight if the chain inverts the noising process
        torch.testing.assert_close(posterior.log_prob(z, bound=bound, num_paths=3), LogNormal(0.4, 0.7).log_prob(z)[:, 0], rtol=0, atol=2e-4)
    draws = posterior.sample(20_000).log()
    assert abs(float(draws.mean()) - 0.4) < 4 * 0.7 / math.sqrt(20_000)
    assert abs(float(draws.std()) / 0.7 - 1) < 4 / math.sqrt(40_000)


def test_the_bound_on_a_density_rises_to_one_that_integrates_to_one() -> None:
    posterior = bent(untrained(Support(constraints.real, 1)))
    grid = torch.linspace(-6, 6, 301).unsqueeze(1)
    mass = {
        samples: float(torch.trapezoid(posterior.log_prob(grid, bound=bound, num_paths=samples).exp(), grid[:, 0]))
        for bound, samples in (("elbo", 64), ("iwae", 8), ("iwae", 512))
    }
    assert mass[64] < mass[8] < mass[512] < 1.01 and mass[512] > 0.97
    # It is the density of the samples: its mean is theirs.
    weights = posterior.log_prob(grid, num_paths=512).exp()
    mean = float(torch.trapezoid(weights * grid[:, 0], grid[:, 0]) / torch.trapezoid(weights, grid[:, 0]))
    draws = posterior.sample(50_000)
    assert abs(mean - float(draws.mean())) < 4 * float(draws.std()) / math.sqrt(50_000) + 0.01


def _density_by_quadrature(posterior: FittedPosterior, z: Tensor) -> Tensor:
    """Log-density [N] of a chain in one unconstrained coordinate: the densities of its states, integrated step by step on a grid."""
    chain, shift, scale = posterior.posterior, posterior.whitening.shift, posterior.whitening.factor[0, 0]
    grid, table = torch.linspace(-7, 7, 1401), chain.coefficients().double()
    encoded = chain.encode(torch.zeros(1, 1))
    density = Normal(0.0, 1.0).log_prob(grid.double()).exp()

    def kernel(step: int, y: Tensor) -> Tensor:
        mean = chain.step_mean(encoded, grid.reshape(-1, 1, 1), step, chain.coefficients())[:, 0, 0].double()
        return Normal(mean.unsqueeze(1), table[step, 2]).log_prob(y.double()).exp()

    with torch.no_grad():
        for step in reversed(range(1, len(table))):
            density = torch.trapezoid(density.unsqueeze(1) * kernel(step, grid), grid.double(), dim=0)
        v = chain.whitened(encoded, (z - shift) / scale)[:, 0]
        last = torch.trapezoid(density.unsqueeze(1) * kernel(0, v), grid.double(), dim=0)
        return last.log() - chain.log_scale(encoded).double() - scale.log().double()


def test_the_estimate_of_a_density_has_the_standard_error_that_it_states() -> None:
    posterior = bent(untrained(Support(constraints.real, 1)))
    z = torch.linspace(-1.5, 2.5, 9).unsqueeze(1)
    exact = _density_by_quadrature(posterior, z)
    values, errors = (torch.stack(part).double() for part in zip(*(posterior.log_prob(z, num_paths=256, return_error=True, seed=seed)
                                                                    for seed in range(40)), strict=True))  # fmt: skip
    spread = values.std(0)
    torch.testing.assert_close(errors.square().mean(0).sqrt(), spread, rtol=0.5, atol=0)
    assert float(spread.max()) > 1e-3
    assert bool(((values.mean(0) - exact).abs() < 4 * spread / math.sqrt(40) + spread.square() + 1e-4).all())
    few = torch.stack([posterior.log_prob(z, num_paths=2, seed=seed) for seed in range(200)]).double()
    assert bool((few.mean(0) < exact + 4 * few.std(0) / math.sqrt(200)).all()) and float((exact - few.mean(0)).max()) > 0.005
    elbo, error = posterior.log_prob(z, bound="elbo", num_paths=256, return_error=True)
    torch.testing.assert_close(torch.stack([posterior.log_prob(z, bound="elbo", num_paths=1, seed=seed) for seed in range(40)]).std(0) / 16, error,
                               rtol=0.6, atol=0)  # fmt: skip
    assert bool((elbo.double() < exact + 4 * error.double()).all())


def test_a_path_evaluates_the_network_as_often_as_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = bent(untrained(Support(constraints.real, 2)))
    rows = []
    run = ops.trajectory.regression
    monkeypatch.setattr("ddvi_fast.ops.trajectory.regression", lambda y, *rest, **options: rows.append(y[..., 0].numel()) or run(y, *rest, **options))
    posterior.log_prob(torch.zeros(5, 2), num_paths=7)
    assert sum(rows) == 5 * 7 * SMALL.num_steps
    whole = posterior.log_prob(torch.zeros(5, 2), num_paths=7, return_error=True)
    monkeypatch.setattr("ddvi_fast.inference.density._STATES", 60)  # two paths at a time
    for part, one in zip(posterior.log_prob(torch.zeros(5, 2), num_paths=7, return_error=True), whole, strict=True):
        torch.testing.assert_close(part, one)


def test_errors_of_known_densities_are_zero() -> None:
    support, architecture = Support(constraints.positive, 1), Architecture(family="gaussian")
    posterior = FittedPosterior(build(architecture, 1, None, 0), support, Whitening(torch.zeros(1), torch.eye(1)), architecture, conditional=False)
    value, error = posterior.log_prob(torch.tensor([[1.0], [-1.0], [math.nan]]), return_error=True)
    assert torch.equal(error[:2], torch.zeros(2)) and bool(error[2].isnan()) and value[1] == -math.inf
    empty = posterior.log_prob(torch.zeros(0, 1), return_error=True)
    assert empty[0].shape == empty[1].shape == (0,)
    with pytest.raises(InputError, match="num_paths: expected an integer of at least 2"):
        posterior.log_prob(torch.ones(1, 1), num_paths=1, return_error=True)
    with pytest.raises(InputError, match="return_error: expected"):
        posterior.log_prob(torch.ones(1, 1), return_error="yes")


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_have_their_density_itself(family: str) -> None:
    architecture, support = Architecture(family=family), Support(constraints.interval(-1.0, 3.0), 2)
    posterior = FittedPosterior(build(architecture, 2, None, 0), support, Whitening(torch.zeros(2), torch.eye(2)), architecture, conditional=False)
    axis = torch.linspace(-1, 3, 202)[1:-1]
    grid = torch.cartesian_prod(axis, axis)
    mass = float(posterior.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2)
    assert abs(mass - 1) < 0.02


def test_weights_of_a_known_posterior_are_all_the_evidence() -> None:
    # Where q is the posterior, every weight is p(x): here q = N(0.4, 0.7^2) and p(x, z) = e^2 q(z).
    posterior = untrained(Support(constraints.real, 1))
    posterior.model = Model(log_joint=lambda x, z: 2 + Normal(0.4, 0.7).log_prob(z[..., 0]))
    sample = posterior.importance_sample(1000)
    torch.testing.assert_close(sample.log_ratios, torch.full((1000,), 2.0), rtol=0, atol=2e-4)
    assert sample.effective_sample_size > 999


def test_the_bound_of_a_known_posterior_is_the_evidence_and_rows_have_their_own() -> None:
    posterior = untrained(Support(constraints.real, 1))
    posterior.model = Model(log_joint=lambda x, z: 2 + Normal(0.4, 0.7).log_prob(z[..., 0]))
    assert posterior.elbo(num_samples=50).item() == pytest.approx(2.0, abs=2e-4)
    several, rows = conditional(), torch.randn(3, 1, 3, generator=torch.Generator().manual_seed(2))
    several.model = Model(log_joint=lambda x, z: Normal(0.0, 1.0).log_prob(z[..., 0]) + Normal(z.unsqueeze(-1), 1.0).log_prob(x).sum((-1, -2)))
    bounds = several.elbo(rows, 200, seed=4)
    assert bounds.shape == (3,)
    for row, bound in zip(rows, bounds, strict=True):
        evidence = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(row[0])
        assert float(several.elbo(row, 200, seed=4)) == pytest.approx(several.importance_sample(200, row, seed=4).elbo, abs=1e-4)
        assert float(bound) < float(evidence)
    torch.testing.assert_close(bounds[0], several.elbo(rows[0], 200, seed=4), rtol=1e-4, atol=1e-4)
    assert several.elbo(rows[:0]).shape == (0,)
    with pytest.raises(InputError, match=r"^model: expected one with log_joint, for bounds[^\n]*$"):
        conditional().elbo(rows)


def test_draws_do_not_depend_on_how_many_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = conditional()
    rows = torch.randn(3, 1, 3, generator=torch.Generator().manual_seed(2))
    whole = posterior.sample(50, rows, seed=4)
    torch.testing.assert_close(posterior.sample(20, rows, seed=4), whole[:20])
    monkeypatch.setattr("ddvi_fast.inference.posterior._ROWS", 12)
    torch.testing.assert_close(posterior.sample(50, rows, seed=4), whole)
    torch.testing.assert_close(posterior.sample(50, rows[0], seed=4), whole[:, 0])
    assert not torch.equal(posterior.sample(50, rows, seed=5), whole)


def test_a_posterior_is_the_same_after_its_folder(tmp_path) -> None:
    posterior = conditional(x=torch.ones(1, 3))
    posterior.save(tmp_path / "kept")
    again = load(tmp_path / "kept")
    assert torch.equal(again.sample(7), posterior.sample(7)) and again.history == posterior.history
    assert torch.equal(again.sample(7, torch.zeros(2, 1, 3)), posterior.sample(7, torch.zeros(2, 1, 3)))
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"weights.safetensors", "state.json"}
    with pytest.raises(InputError, match="path: expected a new folder"):
        posterior.save(tmp_path / "kept")
    posterior.save(tmp_path / "kept", overwrite=True)
    with pytest.raises(InputError, match="model: expected one with simulate"):
        again.diagnostics()


def test_a_posterior_of_one_data_set_is_the_same_after_its_folder(tmp_path) -> None:
    support = Support({"mu": constraints.real, "tau": constraints.positive})
    posterior = bent(untrained(support))
    posterior.save(tmp_path / "kept")
    again = FittedPosterior.load(tmp_path / "kept", model=Model(log_joint=lambda x, z: x * z["mu"]), x=2.0)
    one, other = posterior.sample(5), again.sample(5)
    assert one.keys() == {"mu", "tau"} and all(torch.equal(one[name], other[name]) for name in one)
    assert again.x == 2.0 and len(again.importance_sample(200).log_ratios) == 200


def test_an_embedding_is_trained_saved_and_asked_for(tmp_path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(1), nn.Linear(3, 2))

    with torch.random.fork_rng():
        embedding, other = network(), network()
    before = embedding[1].weight.detach().clone()
    posterior = conditional(embedding=embedding)
    assert not torch.equal(embedding[1].weight, before)
    posterior.save(tmp_path / "kept")
    again = load(tmp_path / "kept", embedding=other)
    assert torch.equal(again.sample(4, torch.ones(1, 3)), posterior.sample(4, torch.ones(1, 3)))
    with pytest.raises(InputError, match="embedding: expected the network"):
        load(tmp_path / "kept")


def test_a_folder_that_was_altered_is_refused(tmp_path) -> None:
    untrained(Support(constraints.real, 1)).save(tmp_path / "kept")
    state = json.loads((tmp_path / "kept/state.json").read_text())
    state["state"]["conditional"] = True
    (tmp_path / "kept/state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="altered"):
        load(tmp_path / "kept")


def test_the_steps_are_those_of_a_stationary_process_plus_a_scaled_velocity() -> None:
    posterior = build(SMALL, 2, None, 0)
    betas = posterior.betas.double()
    signal = torch.cumprod(1 - betas, 0)
    before = torch.cat((torch.ones(1).double(), signal[:-1]))
    state, output, deviation, _, _ = posterior.coefficients().double().unbind(1)
    torch.testing.assert_close(state, (1 - betas).sqrt(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(output, -before.sqrt() * betas / (1 - signal).sqrt(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(deviation, betas.sqrt(), rtol=1e-5, atol=1e-6)


def test_the_chain_learns_in_the_frame_of_each_data_set() -> None:
    posterior = conditional()
    assert posterior.posterior.coordinates == "encoder"
    rows = torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(3))
    encoded = posterior.posterior.encode(rows)
    # With the chain's output at zero and the step variances of the noising process the posterior is the Gaussian of the frame.
    with torch.no_grad():
        posterior.posterior.denoiser.last.zero_()
        posterior.posterior.denoiser.last_bias.zero_()
        posterior.posterior.log_variance_factors.zero_()
    _start_as_stationary(posterior.posterior)
    z = torch.tensor([[0.3], [-1.2]])
    for row in range(4):
        mean = posterior.whitening.shift + posterior.whitening.factor[0] * encoded.mean[row]
        exact = Normal(mean, posterior.whitening.factor[0] * torch.exp(encoded.log_var[row] / 2)).log_prob(z)[:, 0]
        torch.testing.assert_close(posterior.log_prob(z, rows[row], bound="elbo", num_paths=1), exact, rtol=0, atol=2e-4)


def test_a_folder_of_an_earlier_version_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddvi_fast.inference.posterior._FORMAT", "ddvi_fast posterior")
    untrained(Support(constraints.real, 1)).save(tmp_path / "kept")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"path: expected a posterior written by this version, got .* \(fit the model again\)"):
        load(tmp_path / "kept")


DENSITIES = {
    "positive": (constraints.positive, (), [1.0], [-1.0, 0.0, math.inf]), "unit interval": (constraints.unit_interval, (), [0.3], [2.0, -0.1]),
    "simplex": (constraints.simplex, (3,), [[0.2, 0.3, 0.5]], [[0.3, 0.3, 0.9], [1.2, -0.1, -0.1]]),
    "real": (constraints.real, (), [0.3], [math.inf]),
    "box": (constraints.interval(torch.zeros(2), torch.tensor([1.0, 2.0])), (2,), [[0.5, 1.5]], [[1.5, 0.5], [0.5, 2.5]]),
}  # fmt: skip


@pytest.mark.parametrize("family", ["diffusion", "gaussian"])
@pytest.mark.parametrize("name", DENSITIES)
def test_there_is_no_density_outside_the_support(name: str, family: str) -> None:
    kind, shape, inside, outside = DENSITIES[name]
    support, architecture = Support({"theta": (kind, shape)}), Architecture(family=family, num_steps=4, width=8)
    whitening = Whitening(torch.zeros(support.dim), torch.eye(support.dim))
    posterior = FittedPosterior(build(architecture, support.dim, None, 0), support, whitening, architecture, conditional=False)
    alone = posterior.log_prob({"theta": torch.tensor(inside)}, num_paths=3)
    missing = torch.full_like(torch.tensor(inside), math.nan)
    found = posterior.log_prob({"theta": torch.cat((torch.tensor(inside), torch.tensor(outside), missing))}, num_paths=3)
    assert bool(alone.isfinite().all()) and torch.equal(found[:1], alone)
    assert bool((found[1:-1] == -math.inf).all()) and bool(found[-1].isnan())


def test_the_density_on_a_boundary_is_that_beside_it() -> None:
    posterior = untrained(Support(constraints.unit_interval, 1))
    step = torch.finfo(torch.float32).eps
    on, beside = posterior.log_prob(torch.tensor([[0.0], [1.0]])), posterior.log_prob(torch.tensor([[step], [1 - step]]))
    torch.testing.assert_close(on, beside, rtol=1e-3, atol=0)
    assert posterior.log_prob(torch.zeros(0, 1)).shape == (0,)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda kept: pickle.loads(pickle.dumps(kept))], ids=["deep copy", "pickle"])
def test_a_copied_posterior_is_the_same(copied, tmp_path) -> None:
    posterior = untrained(Support({"a": (constraints.interval(torch.zeros(2), torch.ones(2)), (2,)), "b": constraints.real}))
    again = copied(posterior)
    assert all(torch.equal(again.sample(5)[name], value) for name, value in posterior.sample(5).items())
    loaded = load(again.save(tmp_path / "kept"))
    assert all(torch.equal(loaded.sample(5)[name], value) for name, value in posterior.sample(5).items())


def test_references_outside_the_support_are_refused() -> None:
    posterior = untrained(Support({"tau": constraints.positive}))
    with pytest.raises(InputError, match=r"reference, tau: expected values in GreaterThan.*, got 2 of 30 rows outside"):
        posterior.diagnostics(num_samples=99, reference={"tau": torch.arange(-1.0, 29.0)})


def test_bad_requests_are_named() -> None:
    single, many = untrained(Support(constraints.real, 2)), conditional()
    with pytest.raises(InputError, match="x: expected None"):
        single.sample(3, torch.zeros(2))
    with pytest.raises(InputError, match=r"x: expected data of shape \[1, 3\]"):
        many.sample(3, torch.zeros(4))
    with pytest.raises(InputError, match=r"x: expected data of shape \[1, 3\]"):
        many.sample(3)
    with pytest.raises(InputError, match="num_samples: expected an integer of at least 1"):
        single.sample(0)
    for name, call in {"num_samples": single.sample, "num_paths": lambda count: single.log_prob(torch.zeros(1, 2), num_paths=count)}.items():
        with pytest.raises(InputError, match=rf"^{name}: expected at most 8388608, got 1000000000000$"):
            call(10**12)
    assert torch.equal(single.sample(np.int64(3)), single.sample(3))
    for x in (np.zeros((1, 3)), [1.0], 0.5, torch.zeros(2, 1, 3), torch.zeros(1, 3, device="meta"), torch.zeros(1, 3).to_sparse()):
        with pytest.raises(InputError, match="x: expected"):
            many.diagnose(x)
    with pytest.raises(InputError, match="z: expected a tensor with values"):
        single.log_prob(torch.zeros(1, 2, device="meta"))
    with pytest.raises(InputError, match=r"reference: expected samples .* at least 2"):
        single.diagnostics(reference=torch.zeros(0, 2))
    for count in ((1000,), 10.0, None, True):
        with pytest.raises(InputError, match="num_samples: expected an integer"):
            single.sample(count)
    with pytest.raises(InputError, match="did you mean elbo"):
        single.log_prob(torch.zeros(1, 2), bound="elb")
    with pytest.raises(InputError, match="model: expected one with log_joint"):
        single.importance_sample()
    with pytest.raises(InputError, match="z: expected"):
        single.log_prob(torch.zeros(2))


def test_the_mode_of_a_density_is_found_in_the_parameters_own_units():
    """Modes of the constrained parameters, by hand: a beta, a gamma and a normal; the modes of their unconstrained coordinates lie elsewhere."""
    parts = {"share": Beta(3.0, 2.0), "size": Gamma(2.0, 4.0), "place": Normal(3.0, 0.1)}
    support = {"share": constraints.unit_interval, "size": constraints.positive, "place": constraints.real}
    model = Model(log_joint=lambda x, z: sum(part.log_prob(z[name]) for name, part in parts.items()))
    found = fit_posterior(model, support=support, training=Training(steps=20, batch_size=64)).map()
    for name, expected in {"share": 2 / 3, "size": 0.25, "place": 3.0}.items():
        assert abs(float(found[name]) - expected) < 2e-3


def test_a_density_that_rises_to_the_boundary_is_told():
    model = Model(log_joint=lambda x, z: Gamma(0.5, 1.0).log_prob(z[..., 0]))
    posterior = fit_posterior(model, support=constraints.positive, dim=1, training=Training(steps=20, batch_size=64))
    with pytest.warns(UserWarning, match="map: the density still rises"):
        assert float(posterior.map()) < 1e-3


def test_the_mode_of_a_posterior_of_simulations_follows_the_data():
    def simulate(n):
        z = torch.randn(n, 1)
        return z, z + 0.5 * torch.randn(n, 1)

    posterior = fit_posterior(Model(simulate=simulate), training=Training(steps=300, batch_size=128), architecture=SMALL)
    low, high = float(posterior.map(torch.tensor([-1.5]))), float(posterior.map(torch.tensor([1.5])))
    assert abs(low + 1.2) < 0.4 and abs(high - 1.2) < 0.4
    with pytest.raises(InputError, match="x: expected one data set"):
        posterior.map(torch.zeros(3, 1))
