"""A training step recorded once and replayed trains as the step itself does; nothing in it waits for the host."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from ddvi_fast import denoisers, likelihoods, models, networks, posteriors, priors, schedules, use_backend
from ddvi_fast._checks import InputError
from ddvi_fast.data.dataset import from_arrays
from ddvi_fast.engine.cuda_graph import WARM_UP_STEPS, DeviceProgress
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.loop import Callback, train
from ddvi_fast.objectives import DDVI, ELBO, IWAE, Progress, Terms, Update
from ddvi_fast.objectives.annealing import KLSchedule, PriorGuide
from ddvi_fast.objectives.wake_sleep import Sleep
from ddvi_fast.recipes.phases import Optimisation, Phase
from ddvi_fast.rng import DeviceDraws, Draws
from tests.engine import pretend
from tests.engine.recording import OperationRecording

pytestmark = pytest.mark.usefixtures("plain_layers")

PIXELS, ROWS = 6, 8


def make_objective(prior="mixture", sleep=None, guide=PriorGuide(0.3, 0.5), iwae=False):
    decoder = networks.MLP(2, [8], PIXELS, draws=Draws(1))
    model = models.LatentVariableModel(priors.make(prior), decoder, likelihoods.make("bernoulli"))
    posterior = posteriors.Diffusion(
        networks.MLP(PIXELS, [8], 4, dropout=0.2, draws=Draws(2)),
        denoisers.ResidualMLP(2, 3, 4, 64, draws=Draws(3)),
        schedules.make("geometric", 4),
        context_encoder=networks.MLP(PIXELS, [8], 3, dropout=0.2, draws=Draws(4)),
        learn_variances=True,
    )
    kl = KLSchedule("linear", 1.0, 0.9)
    wake = IWAE(model, posterior, 3, kl=kl, guide=guide) if iwae else ELBO(model, posterior, kl, guide=guide)
    return wake if sleep is None else DDVI(wake, sleep)


@pytest.fixture
def dataset():
    x = torch.rand(40, PIXELS, generator=torch.Generator().manual_seed(0)).numpy()
    return from_arrays("random", x, test_size=8)


class Losses(Callback):
    def __init__(self):
        self.values = []

    def step(self, step, phase, epoch, terms):
        self.values.append({name: float(value) for name, value in terms.items()})


def run(objective, dataset, epochs=4, frozen=(), **options):
    losses = Losses()
    phase = Phase("train", objective, epochs, Optimisation(1e-2, max_norm=5.0), frozen=frozen, frozen_epochs=2)
    train([phase], dataset, ROWS, 3, lambda objective, optimisation: Engine(objective, optimisation, **options), [losses])
    return losses.values


# Not the pinwheel: its score magnifies rounding errors once it is not smoothed any more.
CASES = {
    "wake": ("less_noisy_square", None),
    "joint": ("swiss_roll_noisy", Sleep(0.3, 0.2, "kl")),
    "alternating": ("mixture", Sleep(alternating=True, num_updates=3)),
}


@pytest.mark.parametrize(("prior", "sleep"), CASES.values(), ids=CASES)
def test_replays_train_as_steps_do(dataset, prior, sleep):
    objective = make_objective(prior, sleep)
    replayed = copy.deepcopy(objective)
    expected = run(objective, dataset)
    found = run(replayed, dataset, capture=True, make_recording=OperationRecording)
    assert len(found) == 16 > 2 * WARM_UP_STEPS
    assert len({losses["reconstruction"] for losses in found}) == 16, "every replay draws fresh noise"
    for step, (here, there) in enumerate(zip(found, expected, strict=True)):
        assert here == pytest.approx(there, rel=2e-4, abs=1e-4), f"step {step}"
    for name, value in replayed.state_dict().items():
        torch.testing.assert_close(value, objective.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_importance_weighted_bound_replays(dataset):
    objective = make_objective(iwae=True)
    replayed = copy.deepcopy(objective)
    expected, found = run(objective, dataset), run(replayed, dataset, capture=True, make_recording=OperationRecording)
    assert [losses["bound"] for losses in found] == pytest.approx([losses["bound"] for losses in expected], rel=2e-4)


def test_what_changes_between_epochs_is_recorded_anew(dataset):
    """The decoder is frozen in the first half of the epochs: a stale recording would leave it so, or reset its optimizer state in each step."""
    objective = make_objective(sleep=Sleep())
    replayed = copy.deepcopy(objective)
    before = parameters_to_vector(objective.wake.model.decoder.parameters())
    expected = run(objective, dataset, frozen=[objective.wake.model.decoder])
    found = run(replayed, dataset, frozen=[replayed.wake.model.decoder], capture=True, make_recording=OperationRecording)
    assert [losses["reconstruction"] for losses in found] == pytest.approx([losses["reconstruction"] for losses in expected], rel=2e-4)
    weights = [parameters_to_vector(trained.wake.model.decoder.parameters()) for trained in (objective, replayed)]
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(weights[0], before, rtol=1e-2)


def test_recordings_are_few(dataset):
    made = []

    def counting():
        made.append(OperationRecording())
        return made[-1]

    run(make_objective(guide=PriorGuide(blur=0.0)), dataset, capture=True, make_recording=counting)
    assert len(made) == WARM_UP_STEPS + 1


def test_a_loss_that_is_not_finite_stops_training_and_leaves_the_weights():
    objective = make_objective()
    engine = Engine(objective, Optimisation(), capture=True, make_recording=OperationRecording)
    parameter = next(objective.posterior.parameters())
    engine.check()
    before = parameter.detach().clone()
    bad = Terms({"reconstruction": parameter.sum().expand(2), "kl": torch.tensor([1.0, math.nan])}, {"reconstruction": 1.0, "kl": 1.0})
    good = Terms({"reconstruction": parameter.sum().expand(2)}, {"reconstruction": 1.0})
    for terms in (bad, good):
        engine.step(Update("wake", lambda terms=terms: terms), Progress(0, 1))
    assert torch.equal(parameter, before)
    with pytest.raises(InputError, match=r"^loss: expected a finite number, got NaN or infinity in kl \("):
        engine.check()


def test_varying_numbers_follow_the_step():
    progress = DeviceProgress(10, 5, torch.device("cpu"))
    number = lambda now: now.epoch + 0.5 * now.fraction  # noqa: E731
    progress.move_to(Progress(0, 5, 10))
    seen = []
    with torch.no_grad():
        for step in range(10):
            now = Progress(step / 2, 5, 10)
            progress.move_to(now)
            seen.append((progress.varying(number).item(), number(now)))
    assert [here for here, _ in seen] == pytest.approx([there for _, there in seen])


def test_a_step_needs_a_count_of_steps():
    engine = Engine(make_objective(), Optimisation(), capture=True, make_recording=OperationRecording)
    with pytest.raises(InputError, match="progress: expected one that counts steps"):
        engine.run(torch.zeros(2, PIXELS), Progress(0, 1), Draws(0))


# Every prior, with the pairs of a sleep phase; the terms of the other objectives do not depend on which prior it is.
QUIET = {f"{prior}, alternating": (prior, Sleep(alternating=True)) for prior in ("pinwheel", "less_noisy_square", "swiss_roll_noisy")}
QUIET |= {"mixture, updates": ("mixture", Sleep(alternating=True, num_updates=2))}
QUIET |= {"gaussian, wake": ("gaussian", None), "pinwheel, joint": ("pinwheel", Sleep(0.3, 0.2, "kl"))}


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize(("prior", "sleep"), QUIET.values(), ids=QUIET)
def test_nothing_passes_between_host_and_device(monkeypatch, backend, prior, sleep):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda optimiser: None)  # torch's own, which knows no device without memory
    engine = Engine(make_objective(prior, sleep), Optimisation(max_norm=1.0), pretend.DEVICE)
    x = torch.empty(ROWS, PIXELS, device=pretend.DEVICE)
    draws, progress = DeviceDraws(Draws(0).state(pretend.DEVICE)), DeviceProgress(10, 5, pretend.DEVICE)
    with use_backend(backend):
        engine._run(x, progress, draws)  # what is made once and kept
        with pretend.NoHostTraffic():
            engine._run(x, progress, draws)


def test_host_traffic_is_noticed():
    there = torch.empty(3, device=pretend.DEVICE)
    for traffic in (lambda: there.new_tensor([1.0, 2.0]), lambda: torch.zeros(3).to(there), lambda: torch.tensor([1.0], device=there.device)):
        with pytest.raises(AssertionError, match="moves values between"), pretend.NoHostTraffic():
            traffic()
    with pytest.raises(AssertionError, match="read back"), pretend.NoHostTraffic():
        torch.zeros(()).item()
