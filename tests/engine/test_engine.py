"""The local engine against plain Adam."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from ddvi_fast._checks import InputError
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.loop import set_trainable
from ddvi_fast.objectives import DDVI, ELBO, Progress, Terms, Update
from ddvi_fast.objectives.annealing import KLSchedule
from ddvi_fast.objectives.wake_sleep import Sleep
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws
from tests.linear_gaussian import EXACT_PRIOR, diffusion_posterior, gaussian_posterior, make_model, observations


def elbo() -> ELBO:
    return ELBO(make_model().requires_grad_(True), gaussian_posterior(), KLSchedule("constant"), guide=EXACT_PRIOR)


def step(engine: Engine, fraction: float, x: Tensor, draws: Draws) -> Tensor:
    (update,) = engine.objective.updates(x, Progress(0, 1), draws)
    return sum(engine.step(update, Progress(fraction, 1)).values())


@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_equals_plain_adam(max_norm):
    objective, x = elbo(), observations(16)
    plain = copy.deepcopy(objective)
    engine = Engine(objective, Optimisation(lr=1e-2, max_norm=max_norm))
    adam = torch.optim.Adam(plain.parameters(), lr=1e-2, fused=False)
    for number in range(5):
        fraction, draws = number / 5, Draws(0, number * 16)
        loss = step(engine, fraction, x, draws)
        z, log_ratio, _ = plain.posterior.sample(x, 1, draws)
        expected = -(plain.model.log_joint(x, z) + log_ratio).mean()
        adam.param_groups[0]["lr"] = 1e-2 * 0.5 * (1 + math.cos(math.pi * fraction))
        adam.zero_grad()
        expected.backward()
        if max_norm is not None:
            norm = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None]).norm()
            assert norm > max_norm
            for parameter in plain.parameters():
                if parameter.grad is not None:
                    parameter.grad *= max_norm / norm
        adam.step()
        torch.testing.assert_close(loss, expected.detach())
        assert not loss.requires_grad
    for found, wanted in zip(objective.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_rates():
    cosine = Optimisation(lr=2.0)
    assert [cosine.rate(fraction) for fraction in (0, 0.5, 1)] == pytest.approx([2, 1, 0], abs=1e-12)
    warm = Optimisation(lr=2.0, warmup_fraction=0.2)
    assert [warm.rate(fraction) for fraction in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 1, 2, 1, 0], abs=1e-12)
    assert [Optimisation(lr=2.0, lr_schedule="constant").rate(fraction) for fraction in (0, 1)] == [2, 2]


def test_nothing_moves_at_a_rate_of_zero():
    objective = elbo()
    before = copy.deepcopy(objective.state_dict())
    step(Engine(objective, Optimisation(lr=1e-2)), 1.0, observations(4), Draws(0))
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_factors_scale_the_rate_of_named_parameters():
    posterior = diffusion_posterior(learn_schedule=True)
    objective = ELBO(make_model(), posterior, KLSchedule("constant"), guide=EXACT_PRIOR)
    before = {name: value.detach().clone() for name, value in objective.named_parameters()}
    step(Engine(objective, Optimisation(lr=1e-3, lr_schedule="constant", factors={"learned_schedule": 10.0})), 0.0, observations(8), Draws(0))
    # The first step of Adam moves every parameter with a gradient by its rate.
    moved = {name: float((value.detach() - before[name]).abs().max()) for name, value in objective.named_parameters() if value.requires_grad}
    assert moved["posterior.learned_schedule.raw"] == pytest.approx(1e-2, rel=1e-2)
    assert moved["posterior.denoiser.last"] == pytest.approx(1e-3, rel=1e-2)


def test_frozen_modules_stand_still():
    objective = elbo()
    engine = Engine(objective, Optimisation(lr=1e-2))
    decoder = objective.model.decoder
    before = copy.deepcopy(decoder.state_dict())
    set_trainable([decoder], False)
    step(engine, 0.0, observations(4), Draws(0))
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    set_trainable([decoder], True)
    step(engine, 0.0, observations(4), Draws(0))
    assert not any(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())


def test_each_group_has_an_optimiser_of_its_own():
    ddvi = DDVI(ELBO(make_model().requires_grad_(True), diffusion_posterior()), Sleep(loss="squared", alternating=True))
    engine, decoder = Engine(ddvi, Optimisation()), ddvi.wake.model.decoder
    assert list(engine.optimizers()) == ["wake", "sleep"]
    wake, sleep = ddvi.updates(observations(4), Progress(0, 1), Draws(0))
    engine.step(wake, Progress(0, 1))
    before = copy.deepcopy(decoder.state_dict())
    engine.step(sleep, Progress(0, 1))
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    assert all(state["step"] == 1 for optimizer in engine.optimizers().values() for state in optimizer.state.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_refuses_a_loss_that_is_not_finite(bad):
    objective = elbo()
    parameter = next(objective.posterior.parameters())
    before = parameter.clone()
    terms = Terms({"reconstruction": parameter.sum().expand(2), "kl": torch.tensor([1.0, bad])}, {"reconstruction": 1.0, "kl": 1.0})
    with pytest.raises(InputError, match=r"^loss: expected a finite number, got NaN or infinity in kl \([^\n]*\)$"):
        Engine(objective, Optimisation()).step(Update("wake", lambda: terms), Progress(0, 1))
    assert torch.equal(parameter, before)


@pytest.mark.parametrize(
    ("argument", "options"),
    [("lr", {"lr": 0.0}), ("lr_schedule", {"lr_schedule": "cosin"}), ("warmup_fraction", {"warmup_fraction": 1.0}), ("max_norm", {"max_norm": 0.0})],
)
def test_refuses_unusable_settings(argument, options):
    with pytest.raises(InputError, match=rf"^{argument}: expected[^\n]*$"):
        Optimisation(**options)


def test_bf16_narrows_products_alone():
    """The first loss differs by the rounding of products; parameters and their steps stay float32."""
    losses = {}
    for precision in ("float32", "bf16"):
        objective = elbo()
        engine = Engine(objective, Optimisation(lr=1e-2), precision=precision)
        means = engine.run(observations(64), Progress(0, 1), Draws(0))
        losses[precision] = float(means["reconstruction"])
        assert all(parameter.dtype == torch.float32 for parameter in objective.parameters())
    assert losses["bf16"] != losses["float32"]
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=2e-2)
    with pytest.raises(InputError, match=r"^precision: expected[^\n]*bf16"):
        Engine(elbo(), Optimisation(), precision="bf17")


@pytest.mark.usefixtures("validation")
def test_compiled_networks_train_alike():
    x, values = observations(16), {}
    for compiled in (False, True):
        objective = elbo()
        engine = Engine(objective, Optimisation(lr=1e-2), compile_networks=compiled)
        for number in range(3):
            engine.run(x, Progress(0, 1), Draws(0, number * 16))
        values[compiled] = [parameter.detach() for parameter in objective.parameters()]
    for here, there in zip(values[True], values[False], strict=True):
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-5)
