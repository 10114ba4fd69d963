"""Langevin chains: their acceptance rule against a case by hand, their stationary distribution, their memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ddvi_fast import InputError, rng
from ddvi_fast.langevin import ReplayMemory, langevin_steps
from ddvi_fast.rng import Draws

TARGET = MultivariateNormal(torch.tensor([1.0, -0.5]), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))


def test_one_step_follows_the_rule_by_hand() -> None:
    """A density with skewed force, in one dimension: proposal, both normal densities and the ratio are written out."""
    count, size = 200, 1.3

    def log_p(v: Tensor) -> Tensor:
        return -v[:, 0].exp() + 2 * v[:, 0]  # force 2 - e^v

    v = torch.linspace(-2, 2, count).unsqueeze(1)
    found = langevin_steps(log_p, v, torch.full((count,), size), 1, Draws(3))
    noise = rng.normal(Draws(3), (count, 1), rng.CHAIN)[:, 0].double()
    level = rng.uniform(Draws(3), (count, 1), rng.TIME)[:, 0].double()
    old = v[:, 0].double()
    drifted = old + size**2 / 2 * (2 - old.exp())
    new = drifted + size * noise
    back = new + size**2 / 2 * (2 - new.exp())

    def log_normal(value: Tensor, mean: Tensor) -> Tensor:
        return -0.5 * ((value - mean) / size) ** 2 - math.log(size)

    ratio = (-new.exp() + 2 * new) + log_normal(old, back) - (-old.exp() + 2 * old) - log_normal(new, drifted)
    accepted = level < ratio.exp()
    assert 20 < int(accepted.sum()) < count - 20
    torch.testing.assert_close(found.v[:, 0].double(), torch.where(accepted, new, old), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.acceptance.double(), ratio.exp().clamp(max=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [0.5, 1.0])
def test_the_target_is_stationary(size: float) -> None:
    """Exact samples stay exact samples; without the acceptance rule their variance would grow."""
    count = 20_000
    start = TARGET.mean + rng.normal(Draws(1), (count, 2), rng.START) @ TARGET.scale_tril.T
    found = langevin_steps(TARGET.log_prob, start, torch.full((count,), size), 5, Draws(2))
    assert 0.1 < float(found.acceptance.mean()) < 0.95
    torch.testing.assert_close(found.v.mean(0), TARGET.mean, rtol=0, atol=0.04)
    torch.testing.assert_close(found.v.T.cov(), TARGET.covariance_matrix, rtol=0, atol=0.05)
    assert not torch.equal(found.v, start)


def test_chains_from_elsewhere_reach_the_target() -> None:
    found = langevin_steps(TARGET.log_prob, torch.full((4000, 2), 4.0), torch.full((4000,), 0.6), 60, Draws(0))
    torch.testing.assert_close(found.v.mean(0), TARGET.mean, rtol=0, atol=0.08)
    torch.testing.assert_close(found.v.T.cov(), TARGET.covariance_matrix, rtol=0, atol=0.1)


def test_a_chain_is_a_function_of_its_draws_and_alone_the_same() -> None:
    start, sizes = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.full((6,), 0.8)
    whole = langevin_steps(TARGET.log_prob, start, sizes, 4, Draws(7))
    assert torch.equal(whole.v, langevin_steps(TARGET.log_prob, start, sizes, 4, Draws(7)).v)
    assert not torch.equal(whole.v, langevin_steps(TARGET.log_prob, start, sizes, 4, Draws(8)).v)
    torch.testing.assert_close(langevin_steps(TARGET.log_prob, start[2:3], sizes[:1], 4, Draws(7, 2)).v, whole.v[2:3])


def test_states_without_density_are_never_entered() -> None:
    found = langevin_steps(lambda v: torch.where(v[:, 0] > 0, -v[:, 0], -math.inf), torch.full((500, 1), 0.2), torch.ones(500), 10, Draws(0))
    assert bool((found.v > 0).all()) and bool((found.acceptance < 1).any())
    with pytest.raises(InputError, match="num_steps: expected an integer of at least 1"):
        langevin_steps(TARGET.log_prob, torch.zeros(1, 2), torch.ones(1), 0, Draws(0))


def test_the_memory_goes_on_from_the_last_states() -> None:
    """Rows with their own Gaussian posteriors N(x, 1/4): the memory of each ends up there, whatever the start and the frame."""
    x = torch.tensor([-2.0, 0.0, 3.0, 1.0]).repeat(500).unsqueeze(1)
    memory, everything = ReplayMemory(len(x), 1), torch.arange(len(x))
    mean, scale = torch.zeros(len(x), 1), torch.ones(len(x), 1)

    def log_density(z: Tensor) -> Tensor:
        return -2 * (z - x).square().sum(-1)

    first = memory.move(everything, torch.full((len(x), 1), 9.0), mean, scale, log_density, 1, Draws(0))
    assert torch.equal(memory.states, first) and bool(memory.seen.all())
    for visit in range(1, 60):
        memory.move(everything, torch.full((len(x), 1), -99.0), mean, scale, log_density, 3, Draws(0, 10_000 * visit))
    apart = (memory.states - x)[:, 0]
    assert abs(float(apart.mean())) < 0.04 and abs(float(apart.std()) - 0.5) < 0.03
    rate = float(langevin_steps(log_density, memory.states, memory.log_sizes.exp(), 1, Draws(5)).acceptance.mean())
    assert 0.45 < rate < 0.7
    # A part of the data moves alone, and their frame is theirs.
    before = memory.states.clone()
    some = torch.tensor([1, 6])
    memory.move(some, torch.zeros(2, 1), mean[:2], scale[:2], lambda z: -2 * (z - x[some]).square().sum(-1), 5, Draws(9))
    changed = (memory.states != before)[:, 0]
    assert bool(changed[some].any()) and not bool(changed[[0, 2, 3, 4, 5]].any())
