"""Kernel density in Triton against the reference in float64, values and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddvi_fast import parity, testing
from ddvi_fast._operands import kernel_powers
from ddvi_fast.kernels import kde, kde_common
from ddvi_fast.parity import normals
from ddvi_fast.reference import kde as reference
from tests.operands import check_triton, run_triton

# Rows beyond the edge and far points go through infinities that are not stored.
pytestmark = [pytest.mark.usefixtures("poison_empty"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]


def _points(rows, count, width):
    return normals(1, rows, width), normals(2, count, width)


def _compare(z, points, bandwidths, clamp):
    check_triton(replace(parity.kde_case(z, points, bandwidths, clamp), floor=1e-6))


# One tile of points or several, so that the nearest changes on the way; one share of them, or more.
@pytest.mark.parametrize(
    "rows, count, width", [(0, 3, 2), (1, 1, 1), (2, 63, 3), (63, 65, 5), (65, 33, 2), (129, 7, 2), (3, 300, 2), (5, 9, 16), (2, 19, 33), (2, 17, 64)]
)
@pytest.mark.parametrize("clamp", [None, 6.0])
def test_values_and_gradients(rows, count, width, clamp):
    _compare(*_points(rows, count, width), (0.1, 0.3, 1.0, 3.0), clamp)


@pytest.mark.parametrize("warps", [1, 8])
def test_all_points_in_one_share(monkeypatch, warps):
    """With few warps to fill, one program loops over all points, and nothing is combined."""
    monkeypatch.setattr(kde_common, "_WARPS", warps)
    _compare(*_points(70, 130, 2), (0.1, 0.7, 2.0), 4.0)


def test_many_bandwidths():
    _compare(*_points(40, 9, 2), tuple(0.1 * 1.2**s for s in range(20)), None)


def test_huge_log_densities_keep_their_gradient():
    """Backward uses the log-density rounded to float32: at -100,000 nats a kernel's weight would be off by one percent."""
    _compare(*_points(20, 100, 2), (0.005,), None)


def test_shifted_points_lose_nothing():
    """Squared differences do not cancel, however far the points are from the origin: the same bits for a shift without rounding."""
    z, points = (torch.round(value * 64) / 64 for value in _points(9, 80, 2))
    here, there = (run_triton(parity.kde_case(z + shift, points + shift, (0.1, 1.0))) for shift in (0, 4096))
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_values_per_bandwidth():
    """`each` has the values before clipping."""
    (z, points), bandwidths = _points(5, 40, 3), torch.tensor([0.2, 0.9])
    each = kde.forward(z, points, bandwidths, 1.0)[1]
    for s in range(2):
        one = bandwidths[s : s + 1]
        plain, exact = (reference.kde_log_density(z.to(kind), points.to(kind), one.to(kind), None) for kind in (torch.float32, torch.float64))
        testing.assert_within_budget(each[:, s], plain, exact)


def test_an_infinite_position_has_no_density():
    for clamp in (torch.inf, 5.0):
        assert kde.forward(torch.tensor([[torch.inf, 0.0]]), torch.zeros(3, 2), torch.ones(1), clamp)[0] == -clamp


def test_same_bits_twice():
    first, second = (run_triton(parity.kde_case(*_points(40, 200, 2), (0.1, 1.0))) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_unsupported_operands_are_named():
    (z, points), bandwidths = _points(2, 3, 2), torch.ones(2)
    assert kde.unsupported(z=z, points=points, bandwidths=bandwidths) is None
    assert "bandwidths" in kde.unsupported(z=z, points=points, bandwidths=bandwidths.clone().requires_grad_())
    assert "dimensions" in kde.unsupported(z=torch.ones(1, 65), points=torch.ones(1, 65), bandwidths=bandwidths)
    assert "float32" in kde.unsupported(z=z.double(), points=points, bandwidths=bandwidths)


# Three exponentials for the five bandwidths of the paper, and sets without a common power.
@pytest.mark.parametrize(
    ("bandwidths", "exponentials"),
    [(kde.RELEASED, 3), ((0.1, 0.3, 1.0, 3.0), 2), ((0.3, 0.4, 0.5), 3), ((1.0, 1.0), 2), ((0.1, 0.1000001), 2), ((2.0,), 1), ((0.1, 6.2, 0.01), 3)],
)
def test_powers_are_whole_and_of_bandwidths_with_an_exponential(bandwidths, exponentials):
    found = kernel_powers(bandwidths)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    assert sum(power == 1 for _, power in pairs) == exponentials
    for s, (base, power) in enumerate(pairs):
        assert pairs[base] == (base, 1) and (bandwidths[base] / bandwidths[s]) ** 2 == pytest.approx(power, rel=1e-7)


def test_bandwidths_of_any_size_have_powers():
    """A square beyond the range of numbers is no power."""
    assert kernel_powers((1e-200, 1e200)) == [0, 1, 1, 1] and kernel_powers((1e-160, 1.0)) == [0, 1, 1, 1]


@pytest.mark.parametrize("scale", [0.01, 0.05])
def test_kernels_that_are_powers(scale):
    """Values and gradients of each bandwidth are off by at most as many units in the last place as its power, and the mean over them by less."""
    z, points, upstream = scale * normals(1, 30, 2), scale * normals(2, 200, 2), normals(3, 30)
    bandwidths, powers = torch.tensor(kde.RELEASED), kernel_powers(kde.RELEASED)
    exact = reference.kde_log_density(z.double(), points.double(), bandwidths.double(), None)
    apart = {}
    for name, chosen in (("powers", powers), ("exponentials", ())):
        value, each = kde.forward(z, points, bandwidths, torch.inf, chosen)
        apart[name] = (value.double() - exact).abs().max()
        assert (each - kde.forward(z, points, bandwidths, torch.inf)[1]).abs().max() < 1e-5 + 1e-7 * each.abs().max()
        gradients = kde.backward(z, points, bandwidths, each, upstream, torch.inf, [True, True], chosen)
        wide = z.double().requires_grad_(), points.double().requires_grad_()
        expected = torch.autograd.grad(reference.kde_log_density(*wide, bandwidths.double(), None), wide, upstream.double())
        for got, true in zip(gradients, expected, strict=True):
            assert (got.double() - true).norm() / true.norm() < 3e-6
    assert apart["powers"] < 2 * apart["exponentials"] + 2e-6
