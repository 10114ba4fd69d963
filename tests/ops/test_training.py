"""Training of a tiny model: every fused backend follows the losses of the reference."""

from __future__ import annotations

import pytest
import torch

import ddvi_fast
from ddvi_fast import _backend, denoisers, networks, schedules
from ddvi_fast.objectives import DDVI, ELBO, Progress
from ddvi_fast.objectives.wake_sleep import Sleep
from ddvi_fast.posteriors import Diffusion
from ddvi_fast.rng import DeviceDraws, Draws
from tests.linear_gaussian import LATENT_DIM, make_model, observations

ROWS, STEPS = 8, 3


def losses(backend: str, loss: str, updates: int, on_device: bool = False) -> torch.Tensor:
    """Losses of a wake and a sleep update on each of some batches."""
    with ddvi_fast.use_backend("reference"):
        model, data = make_model().requires_grad_(True), observations(updates * ROWS)
    posterior = Diffusion(
        encoder=networks.MLP(3, [16], 2 * LATENT_DIM, draws=Draws(2)),
        context_encoder=networks.MLP(3, [16], 4, draws=Draws(3)),
        denoiser=denoisers.ResidualMLP(LATENT_DIM, 4, STEPS, hidden_dim=64, draws=Draws(4)),
        schedule=schedules.make("geometric", STEPS),
        learn_variances=True,
    )
    objective = DDVI(ELBO(model, posterior), Sleep(0.5, 0.5, loss=loss, alternating=True))
    optimiser, seen = torch.optim.Adam(objective.parameters(), lr=3e-3), []
    place = DeviceDraws(Draws(1).state())
    with ddvi_fast.use_backend(backend):
        for number, batch in enumerate(data.split(ROWS)):
            place.move_to(Draws(1, number * ROWS))
            draws = place if on_device else Draws(1, number * ROWS)
            for update in objective.updates(batch, Progress(number, updates), draws):
                value = update.terms().total().mean()
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
                seen.append(value.detach())
    return torch.stack(seen)


@pytest.mark.parametrize(("backend", "updates"), [("cpp", 25), ("triton", 3)])
@pytest.mark.parametrize("loss", ["kl", "squared"])
def test_losses_follow_the_reference(backend, updates, loss):
    reason = _backend.unavailable(backend)
    if reason or (backend == "triton" and not _backend.interpreted()):
        pytest.skip(reason or "the model is on the CPU")
    expected, got = losses("reference", loss, updates), losses(backend, loss, updates)
    torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3)
    assert not torch.equal(got, expected), "the backend was not used"


def test_draws_on_the_device_train_alike():
    assert torch.equal(losses("auto", "kl", 3, on_device=True), losses("auto", "kl", 3))
