"""Constrained parameters: values, log-determinants against closed forms and Jacobians, names, JSON description."""

from __future__ import annotations

import copy
import json
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.distributions import Gamma, biject_to, constraints

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


def test_volume_of_a_simplex_has_a_gradient_where_shares_are_too_small_for_their_type() -> None:
    u = torch.tensor([[9.3, -69.7, -219.1, -215.3], [-60.0, 90.0, -3.0, 0.5]])
    found, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        leaf = u.to(dtype).requires_grad_()
        found.append(Support(constraints.simplex, 5).constrain(leaf)[1])
        gradients.append(torch.autograd.grad(found[-1].sum(), leaf)[0].double())
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)


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
    with pytest.raises(InputError, match="z: expected parameters with the same leading axes"):
        mixed().unconstrain({"mu": torch.zeros(4), "tau": torch.ones(3), "share": torch.ones(3, 3) / 3, "place": torch.ones(3, 2, 2)})
    with pytest.raises(InputError, match="w: expected a shape that fits Simplex"):
        Support({"w": constraints.simplex})
    with pytest.raises(InputError, match="support: expected a shape that fits Interval"):
        Support(constraints.interval(torch.zeros(2), torch.ones(2)), 3)


BOX = constraints.interval(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 5.0]))
KINDS = {
    "real": (constraints.real, ()), "positive": (constraints.positive, ()), "nonnegative": (constraints.nonnegative, ()),
    "unit interval": (constraints.unit_interval, (2,)), "tiny interval": (constraints.interval(0.0, 1e-9), ()), "box": (BOX, (2,)),
    "half-open": (constraints.half_open_interval(0.0, 0.1), ()), "above": (constraints.greater_than(1e6), ()),
    "from": (constraints.greater_than_eq(2.0), ()),
    "below": (constraints.less_than(torch.tensor([1.0, 2.0])), (2,)), "independent": (constraints.independent(BOX, 1), (2,)),
    "vector": (constraints.real_vector, (2,)), "simplex": (constraints.simplex, (3,)), "long simplex": (constraints.simplex, (300,)),
    "correlation": (constraints.corr_cholesky, (3, 3)), "stack": (constraints.stack([constraints.positive, constraints.unit_interval], -1), (2,)),
    "cat": (constraints.cat([constraints.positive, constraints.interval(2.0, 3.0)], -1, [1, 3]), (4,)),
}  # fmt: skip


@pytest.mark.parametrize("copied", ["saved", "deep copy", "pickle"])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_the_same_after_a_copy_and_holds_its_own_values(name: str, copied: str) -> None:
    support = Support({"z": KINDS[name]})
    again = {"deep copy": copy.deepcopy, "pickle": lambda kept: pickle.loads(pickle.dumps(kept))}.get(copied, lambda kept: kept)(support)
    again = Support.from_state(json.loads(json.dumps(again.state())))
    for size in (1.0, 30.0, 200.0):  # rounding reaches the boundary
        u = size * torch.randn(50, support.dim, generator=torch.Generator().manual_seed(0))
        z, _ = support.constrain(u)
        assert torch.equal(again.constrain(u)[0]["z"], z["z"]) and bool(z["z"].isfinite().all())
        assert bool(support.locate(z)[1].all()) and bool(again.unconstrain(z).isfinite().all())
        if size == 1.0 and name not in ("above",):
            torch.testing.assert_close(again.unconstrain(z), u, rtol=0, atol=1e-3)


OUTSIDE = {
    "positive": (constraints.positive, (), [-1.0, 0.0, math.inf]), "nonnegative": (constraints.nonnegative, (), [-1e-9]),
    "unit interval": (constraints.unit_interval, (), [2.0, -1e-6]), "half-open": (constraints.half_open_interval(0.0, 0.1), (), [0.1]),
    "box": (BOX, (2,), [[0.0, 5.1], [-1.1, 1.0]]), "simplex": (constraints.simplex, (3,), [[0.3, 0.3, 0.9], [1.1, -0.1, 0.0], [2.0, 3.0, 5.0]]),
    "less": (constraints.less_than(0.0), (), [0.0]), "real": (constraints.real, (), [math.nan, -math.inf]),
    "independent": (constraints.independent(BOX, 1), (2,), [[0.0, -1.0]]),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_values_outside_are_refused_with_their_number(name: str) -> None:
    kind, shape, values = OUTSIDE[name]
    support, z = Support({"theta": (kind, shape)}), torch.tensor(values)
    inside, _ = support.constrain(torch.zeros(3, support.dim))
    rows = {"theta": torch.cat((inside["theta"], z))}
    assert support.locate(rows)[1].tolist() == [True] * 3 + [False] * len(z)
    with pytest.raises(InputError, match=rf"^simulate, theta: expected values in .*, got {len(z)} of {3 + len(z)} rows outside$"):
        support.unconstrain(rows, "simulate")


def test_values_on_a_closed_boundary_are_a_rounding_away_from_it() -> None:
    edge = math.log(2.0**23)
    cases = [(constraints.unit_interval, [0.0, 1.0]), (constraints.interval(0.0, 0.1), [0.0, 0.1]), (constraints.interval(-3.0, 1e6), [-3.0, 1e6])]
    for kind, values in cases:
        for dtype in (torch.float32, torch.float64):
            u = Support(kind, 1).unconstrain(torch.tensor(values, dtype=dtype).unsqueeze(1))
            torch.testing.assert_close(u[:, 0], torch.tensor([-edge, edge], dtype=dtype), rtol=0.02, atol=0)
    assert Support(constraints.nonnegative, 1).unconstrain(torch.zeros(1, 1)).isfinite().all()
    corners = torch.tensor([[0.0, 0.5, 0.5], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    u = Support(constraints.simplex, 3).unconstrain(corners)
    assert u.isfinite().all() and float(u.abs().max()) < 20
    torch.testing.assert_close(Support(constraints.simplex, 3).constrain(u)[0], corners, rtol=0, atol=1e-6)


DISORDER = [
    constraints.interval(1.0, 0.0), constraints.interval(1.0, 1.0), constraints.interval(0.0, math.inf), constraints.interval(math.nan, 1.0),
    constraints.half_open_interval(2.0, 1.0), constraints.greater_than(-math.inf),
    constraints.interval(torch.zeros(2), torch.tensor([1.0, 0.0])), constraints.independent(constraints.interval(1.0, 0.0), 1),
    constraints.stack([constraints.real, constraints.interval(1.0, 0.0)], -1),
]  # fmt: skip


@pytest.mark.parametrize("kind", DISORDER, ids=str)
def test_bounds_that_are_not_in_order_are_refused(kind) -> None:
    with pytest.raises(InputError, match="support, w: expected finite bounds, the lower one below the upper one"):
        Support({"w": (kind, (2,))})


def test_bounds_that_single_precision_does_not_tell_apart_are_refused() -> None:
    for kind in (constraints.interval(1e9, 1e9 + 1), constraints.greater_than(1e300)):
        with pytest.raises(InputError, match="support: expected bounds that single precision holds and tells apart"):
            Support(kind, 1)


@pytest.mark.parametrize("name", [1, ("a", "b"), None])
def test_names_that_are_no_strings_are_refused(name) -> None:
    """JSON has strings for names: such a posterior could not be loaded as it was saved."""
    with pytest.raises(InputError, match=r"^support: expected names of parameters that are strings, got "):
        Support({name: constraints.positive})


@pytest.mark.parametrize("bound", [np.zeros(1), Fraction(1, 2)], ids=str)
def test_bounds_of_other_types_are_named(bound) -> None:
    with pytest.raises(InputError, match=r"^support: expected bounds that are numbers or tensors, got "):
        Support(constraints.interval(bound, 2.0), 1)


def test_a_mapping_with_other_names_is_told_by_its_names() -> None:
    with pytest.raises(InputError, match=r"^z: expected a dictionary of b, got a dictionary of a, c$"):
        Support({"b": constraints.positive}).unconstrain({"a": torch.ones(2), "c": torch.ones(2)})


def test_no_rows_are_rows_too() -> None:
    for name, entry in KINDS.items():
        support = Support({name: entry})
        z, log_det = support.constrain(torch.zeros(3, 0, support.dim))
        assert z[name].shape == (3, 0, *entry[1]) and log_det.shape == (3, 0)
        assert support.unconstrain(z).shape == (3, 0, support.dim) and support.flatten(z).shape[:2] == (3, 0)


def test_a_constraint_of_ones_own_cannot_be_saved() -> None:
    class Even(constraints.Constraint):
        def check(self, value):
            return value == value

    biject_to.register(Even, lambda kind: biject_to(constraints.real))
    with pytest.raises(InputError, match=r"support, w: expected one of .* to be saved"):
        Support({"w": Even()}).state()
