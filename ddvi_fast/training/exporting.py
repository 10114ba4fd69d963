"""`ddvi-fast export`: a run's posterior as a program of torch alone."""

from __future__ import annotations

from pathlib import Path

from ddvi_fast import _checks, export
from ddvi_fast.config.compose import from_dict
from ddvi_fast.engine.run_folder import RunFolder
from ddvi_fast.recipes.build import build
from ddvi_fast.training.run import load_dataset, restore

DEFAULT = "posterior.pt2"
_EXAMPLES = 4


def export_run(path: str | Path, output: str | Path | None = None, *, num_samples: int = 1, overwrite: bool = False) -> Path:
    """Write the final posterior of the run at `path` as a program (see `export.sampler`); in the run's folder, if `output` does not say where.

    Raises:
        InputError: no such run, no data for it, a posterior that cannot be exported, or a file that stands there.
    """
    folder = RunFolder.open(path)
    output = folder.path / DEFAULT if output is None else Path(output)
    _checks.require(overwrite or not output.exists(), "output", "a new file", str(output), "--overwrite replaces it")
    config = from_dict(folder.config)
    _checks.require(config.method.task != "map", "method", "one with a posterior", config.method.name)
    dataset = load_dataset(config)
    experiment = build(config, dataset)
    restore(experiment, folder, config.device)
    program = export.sampler(experiment.posterior, dataset.inputs(split="test")[:_EXAMPLES], num_samples=num_samples)
    return export.save(program, output, overwrite=overwrite)
