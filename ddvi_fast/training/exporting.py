"""Export of a run's posterior as a program that needs only torch."""

from __future__ import annotations

from pathlib import Path

from ddvi_fast import _checks, export
from ddvi_fast.config.compose import from_dict
from ddvi_fast.engine.run_folder import RunFolder
from ddvi_fast.training.run import Run

DEFAULT = "posterior.pt2"
_EXAMPLES = 4


def export_run(path: str | Path, output: str | Path | None = None, *, num_samples: int = 1, overwrite: bool = False) -> Path:
    """Write the final posterior of a run as a program that needs only torch (see `export.sampler`).

    Args:
        path: Folder of the run.
        output: Path of the program; by default `posterior.pt2` in the run's folder.
        num_samples: Posterior samples per row (int, default 1).
        overwrite: Whether to replace an existing file.

    Raises:
        InputError: No such run, no data for it, a posterior that cannot be exported, or an existing file.
    """
    folder = RunFolder.open(path)
    output = folder.path / DEFAULT if output is None else Path(output)
    _checks.require(overwrite or not output.exists(), "output", "a new file", str(output), "--overwrite replaces it")
    method = from_dict(folder.config).method
    _checks.require(method.task not in ("map", "admixture"), "method", "one with a posterior", method.name)
    run = Run.load(folder)
    program = export.sampler(run.experiment.posterior, run.dataset.inputs(split="test")[:_EXAMPLES], num_samples=num_samples)
    return export.save(program, output, overwrite=overwrite)
