"""Picture of the page on coordinates: test latents of two runs side by side, over samples of the prior.

ddvi-fast train epochs=50 method.coordinates=latent run_dir=runs/latent
ddvi-fast train epochs=50 run_dir=runs/prior
python docs/coordinates.py runs/latent runs/prior
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
if str(PROJECT) not in sys.path:  # this file is run as a script
    sys.path.insert(0, str(PROJECT))

from ddvi_fast import metrics, plots  # noqa: E402
from ddvi_fast.training.evaluate import draws_of_test_set, sample_prior  # noqa: E402
from ddvi_fast.training.run import Run  # noqa: E402

PICTURE = PROJECT / "docs" / "coordinates.png"


def draw(folders: Sequence[str | Path], picture: Path = PICTURE) -> Path:
    """Draw the test latents of the runs in `folders`, each named by its coordinates, over samples of the first run's prior."""
    runs = [Run.load(folder) for folder in folders]
    panels = []
    for run in runs:
        latents = metrics.encode(run.experiment.posterior, run.dataset.inputs(split="test"), draws_of_test_set(run.config))
        panels.append((f"coordinates={run.experiment.posterior.coordinates}", latents, run.dataset.test_labels))
    prior_samples, _ = sample_prior(runs[0].config, runs[0].experiment.model)
    return plots.comparison(picture, panels, prior_samples=prior_samples, overwrite=True)


if __name__ == "__main__":
    print(draw(sys.argv[1:]))
