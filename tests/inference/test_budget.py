"""Fits to a fixed number of simulations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ddvi_fast import InputError, fit_posterior
from ddvi_fast.inference import Architecture, Model, Training, load, stored
from ddvi_fast.inference.averaged import Averaged
from ddvi_fast.inference.budget import ChainFit, Split, held_out, set_frame
from ddvi_fast.inference.ensemble import average, fit_variances, joined
from ddvi_fast.inference.networks import build
from ddvi_fast.inference.observation import Observation
from ddvi_fast.inference.ridge import ridge
from ddvi_fast.rng import Draws
from tests.inference.test_fitting import Regression

SIZES = Architecture(num_steps=12, width=16, hidden=(8,), context_dim=4, ensemble=2)
QUICK = Training(steps=60, batch_size=64)


class Counted(Regression):
    """A simulator that counts its simulations."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def simulate(self, n: int) -> tuple[Tensor, Tensor]:
        self.calls.append(n)
        return super().simulate(n)


@pytest.mark.parametrize("dim", [None, 2])
@pytest.mark.parametrize("given", [{}, {"architecture": SIZES, "training": QUICK}, {"architecture": Architecture("gaussian"), "training": QUICK}])
def test_the_simulator_is_called_once_with_the_number_of_simulations(dim: int | None, given: dict) -> None:
    model = Counted()
    given = {"training": Training(steps=20), "architecture": Architecture(ensemble=1), **given}
    fit_posterior(Model(simulate=model.simulate), dim=dim, num_simulations=150, **given)
    assert model.calls == [150]


def test_a_posterior_of_few_simulations_is_near_the_exact_one() -> None:
    model = Regression()
    posterior = fit_posterior(Model(simulate=model.simulate), dim=2, num_simulations=500, training=Training(steps=200), architecture=SIZES)
    x = torch.tensor([1.0, -0.6, 0.3])
    exact, draws = model.exact(x), posterior.sample(4000, x=x)
    deviation = exact.covariance_matrix.diagonal().sqrt()
    assert ((draws.mean(0) - exact.mean).abs() < 0.25 * deviation).all()
    assert ((draws.std(0) / deviation - 1).abs() < 0.15).all()
    assert posterior.information > 0.1 and not posterior.notices


def test_early_stopping_keeps_noise_from_being_learned() -> None:
    """Data that tell nothing about the parameters leave the posterior at the prior, N(0, 1)."""
    posterior = fit_posterior(
        Model(simulate=lambda n: (torch.randn(n, 1), torch.randn(n, 20))), num_simulations=200, architecture=SIZES, training=Training(steps=400)
    )  # fmt: skip
    draws = posterior.sample(2000, x=torch.randn(20, generator=torch.Generator().manual_seed(3)))
    assert abs(float(draws.mean())) < 0.35 and 0.8 < float(draws.std()) < 1.2


def test_equal_arguments_give_equal_posteriors_and_loading_gives_the_same(tmp_path) -> None:
    def fit(seed: int) -> Tensor:
        made = fit_posterior(Model(simulate=Regression().simulate), num_simulations=120, architecture=SIZES, training=QUICK, seed=seed)
        made.save(tmp_path / str(seed), overwrite=True)
        return made.sample(50, x=torch.ones(3))

    first = fit(0)
    assert torch.equal(first, load(tmp_path / "0").sample(50, x=torch.ones(3)))
    assert torch.equal(first, fit(0)) and not torch.equal(first, fit(1))


def test_ridge_is_that_of_the_normal_equations_and_its_error_that_of_leaving_rows_out() -> None:
    made = torch.Generator().manual_seed(1)
    x = torch.randn(40, 6, generator=made, dtype=torch.float64)
    y = x[:, :2] + torch.randn(40, 2, generator=made, dtype=torch.float64) * torch.tensor([0.1, 5.0])
    found, penalties = ridge(x, y), torch.logspace(-4, 6, 31, dtype=torch.float64)

    def fitted(x: Tensor, y: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor]:
        center, mean = x.mean(0), y.mean(0)
        matrix = torch.linalg.solve((x - center).T @ (x - center) + penalty * torch.eye(6), (x - center).T @ (y - mean))
        return matrix, mean - center @ matrix

    for column in range(2):
        errors = []
        for penalty in penalties:
            left = [torch.arange(40) != row for row in range(40)]
            parts = [fitted(x[kept], y[kept, column], penalty) for kept in left]
            errors.append(torch.stack([y[row, column] - x[row] @ matrix - bias for row, (matrix, bias) in enumerate(parts)]).square().mean())
        best = int(torch.stack(errors).argmin())
        matrix, bias = fitted(x, y[:, column], penalties[best])
        torch.testing.assert_close(found.matrix[column].double(), matrix, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.bias[column].double(), bias, rtol=1e-3, atol=1e-3)
        assert abs(float(found.log_error[column].exp() / errors[best]) - 1) < 0.03  # the center moves with the row that is left out


def test_ridge_of_more_features_than_rows_has_finite_weights() -> None:
    found = ridge(torch.randn(5, 9, generator=torch.Generator().manual_seed(0)), torch.arange(10.0).reshape(5, 2))
    assert all(bool(part.isfinite().all()) for part in found)


def _members(count: int) -> tuple[list, Observation]:
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(2))
    observation = Observation.of(x, None)
    architecture = SIZES.settled()
    members = [build(architecture, 2, observation, seed) for seed in range(count)]
    for member in members:
        torch.nn.init.normal_(member.denoiser.last, generator=torch.Generator().manual_seed(4))
        torch.nn.init.normal_(member.denoiser.embedding, generator=torch.Generator().manual_seed(5))
    return members, observation


def test_the_average_of_chains_predicts_the_mean_of_their_predictions() -> None:
    members, observation = _members(3)
    whole = average(members, build(joined(SIZES.settled(), 3), 2, observation, 7))
    made = torch.Generator().manual_seed(8)
    x, y, t = torch.randn(20, 3, generator=made), torch.randn(20, 2, generator=made), torch.arange(20) % 12
    expected = torch.stack([member.denoiser(y, member.encode_context(x), t) for member in members]).mean(0)
    torch.testing.assert_close(whole.denoiser(y, whole.encode_context(x), t), expected)
    assert whole.denoiser.hidden_dim == 48 and not torch.allclose(expected, members[0].denoiser(y, members[0].encode_context(x), t))


def test_fitted_variances_have_the_lowest_loss_of_the_simulations_held_out() -> None:
    (member,), observation = _members(1)
    made = torch.Generator().manual_seed(6)
    v, x = torch.randn(400, 2, generator=made), torch.randn(400, 3, generator=made)
    split = Split.of(v, observation(x), 0)
    set_frame(member, ridge(split.x, split.v))
    goal, draws = ChainFit(member, split, member.context_encoder.read, 64), Draws(3)
    fit_variances(member, goal.step_errors(draws))
    best, factors = goal.validation_loss(draws), member.log_variance_factors.data.clone()
    for change in (0.1, -0.1):
        member.log_variance_factors.data.copy_(factors + change)
        assert goal.validation_loss(draws) > best


def test_the_best_average_of_the_weights_is_kept() -> None:
    weight = torch.nn.Parameter(torch.tensor([4.0]))
    averaged = Averaged([weight], lambda: float(weight.detach().square()))
    for value in (2.0, 1.0, -3.0, -30.0):
        weight.data.fill_(value)
        averaged.follow(), averaged.check()
        assert float(weight.detach()) == value
    averaged.finish()
    assert averaged.found_at == 2 and abs(float(weight.detach())) < 2


@pytest.mark.parametrize(("count", "held"), [(2, 1), (3, 1), (40, 10), (400, 100), (1000, 100), (10_000, 1000), (100_000, 5000)])
def test_a_tenth_is_held_out_and_more_of_few(count: int, held: int) -> None:
    assert held_out(count) == held
    split = Split.of(torch.arange(float(count)).unsqueeze(1), torch.arange(float(count)).unsqueeze(1), 0)
    assert torch.equal(torch.cat((split.v, split.held_v)).sort(0).values[:, 0], torch.arange(float(count))) and len(split.held_v) == held
    assert torch.equal(split.v, split.x) and torch.equal(split.held_v, split.held_x)


def test_settings_follow_the_number_of_simulations() -> None:
    few, many, free = (Architecture().settled(stored=count) for count in (1000, 100_000, None))
    assert (few.width, few.ensemble, few.num_steps) == (64, 4, 100) and (many.width, many.ensemble) == (128, 1)
    assert (free.width, free.ensemble, free.num_steps, free.end) == (64, 1, 20, 3.0)
    assert Architecture(width=7, num_steps=3, ensemble=2).settled(stored=10).width == 7
    assert Training().settled() == Training(8000, 512, 5e-3)
    assert [Training().settled(count).steps for count in (10, 1000, 100_000)] == [1000, 3000, 18929]


def test_an_ensemble_needs_a_fixed_number_of_simulations() -> None:
    with pytest.raises(InputError, match="architecture: expected ensemble=1 for a fit without a fixed number of simulations"):
        fit_posterior(Model(simulate=Regression().simulate), architecture=Architecture(ensemble=2), support=constraints.real)


def test_arrays_are_a_fixed_number_of_simulations() -> None:
    """Each row is used, in memory, with the settings of so many simulations; of larger arrays rows are read as they are needed."""
    with torch.random.fork_rng():
        z, x = Regression().simulate(150)
    posterior = fit_posterior(simulations=(z, x), architecture=SIZES, training=QUICK)
    assert posterior.architecture.width == 32
    torch.testing.assert_close(posterior.whitening.shift, z.mean(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "_HELD", 100)
        with pytest.raises(InputError, match="architecture: expected ensemble=1"):
            fit_posterior(simulations=(z, x), architecture=SIZES, training=QUICK)


def test_two_simulations_are_enough_to_run() -> None:
    posterior = fit_posterior(Model(simulate=Regression().simulate), num_simulations=2, architecture=SIZES, training=QUICK)
    assert bool(posterior.sample(10, x=torch.zeros(3)).isfinite().all())
