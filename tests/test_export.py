"""Tests of exported programs: they return what the posterior returns, at any batch size, with only torch installed."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddvi_fast import export
from ddvi_fast.posteriors import Posterior, PosteriorSample
from ddvi_fast.rng import Draws
from tests.linear_gaussian import make_model, observations
from tests.posteriors import coordinates, families

SAMPLES, SEED, FIRST = 3, 5, 1 << 33
EXPORTED = [family for family in families.ALL if family is not families.hamiltonian]  # which follows the gradient of its model


def close(made: Tensor, expected: Tensor) -> bool:
    """Fused kernels against plain PyTorch: float32 sums of ten to twenty terms."""
    return made.shape == expected.shape and torch.allclose(made, expected, rtol=1e-4, atol=1e-4)


@functools.cache
def exported(family) -> tuple[Posterior, torch.export.ExportedProgram]:
    """A posterior of the family in evaluation mode, and the program made from it."""
    posterior = family(make_model()).eval()
    return posterior, export.sampler(posterior, observations(4), num_samples=SAMPLES)


@pytest.mark.parametrize("family", EXPORTED, ids=lambda family: family.__name__)
@torch.no_grad()
def test_a_program_gives_what_the_posterior_gives_at_any_batch_size(family) -> None:
    posterior, program = exported(family)
    assert "ddvi_fast" not in program.graph_module.code  # operators of torch only
    run = program.module()
    for rows in (1, 2, 37):
        made = run(observations(rows), torch.tensor([SEED, FIRST]))
        expected = [part for part in posterior.sample(observations(rows), SAMPLES, Draws(SEED, FIRST)) if part is not None]
        assert len(made) == len(expected) and all(close(*pair) for pair in zip(made, expected, strict=True)), rows


@pytest.mark.parametrize(
    ("prior", "family", "by_class"),
    [
        ("pinwheel", "diffusion", False), ("pinwheel", "diffusion", True), ("swiss_roll", "gaussian", True), ("mixture", "class_diffusion", True),
    ],
)  # fmt: skip
@torch.no_grad()
def test_a_program_in_the_priors_coordinates_draws_the_class_and_pushes_the_noise(prior, family, by_class) -> None:
    model = coordinates.make_model(prior)
    posterior = coordinates.make(family, model, "prior+encoder", by_class).eval()
    program = export.sampler(posterior, observations(4), num_samples=SAMPLES)
    assert "ddvi_fast" not in program.graph_module.code
    made = program.module()(observations(7), torch.tensor([SEED, FIRST]))
    sample = posterior.sample(observations(7), SAMPLES, Draws(SEED, FIRST))
    assert (sample.log_ratio is None) == (prior == "swiss_roll") and sample.log_prior_ratio is not None
    expected = [part for part in sample if part is not None]
    assert len(made) == len(expected) and all(close(*pair) for pair in zip(made, expected, strict=True))


@torch.no_grad()
def test_seed_and_first_row_are_inputs() -> None:
    program = exported(families.diffusion)[1].module()
    x = observations(1).expand(6, -1)
    z, _ = program(x, torch.tensor([SEED, 10]))
    assert close(program(x[2:], torch.tensor([SEED, 12]))[0], z[:, 2:]), "a row does not depend on its batch"
    assert not torch.equal(program(x, torch.tensor([SEED + 1, 10]))[0], z)
    assert (z[:, 0] - z[:, 1]).abs().min() > 0


LOADED = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
saved = torch.load(sys.argv[2])
torch.save(list(program(saved["x"], saved["position"])), sys.argv[3])
assert not [name for name in sys.modules if name.startswith("ddvi_fast")]
"""


@torch.no_grad()
def test_a_saved_program_runs_without_the_package(tmp_path: Path, one_line) -> None:
    (posterior, program), x = exported(families.diffusion), observations(9)
    path = export.save(program, tmp_path / "new" / "posterior.pt2")
    torch.save({"x": x, "position": torch.tensor([SEED, FIRST])}, tmp_path / "inputs.pt")
    command = [sys.executable, "-c", LOADED, str(path), str(tmp_path / "inputs.pt"), str(tmp_path / "outputs.pt")]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=3600)
    for made, expected in zip(torch.load(tmp_path / "outputs.pt"), posterior.sample(x, SAMPLES, Draws(SEED, FIRST))[:2], strict=True):
        assert close(made, expected)
    one_line(lambda: export.save(torch.export.load(path), path), "overwrite")


def test_the_posterior_is_left_in_its_mode() -> None:
    posterior = families.diffusion(make_model()).train()
    posterior.encoder.eval()
    export.sampler(posterior, observations(2))
    assert posterior.training and not posterior.encoder.training and posterior.denoiser.training


def test_a_program_that_differs_is_refused(monkeypatch) -> None:
    posterior = families.gaussian(make_model())
    sample = posterior.sample

    def shifted(x: Tensor, num_samples: int = 1, draws: Draws | None = None) -> PosteriorSample:
        drawn = sample(x, num_samples, draws)
        return drawn._replace(z=drawn.z + 1.0) if torch.compiler.is_exporting() else drawn

    monkeypatch.setattr(posterior, "sample", shifted)
    with pytest.raises(AssertionError, match="not close"):
        export.sampler(posterior, observations(2))


@pytest.mark.parametrize(
    ("make", "rows", "samples", "words"),
    [
        (families.gaussian, 1, 1, "example: expected at least two rows"),
        (families.gaussian, 2, 0, "num_samples: expected at least 1"),
        (families.hamiltonian, 2, 1, "torch.export can trace, got Hamiltonian"),
    ],
)
def test_bad_input_is_named(make, rows: int, samples: int, words: str, one_line) -> None:
    one_line(lambda: export.sampler(make(make_model()), observations(rows), num_samples=samples), words)


def test_the_command_exports_a_run(tmp_path: Path, shell) -> None:
    run = tmp_path / "run"
    settings = ["epochs=1", "limit=256", "progress=off", "tensorboard=false", "figures=false", "evaluation.iwae_samples=5", "evaluation.limit=32"]
    shell("train", f"run_dir={run}", *settings)
    path = Path(shell("export", f"run_dir={run}", "num_samples=2").strip())
    assert path == run / "posterior.pt2"
    z, log_ratio, log_prior_ratio = torch.export.load(path).module()(torch.zeros(5, 8, 8), torch.tensor([0, 0]))
    assert z.shape == (2, 5, 2) and log_ratio.shape == log_prior_ratio.shape == (2, 5)
    assert "--overwrite" in shell("export", run, code=2)
    assert "num-samples" in shell("export", f"run_dir={run}", "num_samples=two", "overwrite=true", code=2)
    assert "did you mean run_dir" in shell("export", "rundir=x", code=2)
