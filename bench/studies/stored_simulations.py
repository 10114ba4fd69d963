"""Memory of a fit to simulations in files that may be larger than memory: `python -m bench.studies.stored_simulations`.

Files of each size are made in a temporary folder, and a fit to each runs in a process of its own. Measured is by how much the largest resident
memory of the process grows over what it was after a fit to the same number of small rows in memory.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

COLUMNS = 250  # numbers of one simulation's data, in single precision
SIZES = (0.1, 2.0)  # gigabytes
STEPS, BATCH = 100, 512


def write(folder: Path, gigabytes: float) -> None:
    """Write simulations z ~ N(0, 1), x = z + noise of a total size into `z.npy` and `x.npy`."""
    rows, made = int(gigabytes * 1e9 / (4 * (COLUMNS + 1))), np.random.default_rng(0)
    z = np.lib.format.open_memmap(folder / "z.npy", "w+", np.float32, (rows, 1))
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (rows, COLUMNS))
    for first in range(0, rows, 1 << 14):
        part = slice(first, min(rows, first + (1 << 14)))
        z[part] = made.standard_normal((part.stop - first, 1), np.float32)
        x[part] = z[part] + 4 * made.standard_normal((part.stop - first, COLUMNS), np.float32)
    z.flush(), x.flush()


def growth(folder: Path) -> tuple[float, float]:
    """Fit to the files of a folder, and return the growth of the largest resident memory in megabytes and the posterior's standard deviation."""
    import torch

    from ddvi_fast.inference import Training, fit_posterior

    torch.set_num_threads(1)
    training = Training(steps=STEPS, batch_size=BATCH)
    z = torch.randn(1 << 13, 1, generator=torch.Generator().manual_seed(0))
    fit_posterior(simulations=(z, z + 4 * torch.randn(1 << 13, COLUMNS, generator=torch.Generator().manual_seed(1))), training=training)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    posterior = fit_posterior(simulations=folder, training=training)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) / 1024, float(posterior.sample(1000, x=torch.ones(COLUMNS)).std())


def measured(gigabytes: float) -> str:
    """Measure one size in a process of its own; a line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), gigabytes)
        command = [sys.executable, "-m", "bench.studies.stored_simulations", "--folder", folder]
        return f"| {gigabytes:g} GB | {subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()} MB |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=list(SIZES), help="gigabytes of the files")
    parser.add_argument("--folder", type=Path, help="fit to the files of this folder only, and print the growth")
    arguments = parser.parse_args()
    if arguments.folder is not None:
        print(f"{growth(arguments.folder)[0]:.0f}")
        return
    print("| simulations | growth of the largest resident memory |\n| --- | --- |")
    for gigabytes in arguments.sizes:
        print(measured(gigabytes), flush=True)


if __name__ == "__main__":
    main()
