"""MkDocs hook that draws the pictures of the gallery; no model is trained for them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ddvi_fast import ops, plots, priors, schedules
from ddvi_fast.rng import Draws

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PRIORS = ("pinwheel", "swiss_roll_noisy", "square", "less_noisy_square", "gaussian")
SCHEDULES = ("cosine", "linear", "geometric")
COUNT, STEPS = 2000, 20


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pictures to the site."""
    from mkdocs.structure.files import File

    with tempfile.TemporaryDirectory() as folder:
        for path in draw(Path(folder)):
            files.append(File.generated(config, f"gallery/{path.name}", content=path.read_bytes()))
    return files


def draw(folder: Path) -> list[Path]:
    """Draw samples of every prior by class, and a prior under each noise schedule."""
    panels = []
    for name in PRIORS:
        prior = priors.make(name)
        labels = prior.sample_labels(COUNT, Draws(1)) if prior.num_classes else None
        panels.append((name, prior.sample(COUNT, Draws(1)), labels))
    return [plots.comparison(folder / "priors.png", panels), *(noising(folder / f"noising_{name}.png", name) for name in SCHEDULES)]


def noising(path: Path, name: str) -> Path:
    """Draw samples of the pinwheel under increasing noise, from y_T on the left to z on the right."""
    prior, schedule = priors.make("pinwheel"), schedules.make(name, STEPS)
    z, labels = prior.sample(COUNT, Draws(1)), prior.sample_labels(COUNT, Draws(1))
    states = [ops.add_noise(z, torch.full((COUNT,), step), schedule, draws=Draws(2))[0] for step in reversed(range(STEPS))]
    return plots.trajectory(path, torch.stack([*states, z]), labels, title=f"{name} schedule, {STEPS} steps")
