"""The table of `diagnose`: every row against what it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, Uniform, constraints

from ddvi_fast import InputError, fit_posterior
from ddvi_fast.inference import Architecture, Diagnosis, Model, Training, load

GAUSSIAN = Architecture(family="gaussian", hidden=(16,))
QUICK = Training(steps=200, batch_size=128, lr=0.02)


class Location:
    """z ~ N(0, 1), x one informative column among others."""

    def simulate(self, n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 1)
        x = z + 0.3 * torch.randn(n, 1)
        return z, torch.cat((1e-3 * x, torch.full_like(x, 7.0), torch.sinh(10 * torch.randn(n, 1)), 100 * torch.randn(n, 1)), 1)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        return Normal(0, 1).log_prob(z[..., 0]) + Normal(z[..., 0], 0.3).log_prob(1e3 * x[..., 0])


OBSERVED = torch.tensor([1e-3, 7.0, 0.5, 30.0])


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    with pytest.warns(UserWarning, match="without spread|heavy tails"):
        posterior = fit_posterior(Location(), OBSERVED, objective="simulations", architecture=GAUSSIAN, training=QUICK)
    return posterior.diagnose(num_samples=500, num_simulations=100)


def test_every_row_is_a_plain_field(found: Diagnosis) -> None:
    assert (found.columns, found.left_out, found.heavy_tails) == (4, ["x[1]"], ["x[2]"])
    assert abs(found.spread[0] / 1.044e-3 - 1) < 0.1 and found.spread[1] > 90
    assert len(found.history) == 20 and found.information > 0.1
    assert 100 < found.effective_sample_size <= 500 and found.pareto_k < 0.7 and found.num_samples == 500
    assert found.boundary == {} and found.calibration.names == ["z[0]", "joint"]
    assert any("x[1] without spread" in remark for remark in found.remarks)


def test_the_table_is_readable(found: Diagnosis) -> None:
    text = str(found)
    rows = ("columns of data", "standard deviations", "nats by the data", "effective sample size", "Pareto k", "no bounds", "calibration")
    for words in (*rows, "4, 1 left out, 1 with heavy tails", "Diagnostics: 100 truths"):
        assert words in text
    assert repr(found) == text and max(map(len, text.splitlines())) < 150


def test_a_posterior_of_one_data_set_has_its_weights_and_its_boundary() -> None:
    # The data say that z is at the end of its interval.
    model = Model(log_joint=lambda x, z: Uniform(0, 1, validate_args=False).log_prob(z["share"]) - 200 * (1 - z["share"]))
    options = {"architecture": Architecture(num_steps=4), "training": Training(steps=30, batch_size=64)}
    found = fit_posterior(model, support={"share": constraints.unit_interval}, **options).diagnose(num_samples=400)
    assert found.columns == 0 and found.spread is None and found.calibration is None and found.information is None
    assert found.effective_sample_size > 0 and found.boundary["share"] > 0.5  # of an exponential with mean 1/200, 86% within 0.01
    assert any("share near the boundary" in remark for remark in found.remarks)
    assert "no simulate" in str(found)


def test_a_loaded_posterior_needs_no_model(tmp_path) -> None:
    model = Model(simulate=lambda n: (torch.rand(n, 1), torch.randn(n, 2)))
    with pytest.warns(UserWarning, match="that of the prior"):
        posterior = fit_posterior(model, support=constraints.unit_interval, architecture=GAUSSIAN, training=Training(steps=60, batch_size=64))
    again = load(posterior.save(tmp_path / "kept"))
    found = again.diagnose(num_samples=100)
    assert found.calibration is None and found.pareto_k is None and found.boundary == {} and found.information == 0.0
    assert any("that of the prior" in remark for remark in found.remarks)
    assert again.diagnose(torch.zeros(2), num_samples=100).boundary.keys() == {"z"}
    assert posterior.diagnose(num_samples=100, num_simulations=20).boundary.keys() == {"z"}  # at simulated data
    with pytest.raises(InputError, match="x: expected one data set"):
        again.diagnose(torch.zeros(3, 2), num_samples=100)
