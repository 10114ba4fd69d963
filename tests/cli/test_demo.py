"""Tests of the demo with small settings."""

import pickle
from pathlib import Path

from ddvi_fast.cli import demo
from ddvi_fast.paper.tables import COLUMNS

SMALL = [
    "epochs=1", "limit=256", "progress=off", "tensorboard=false", "evaluation.iwae_samples=5", "evaluation.elbo_samples=5", "evaluation.limit=64",
    "prior.resolution=40",
]  # fmt: skip


def test_demo_prints_one_table_and_leaves_an_earlier_one_alone(shell, tmp_path, monkeypatch):
    """Both trainings in this process; tests/training/test_jobs.py has those in others, to which the function must go."""
    assert pickle.loads(pickle.dumps(demo._train)) is demo._train
    monkeypatch.setattr("ddvi_fast.training.jobs.in_processes", lambda function, items: enumerate(map(function, items)))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    out = shell("demo", *SMALL)
    assert "Gaussian, latent" in out and "diffusion, prior+encoder" in out
    assert all(COLUMNS[name].heading in out for name in ("evidence", "elbo", "iwae", "gap", "knn_accuracy", "latent_nll", "seconds"))
    assert not any((tmp_path / "runs" / "demo").iterdir())
    pictures = [Path(line.removeprefix("figure: ")) for line in out.splitlines() if line.startswith("figure: ")]
    assert len(pictures) == 8 and all(path.exists() for path in pictures)


def test_demo_refuses_settings_that_it_makes_itself(tmp_path, monkeypatch, shell):
    monkeypatch.chdir(tmp_path)
    for setting in ("method=vae", "method.coordinates=latent", "run_dir=x"):
        assert "settings other than method, method.coordinates, run_dir" in shell("demo", setting, code=2)
