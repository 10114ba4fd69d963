"""Observed data: their standardization, what is outside of the simulations, one reader."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddvi_fast import InputError, export, fit_posterior
from ddvi_fast.inference import Architecture, FittedPosterior, Model, Training, load
from ddvi_fast.inference.observation import Observation, column_names, normal_scores, observed_rows, quantiles

SMALL = Architecture(num_steps=6, width=32, hidden=(16,), context_dim=4)
QUICK = Training(steps=150, batch_size=128)
GAUSSIAN = Architecture(family="gaussian", hidden=(16,))  # quick to train, and exact for the model of `fit`


def normal(rows: int = 4096, seed: int = 0) -> Tensor:
    return torch.randn(rows, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fit(move=lambda x: x, unit: float = 1.0, dtype: torch.dtype = torch.float32, **options) -> FittedPosterior:
    """z ~ N(0, 1) in some unit, x = move(z + 0.3 noise): given move(1) the posterior is N(0.917, 0.287^2), in that unit."""

    def simulate(n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 1, dtype=dtype)
        return z * unit, move(z + 0.3 * torch.randn(n, 1, dtype=dtype))

    options = {"architecture": GAUSSIAN, "training": Training(steps=200, batch_size=128, lr=0.02), **options}
    return fit_posterior(Model(simulate=simulate), move(torch.ones(1, dtype=dtype)), **options)


@pytest.fixture(scope="module")
def plain() -> Tensor:
    draws = fit().sample(2000)
    assert abs(float(draws.mean()) - 0.917) < 0.1 and abs(float(draws.std()) - 0.287) < 0.06
    return draws


CHANGES = {
    "data of order 1e-9": (lambda x: 1e-9 * x, 1.0), "data of order 1e12": (lambda x: 1e12 * x, 1.0), "parameters of order 1e-9": (lambda x: x, 1e-9),
    "parameters of order 1e9": (lambda x: x, 1e9), "an offset": (lambda x: x + 64, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_units_changes_units_and_nothing_else(plain: Tensor, name: str) -> None:
    move, unit = CHANGES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws = fit(move, unit).sample(2000) / unit
    torch.testing.assert_close(draws, plain, rtol=0, atol=0.05)  # training multiplies the differences of rounding


def test_data_in_double_precision_keep_what_single_precision_loses(plain: Tensor) -> None:
    draws = fit(lambda x: x + 1e9, dtype=torch.float64).sample(2000)
    assert abs(float(draws.mean() - plain.mean())) < 0.1 and abs(float(draws.std() - plain.std())) < 0.06


def test_heavy_tails_are_told_and_lose_nothing(plain: Tensor, tmp_path) -> None:
    with pytest.warns(UserWarning, match=r"x\[0\] with heavy tails, standardized by quantiles"):
        posterior = fit(lambda x: torch.sinh(10 * x))
    draws = posterior.sample(2000)
    assert abs(float(draws.mean() - plain.mean())) < 0.1 and abs(float(draws.std() - plain.std())) < 0.06
    again = load(posterior.save(tmp_path / "kept"))
    assert torch.equal(again.sample(50), posterior.sample(50)) and again.notices == posterior.notices and again.information == posterior.information
    program = export.sampler(posterior.posterior, torch.ones(3, 1), num_samples=2).module()
    y, _ = program(torch.full((1, 1), 11013.2), torch.tensor([0, 0]))
    torch.testing.assert_close(posterior.support.constrain(posterior.whitening(y[:, 0]))[0], posterior.sample(2, torch.full((1,), 11013.2)))


@pytest.mark.parametrize("constant", [0.0, 5.0, 1e6, -1e30])
def test_columns_without_spread_are_left_out_and_change_nothing(plain: Tensor, constant: float) -> None:
    def beside(x: Tensor) -> Tensor:
        return torch.cat((torch.full_like(x, constant), x), -1)

    with pytest.warns(UserWarning, match=r"simulate, x: x\[0\] without spread, left out"):
        posterior = fit(beside)
    assert torch.equal(posterior.sample(2000), plain)
    with pytest.warns(UserWarning, match=r"x: x\[0\] did not vary in the simulations and differs"):
        other = posterior.sample(2000, torch.tensor([1.001 * constant + 0.001, 1.0]))
    assert torch.equal(other, plain)


def test_data_without_any_spread_are_refused() -> None:
    with pytest.raises(InputError, match="simulate, x: expected data that vary, got the same in every simulation"):
        fit(lambda x: torch.full_like(x, 3.0))


def test_parameters_without_spread_are_refused_by_name() -> None:
    def simulate(n: int) -> tuple[dict[str, Tensor], Tensor]:
        return {"mu": torch.randn(n), "still": torch.full((n,), 2.0)}, torch.randn(n, 2)

    with pytest.raises(InputError, match="simulate, z: expected parameters that vary, got still without spread"):
        fit_posterior(Model(simulate=simulate), support={"mu": torch.distributions.constraints.real, "still": torch.distributions.constraints.real})


def test_parameters_that_single_precision_does_not_resolve_are_told() -> None:
    def simulate(n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 1, dtype=torch.float64)
        return 1e9 + z, z

    with pytest.warns(UserWarning, match=r"z\[0\] vary too little around their mean for single precision"):
        fit_posterior(Model(simulate=simulate), architecture=SMALL, training=Training(steps=2, batch_size=16))


@pytest.mark.parametrize("by", ["simulations", "density"])
def test_an_interval_that_single_precision_does_not_resolve_is_told(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setattr("ddvi_fast.inference.start.STEPS", 30)
    kind = torch.distributions.constraints.interval(1e6, 1e6 + 1)

    def simulate(n: int) -> tuple[Tensor, Tensor]:
        z = torch.rand(n, 1, dtype=torch.float64)
        return 1e6 + z, z

    model = Model(simulate=simulate) if by == "simulations" else Model(log_joint=lambda x, z: -((z - 1e6 - 0.5) ** 2).sum(-1))
    with pytest.warns(UserWarning, match=r"z\[0\] vary too little around their mean for single precision"):
        fit_posterior(model, support=kind, dim=1, architecture=Architecture(num_steps=6, width=32), training=Training(steps=2, batch_size=16))


def test_pixels_that_hardly_vary_do_not_break_a_posterior() -> None:
    """Border pixels are nearly constant in the simulations, and not in an observation."""

    def simulate(n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 1)
        rare = (torch.rand(n, 1) < 1e-3).float() * 0.01
        return z, torch.cat((z + 0.3 * torch.randn(n, 1), 1e-4 * torch.randn(n, 1), rare, torch.zeros(n, 1)), 1).unsqueeze(1)

    with pytest.warns(UserWarning, match=r"x\[0, 3\] without spread"):
        posterior = fit_posterior(Model(simulate=simulate), architecture=SMALL, training=QUICK)
    with pytest.warns(UserWarning, match=r"x: x\[0, 1\], x\[0, 2\] far outside of what was simulated; clipped"):
        draws = posterior.sample(2000, torch.tensor([[1.0, 0.9, 0.9, 0.9]]))
    assert bool(draws.isfinite().all()) and float(draws.abs().max()) < 20
    assert float(posterior.sample(200, torch.full((1, 4), 3e38)).abs().max()) < 100


def test_normal_scores_are_those_of_the_ranks() -> None:
    z = normal()
    x = torch.sinh(5 * z)
    knots, scores = quantiles(x)
    ranks = x[:, 0].argsort().argsort().double()
    exact = torch.special.ndtri((ranks + 0.5) / len(x))
    found = normal_scores(x, knots, scores)[:, 0]
    assert float((found - exact).abs().mean()) < 0.01
    order = x[:, 0].argsort()
    assert bool((found[order].diff() >= 0).all())
    outside = normal_scores(torch.tensor([[-1e300], [1e300]], dtype=torch.float64), knots, scores)
    torch.testing.assert_close(outside[:, 0], exact[order[[0, -1]]])


def test_equal_values_share_the_middle_of_their_ranks() -> None:
    x = torch.cat((torch.zeros(75, 1), torch.ones(25, 1))).double()
    scores = normal_scores(x, *quantiles(x))[:, 0].unique()
    torch.testing.assert_close(scores, torch.special.ndtri(torch.tensor([0.375, 0.875]).double()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_any_real_type_is_read(dtype: torch.dtype) -> None:
    def simulate(n: int) -> tuple[Tensor, Tensor]:
        z = torch.rand(n, 1)
        return z, (z > torch.rand(n, 3)).to(dtype)

    posterior = fit_posterior(Model(simulate=simulate), torch.ones(3, dtype=dtype), architecture=SMALL, training=Training(steps=3, batch_size=16))
    assert torch.equal(posterior.sample(4), posterior.sample(4, torch.ones(3)))


def test_observed_data_are_read_in_one_place() -> None:
    posterior = fit(lambda x: x.expand(*x.shape[:-1], 2), training=Training(steps=3, batch_size=16))
    calls = [
        lambda x: posterior.sample(3, x), lambda x: posterior.log_prob(torch.zeros(1, 1), x),
        lambda x: fit(lambda one: x if one.dim() == 1 else one.expand(len(one), 2), training=Training(steps=1, batch_size=8)),
    ]  # fmt: skip
    bad = {
        "nan at index": torch.tensor([1.0, math.nan]), "inf at index": torch.tensor([-math.inf, 1.0]), "real numbers": torch.ones(2) * 1j,
        "shape": torch.ones(3), "a tensor": [1.0, 2.0],
    }  # fmt: skip
    for words, x in bad.items():
        for call in calls:
            with pytest.raises(InputError, match=f"x: expected .*{words}"):
                call(x)
    with pytest.raises(InputError, match=r"nan at index \(1, 0\)"):
        posterior.sample(3, torch.tensor([[1.0, 1.0], [math.nan, 1.0]]))
    assert posterior.sample(3, torch.zeros(0, 2)).shape == (3, 0, 1)


def test_names_of_columns() -> None:
    assert column_names((2, 2)) == ["x[0, 0]", "x[0, 1]", "x[1, 0]", "x[1, 1]"]
    rows, many = observed_rows(torch.zeros(2, 2, dtype=torch.int32), (2, 2))
    assert rows.shape == (1, 2, 2) and rows.dtype == torch.float64 and not many


def layers(kind: str) -> nn.Module:
    inner = {"normalization": nn.BatchNorm1d(8), "dropout": nn.Dropout(0.5), "both": nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.3))}[kind]
    return nn.Sequential(nn.Linear(2, 8), inner, nn.SiLU(), nn.Linear(8, 3))


class Restless(nn.Module):
    """An embedding that is never in evaluation mode: it goes back to training, or its part is not registered."""

    def __init__(self, registered: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.BatchNorm1d(2)]) if registered else [nn.BatchNorm1d(2)]

    def forward(self, x: Tensor) -> Tensor:
        return self.train().parts[0](x)


class Chancy(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5)


class MeanOfRows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


RESTLESS = {
    "trains again": lambda: Restless(True), "not registered": lambda: Restless(False), "dropout at all times": lambda: Chancy(2, 3),
    "no running statistics": lambda: nn.BatchNorm1d(2, track_running_stats=False), "mean of the rows": MeanOfRows,
}  # fmt: skip


@pytest.mark.usefixtures("forked_generator")
@pytest.mark.parametrize("kind", RESTLESS)
def test_an_embedding_whose_rows_depend_on_their_company_is_refused(kind: str, one_line) -> None:
    model = Model(simulate=lambda n: (torch.randn(n, 1), torch.randn(n, 2)))
    options = {"architecture": SMALL, "training": Training(steps=1, batch_size=8)}
    one_line(lambda: fit_posterior(model, embedding=RESTLESS[kind](), **options), "^embedding: expected a network that treats rows apart")


class Returning(nn.Module):
    """A network whose output is passed through a function."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change, self.layer = change, nn.utils.skip_init(nn.Linear, 2, 3)
        nn.init.eye_(self.layer.weight), nn.init.zeros_(self.layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(self.layer(x))


@pytest.mark.parametrize(
    ("embedding", "expected"),
    [
        (nn.Module(), r"a module with forward\(x\), got a module of class Module"), (nn.ModuleList(), r"a module with forward\(x\)"),
        (nn.utils.skip_init(nn.Bilinear, 2, 2, 1), r"a module with forward\(x\)"),
        (nn.utils.skip_init(nn.Linear, 5, 3), r"a network of data \[\d+, 2\], got RuntimeError"),
        (Returning(lambda y: (y,)), "a tensor"), (Returning(lambda y: y.detach().numpy()), "a tensor"), (Returning(lambda y: None), "a tensor"),
        (Returning(lambda y: y + 0j), r"real features \[\d+, P\]"), (Returning(lambda y: y[0]), r"real features \[\d+, P\]"),
        (Returning(lambda y: y.to_sparse()), "a dense tensor"), (Returning(lambda y: y.item()), "a network of data"),
    ],
)  # fmt: skip
def test_an_embedding_that_is_no_network_of_the_data_is_refused(embedding: nn.Module, expected: str, one_line) -> None:
    model = Model(simulate=lambda n: (torch.randn(n, 1), torch.randn(n, 2)))
    options = {"architecture": SMALL, "training": Training(steps=1, batch_size=4)}
    one_line(lambda: fit_posterior(model, embedding=embedding, **options), f"^embedding: expected {expected}")


@pytest.mark.usefixtures("forked_generator")
def test_scripted_and_lazy_embeddings_are_fitted_and_kept(tmp_path, one_line) -> None:
    model = Model(simulate=lambda n: (torch.randn(n, 1), torch.randn(n, 2)))
    options = {"architecture": SMALL, "training": Training(steps=3, batch_size=8)}
    scripted = fit_posterior(model, torch.ones(2), embedding=torch.jit.script(layers("both")), **options)
    assert torch.equal(load(scripted.save(tmp_path / "scripted"), embedding=torch.jit.script(layers("both"))).sample(4), scripted.sample(4))
    lazy = fit_posterior(model, torch.ones(2), embedding=nn.LazyLinear(3), **options).save(tmp_path / "lazy")
    one_line(lambda: load(lazy, embedding=nn.LazyLinear(3)), "^embedding: expected a network with initialized parameters")
    assert load(lazy, embedding=nn.Linear(2, 3)).sample(4).shape == (4, 1)


@pytest.mark.usefixtures("forked_generator")
@pytest.mark.parametrize("family", ["diffusion", "gaussian"])
@pytest.mark.parametrize("kind", ["normalization", "dropout", "both"])
def test_everything_fitted_or_loaded_is_in_evaluation_mode(kind: str, family: str, tmp_path) -> None:
    chain = {"num_steps": 4, "context_dim": 3} if family == "diffusion" else {}
    options = {"architecture": Architecture(family=family, hidden=(8,), **chain), "training": Training(steps=30, batch_size=64)}

    def simulate(n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 1)
        return z, z + torch.randn(n, 2)

    torch.manual_seed(0)
    embedding, twin = layers(kind), layers(kind)
    twin.load_state_dict(embedding.state_dict())
    state, of_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    posterior = fit_posterior(Model(simulate=simulate), torch.ones(2), embedding=embedding, **options)
    rows = torch.tensor([[1.0, 1.0], [-2.0, 0.5], [0.1, 0.1]])
    draws = posterior.sample(5, rows)
    # A row alone, and in other company.
    torch.testing.assert_close(posterior.sample(5, rows[0]), draws[:, 0])
    torch.testing.assert_close(posterior.sample(5, torch.stack((rows[0], 9 * rows[2], rows[2])))[:, [0, 2]], draws[:, [0, 2]])
    assert torch.equal(posterior.sample(5, rows), draws) and not any(part.training for part in posterior.posterior.modules())
    density = posterior.log_prob(torch.zeros(2, 1), rows[0])
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(np.random.get_state()[1], of_numpy)
    # Its embedding may be trained further elsewhere, or have been left in training mode.
    embedding.train()
    assert torch.equal(posterior.sample(5, rows), draws) and torch.equal(posterior.log_prob(torch.zeros(2, 1), rows[0]), density)
    again = load(posterior.save(tmp_path / "kept"), embedding=layers(kind))
    assert torch.equal(again.sample(5, rows), draws) and not any(part.training for part in again.posterior.modules())
    torch.manual_seed(5)
    torch.randn(3)
    assert torch.equal(fit_posterior(Model(simulate=simulate), torch.ones(2), embedding=twin, **options).sample(5, rows), draws)


@pytest.mark.usefixtures("forked_generator")
def test_the_frame_of_a_chain_stays_while_the_chain_is_trained() -> None:
    def simulate(n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 1)
        return z, z + torch.randn(n, 2)

    means = []
    for steps in (40, 43):  # the same quarter of them fits the frame
        torch.manual_seed(0)
        options = {"architecture": SMALL, "training": Training(steps=steps, batch_size=32)}
        posterior = fit_posterior(Model(simulate=simulate), torch.ones(2), embedding=layers("both"), **options)
        frame, context = (part.observation.embedding[1][0].num_batches_tracked for part in (posterior.posterior.encoder,
                                                                                        posterior.posterior.context_encoder))  # fmt: skip
        means.append(int(frame))
        assert int(context) > steps
    assert means[0] == means[1] < 40


@pytest.mark.usefixtures("forked_generator")
def test_normalization_by_batches_does_not_see_the_observed_row() -> None:
    """A density and one observed row: the bound evaluates the embedding at a batch of one row."""

    class Both:
        def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
            return -0.5 * z.square().sum(-1) - 0.5 * (x - z).square().sum(-1)

        def simulate(self, n: int) -> tuple[Tensor, Tensor]:
            z = torch.randn(n, 1)
            return z, z + torch.randn(n, 2)

    posterior = fit_posterior(
        Both(), torch.ones(2), embedding=layers("normalization"), architecture=SMALL, training=Training(steps=10, batch_size=16)
    )
    assert posterior.sample(3).shape == (3, 1)


@pytest.mark.usefixtures("forked_generator")
def test_an_embedding_that_does_not_see_the_data_is_told() -> None:
    def fitted(unit: float) -> None:
        def simulate(n: int) -> tuple[Tensor, Tensor]:
            z = torch.randn(n, 1)
            return z, unit * (z + torch.randn(n, 2))

        fit_posterior(Model(simulate=simulate), embedding=nn.Linear(2, 3), architecture=SMALL, training=Training(steps=3, batch_size=16))

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="embedding: features vary by less than 1e-4 of their size"):
        fitted(1e-5)
    with pytest.raises(InputError, match="embedding: expected data that vary"):
        fitted(1e-12)


def test_a_fit_that_learns_nothing_is_told() -> None:
    with pytest.warns(UserWarning, match=r"loss: .* nats, that of the prior"):
        posterior = fit_posterior(
            Model(simulate=lambda n: (torch.randn(n, 1), torch.randn(n, 2))), architecture=GAUSSIAN, training=Training(steps=200, batch_size=128)
        )  # fmt: skip
    assert posterior.information == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(architecture=SMALL, training=QUICK).information > 0.1


def test_observation_of_few_rows_and_of_twins() -> None:
    x = torch.tensor([[1.0, 1.0, 2.0], [3.0, 3.0, 2.0]])
    observation = Observation.of(x, None)
    torch.testing.assert_close(observation(x), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    assert observation.surprises(x, column_names((3,))) == []
