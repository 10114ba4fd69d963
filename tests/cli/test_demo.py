"""The demo and the study: small, but from end to end."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from ddvi_fast import InputError
from ddvi_fast.cli.demo import demo
from ddvi_fast.paper.tables import COLUMNS

SMALL = ["epochs=1", "limit=256", "progress=off", "tensorboard=false", "evaluation.iwae_samples=5", "evaluation.elbo_samples=5"]


def test_demo_prints_one_table_and_leaves_an_earlier_one_alone(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    demo(SMALL)
    out = capsys.readouterr().out
    assert "Gaussian posterior" in out and "diffusion posterior" in out
    assert all(COLUMNS[name] in out for name in ("evidence", "elbo", "iwae", "gap", "knn_accuracy", "latent_nll", "seconds"))
    assert not any((tmp_path / "runs" / "demo").iterdir())
    pictures = [Path(line.removeprefix("figure: ")) for line in out.splitlines() if line.startswith("figure: ")]
    assert len(pictures) == 8 and all(path.exists() for path in pictures)


def test_demo_refuses_settings_that_it_makes_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="method"):
        demo(["method=vae"])


@pytest.fixture
def study(project_root):
    spec = importlib.util.spec_from_file_location("study_digits", project_root / "bench" / "study_digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project_root():
    return Path(__file__).resolve().parents[2]


def test_the_committed_table_is_made_from_the_committed_results(study, project_root):
    results = project_root / "bench" / "results"
    record = json.loads((results / "digits_posteriors.json").read_text())
    table = study.table(record)
    assert (results / "digits_posteriors.md").read_text() == table
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    results_page = (project_root / "docs" / "results.md").read_text()
    assert all(row in results_page for row in rows)


def test_the_better_mean_of_a_pair_is_bold(study):
    figures = {name: 1.0 for name in study.FIGURES}
    runs = [
        {"prior": prior, "method": method, "seed": seed, **figures, "elbo": elbo + 0.1 * seed}
        for prior in study.PRIORS
        for method, elbo in (("vae", -3.0), ("ddvi", -2.0))
        for seed in (0, 1)
    ]
    table = study.table({"runs": runs, "command": "c", "commit": "abc", "versions": {"torch": "2"}})
    assert "**-1.95 ± 0.07**" in table and "| -2.95 ± 0.07 |" in table
