"""Constrained parameters: values, log-determinants against closed forms and Jacobians, names, JSON description."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.distributions import Gamma, constraints

from ddvi_fast import InputError
from ddvi_fast.inference import Support

U = torch.linspace(-4, 4, 41, dtype=torch.float64).unsqueeze(1)


def test_volume_of_a_positive_parameter_is_its_unconstrained_value() -> None:
    z, log_det = Support(constraints.positive, 1).constrain(U)
    torch.testing.assert_close(z, U.exp())
    torch.testing.assert_close(log_det, U[:, 0])


def test_volume_of_an_interval_is_the_logistic_density() -> None:
    z, log_det = Support(constraints.interval(-2.0, 3.0), 1).constrain(U)
    share = 1 / (1 + torch.exp(-U))
    torch.testing.assert_close(z, -2 + 5 * share)
    torch.testing.assert_close(log_det, torch.log(5 * share * (1 - share))[:, 0])


def test_volume_of_a_simplex_is_the_determinant_of_its_jacobian() -> None:
    support = Support({"share": (constraints.simplex, (4,))})
    assert support.dim == 3
    for row in torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)):
        jacobian = torch.autograd.functional.jacobian(lambda u: support.constrain(u)[0]["share"][:3], row)
        torch.testing.assert_close(support.constrain(row)[1], torch.linalg.slogdet(jacobian)[1])


def test_a_density_keeps_its_mass_in_unconstrained_coordinates() -> None:
    u = torch.linspace(-25, 6, 20_001, dtype=torch.float64).unsqueeze(1)
    z, log_det = Support(constraints.positive, 1).constrain(u)
    density = torch.exp(Gamma(torch.tensor(0.7).double(), torch.tensor(1.3).double()).log_prob(z[:, 0]) + log_det)
    assert math.isclose(float(torch.trapezoid(density, u[:, 0])), 1, abs_tol=1e-6)


def mixed() -> Support:
    kinds = {
        "mu": constraints.real,
        "tau": constraints.positive,
        "share": (constraints.simplex, (3,)),
        "place": (constraints.interval(0.0, 2.0), (2, 2)),
    }
    return Support(kinds)


def test_named_parameters_go_there_and_back_under_any_leading_axes() -> None:
    support = mixed()
    u = torch.randn(5, 7, support.dim, generator=torch.Generator().manual_seed(1)).double()
    z, log_det = support.constrain(u)
    assert {name: tuple(value.shape) for name, value in z.items()} == {"mu": (5, 7), "tau": (5, 7), "share": (5, 7, 3), "place": (5, 7, 2, 2)}
    assert log_det.shape == (5, 7) and support.dim == 8
    torch.testing.assert_close(support.unconstrain(z), u)
    torch.testing.assert_close(support.unconstrain({name: z[name] for name in reversed(z)}), u)  # names tell, not their order
    parts = [
        u[..., 1],
        Support({"share": (constraints.simplex, (3,))}).constrain(u[..., 2:4])[1],
        Support(constraints.interval(0.0, 2.0), 4).constrain(u[..., 4:])[1],
    ]
    torch.testing.assert_close(log_det, sum(parts))


def test_entries_have_names() -> None:
    names = mixed().entries()
    assert names == ["mu", "tau", "share[0]", "share[1]", "share[2]", "place[0, 0]", "place[0, 1]", "place[1, 0]", "place[1, 1]"]
    z, _ = mixed().constrain(torch.zeros(6, 8))
    assert mixed().flatten(z).shape == (6, len(names))
    assert Support(constraints.real, 2).entries() == ["z[0]", "z[1]"]


@pytest.mark.parametrize(
    "kind", [constraints.real, constraints.positive, constraints.unit_interval, constraints.interval(-1.5, 4.0), constraints.greater_than(2.0),
             constraints.less_than(-1.0)], ids=str
)  # fmt: skip
def test_a_support_is_the_same_after_json(kind) -> None:
    support = Support(kind, 3)
    again = Support.from_state(json.loads(json.dumps(support.state())))
    u = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    assert all(torch.equal(one, other) for one, other in zip(support.constrain(u), again.constrain(u), strict=True))


def test_named_supports_are_the_same_after_json() -> None:
    again = Support.from_state(json.loads(json.dumps(mixed().state())))
    u = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(again.flatten(again.constrain(u)[0]), mixed().flatten(mixed().constrain(u)[0]))


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="dim: expected the length"):
        Support(constraints.real)
    with pytest.raises(InputError, match="support, n: expected a constraint"):
        Support({"n": constraints.boolean})
    with pytest.raises(InputError, match="z: expected a dictionary of mu, tau"):
        mixed().unconstrain({"mu": torch.zeros(3)})
    with pytest.raises(InputError, match="share: expected shape"):
        mixed().unconstrain({"mu": torch.zeros(3), "tau": torch.ones(3), "share": torch.ones(3, 2), "place": torch.ones(3, 2, 2)})
    with pytest.raises(InputError, match="to be saved"):
        Support(constraints.interval(torch.zeros(2), torch.ones(2)), 2).state()
