"""Tests of whole runs on a pretended device: no tensor stays on the CPU (see `tests/pretend_device.py`)."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from ddvi_fast import fit_posterior, priors, use_backend
from ddvi_fast.config.compose import compose
from ddvi_fast.engine.cuda_graph import DeviceProgress
from ddvi_fast.engine.engine import Engine
from ddvi_fast.estimator import DDVI
from ddvi_fast.inference import Architecture, Training
from ddvi_fast.rng import DeviceDraws, Draws
from ddvi_fast.training.run import evaluate_run, run
from tests.engine import pretend
from tests.pretend_device import DEVICE, PretendDevice

# Recorded steps need a GPU that is one.
SMALL = [
    "dataset=digits", "dataset.labels=50", "limit=100", "recipe.batch_size=50", "epochs=1", "device=cuda", "capture=false", "progress=off",
    "tensorboard=false", "prior.resolution=20", "evaluation.limit=20", "evaluation.iwae_samples=2", "evaluation.elbo_samples=2",
    "evaluation.prior_samples=100",
]  # fmt: skip
STAGES = ["recipe=released", "recipe.prior_epochs=1", "recipe.prior_steps=2", "recipe.warmup_epochs=1"]
RUNS = {
    "every part of a run": ["method=ddvi", "evaluation.evidence_blur=0.03", "recipe.average_decay=0.9", "checkpoint_steps=1"],
    "square": ["method=vae", "prior=less_noisy_square", "prior.kernel_width=0.03"],
    "swiss roll, importance weighted": ["method=iwae", "prior=swiss_roll_noisy"],
    "released stages": ["method=ddvi", *STAGES],
    "released density": ["method=iaf", "recipe=released"],
    "classes": ["method=ddvi_semi"],
    "classes, adversarial": ["method=aae_semi"],
    "m2": ["method=m2"],
    "clusters": ["method=ddvi_clustering", "prior=less_noisy_square"],
    "latent clusters": ["method=vae_clustering", "method.clustering.latent=true"],
    "parts of a batch": ["method=vae", "engine=parallel", "accumulation=2", "optimiser=torch"],
    "map": ["method=pca"],
    **{method: [f"method={method}"] for method in ("aae", "wae", "pis", "h_iaf", "hamiltonian", "spline", "realnvp", "planar")},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stays_on_its_device(name, tmp_path):
    with use_backend("reference"), PretendDevice():
        result = run(compose([*SMALL, *RUNS[name], f"run_dir={tmp_path / 'run'}"]))
    assert all(np.isfinite(value) for value in result.metrics.values())


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("map", "realnvp")])
def test_a_step_asks_nothing_of_the_host(name, monkeypatch, assembled):
    """What a recorded step on a GPU needs, of every objective in every phase."""
    monkeypatch.setattr(torch.optim.Adam, "step", lambda optimiser: None)  # torch's own, which knows no device without memory
    _, dataset, experiment = assembled(*(setting for setting in SMALL if setting != "device=cuda"), *RUNS[name])
    for phase in experiment.phases:
        engine = Engine(phase.objective.train(), phase.optimisation, pretend.DEVICE)
        x = torch.empty((50, *dataset.input_shape), device=pretend.DEVICE)
        draws, progress = DeviceDraws(Draws(0).state(pretend.DEVICE)), DeviceProgress(4, 2, pretend.DEVICE)
        with use_backend("reference"):
            engine._run(x, progress, draws)  # what is made once and kept
            with pretend.NoHostTraffic():
                engine._run(x, progress, draws)


def test_what_cannot_be_recorded_is_not(built, one_line):
    (phase,) = built(*(setting for setting in SMALL if setting != "device=cuda"), "method=realnvp").phases
    refusal = r"^capture: expected false or null, for a posterior whose steps ask the device"
    one_line(lambda: Engine(phase.objective, phase.optimisation, "cpu", capture=True), refusal)
    with PretendDevice():
        assert Engine(phase.objective, phase.optimisation, "cuda")._captured is None


def test_a_saved_run_is_evaluated_on_its_device(tmp_path):
    with use_backend("reference"), PretendDevice():
        run(compose([*SMALL, "method=ddvi", "method.chain.num_steps=2", f"run_dir={tmp_path / 'run'}"]))
        first = json.loads((tmp_path / "run" / "evaluation.json").read_text())
        again = evaluate_run(tmp_path / "run", overwrite=True).metrics
    assert again == pytest.approx(first, rel=1e-5)


def test_an_estimator_stays_on_its_device(monkeypatch):
    monkeypatch.setattr("ddvi_fast.estimator.training.Engine", partial(Engine, capture=False))
    x = np.random.default_rng(0).normal(size=(60, 4))
    with use_backend("reference"), PretendDevice():
        estimator = DDVI(epochs=2, device="cuda", random_state=0).fit(x)
        assert next(estimator.model_.parameters()).device == DEVICE
        assert np.isfinite(estimator.transform(x)).all() and np.isfinite(estimator.score(x))


class Shifted:
    """A user's model: a standard normal, observed with noise."""

    def log_joint(self, x, z):
        return -0.5 * ((z - x).square() + z.square()).sum(-1)


def test_a_posterior_of_ones_own_model_stays_on_its_device(monkeypatch):
    monkeypatch.setattr("ddvi_fast.inference.start.STEPS", 3)
    with use_backend("reference"), PretendDevice():
        x = torch.tensor([1.0, 2.0]).to("cuda")
        small = {"architecture": Architecture(num_steps=3, width=8), "training": Training(steps=4, batch_size=8)}
        posterior = fit_posterior(Shifted(), x, dim=2, device="cuda", **small)
        assert posterior.sample(5).device == DEVICE
        assert np.isfinite(posterior.importance_sample(200).log_evidence)


def test_a_kept_blurred_prior_stands_where_its_prior_does():
    prior = priors.make("less_noisy_square")
    before = prior.blurred(0.1)
    with PretendDevice():
        moved = prior.to("cuda").blurred(0.1)
        assert moved is not before and {buffer.device for buffer in moved.buffers()} == {DEVICE}


def test_a_step_of_two_devices_is_an_error():
    with PretendDevice():
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert there.device == DEVICE and (there * 2).device == DEVICE and here.to("cuda").device == DEVICE
        with pytest.raises(RuntimeError, match="same device"):
            here + there
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert torch.equal(here, there.cpu())
