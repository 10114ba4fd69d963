"""Peak memory of a call, without its inputs, weights and libraries.

On a CPU a new process runs each case and reads the kernel's high-water mark of its resident memory (Linux). On a GPU the allocator reports it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.cases import Case, by_name
from bench.operations import Chain
from ddvi_fast.native import memory

ROOT = Path(__file__).resolve().parent.parent
SCALING_STEPS, SCALING_ROWS, SCALING_LATENT = (10, 20, 40, 80), (1024, 2048, 4096, 8192), 2
_TIMEOUT = 1800  # seconds for the providers of one case


def peak_bytes(case: Case, providers: Sequence[str], device: torch.device, threads: int) -> dict[str, int | None]:
    """Peak memory of one call of each provider in bytes; None if the system does not report it."""
    if device.type == "cuda":
        problem = case.build(device)
        return {name: _peak_on_gpu(problem.provider(name), device) for name in providers}
    (peaks,) = _in_fresh_process(["--case", case.name, "--providers", *providers, "--threads", str(threads)])
    return peaks


def scaling(threads: int = 1) -> list[dict[str, int | None]]:
    """Peak bytes of the chain, forward and backward, at D = 2, for several T at N = 1024 and several N at T = 10.

    `states` is the size of the trajectory in float32, T N D numbers.
    """
    sizes = [(steps, SCALING_ROWS[0]) for steps in SCALING_STEPS] + [(SCALING_STEPS[0], rows) for rows in SCALING_ROWS[1:]]
    rows = []
    for steps, count in sizes:
        (peaks,) = _in_fresh_process(["--chain", str(steps), str(count), "--providers", "eager", "ours", "--threads", str(threads)])
        rows.append({"T": steps, "N": count, "states": 4 * (steps + 1) * count * SCALING_LATENT, **peaks})
    return rows


def _in_fresh_process(arguments: list[str]) -> list[dict[str, int | None]]:
    # With a fixed threshold the allocator returns large blocks at once, so that later calls cannot use memory of earlier ones.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "bench.memory", *arguments]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_TIMEOUT)
    if ran.returncode != 0:
        last = (ran.stderr.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(f"measuring memory failed with exit code {ran.returncode}: {last}")
    return [json.loads(line) for line in ran.stdout.splitlines()]


def _peak_on_gpu(call: Callable[[], object], device: torch.device) -> int:
    call()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(call: Callable[[], object]) -> int | None:
    call()
    gc.collect()
    memory.release()  # memory that an earlier call left must count for the next one
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    """Measure one case, or sizes of the chain, in this process, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", help="name of a case")
    parser.add_argument("--chain", nargs=2, type=int, action="append", default=[], metavar=("T", "N"), help="a size of the chain")
    parser.add_argument("--providers", nargs="+", required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    problems = [by_name(options.case).build(device)] if options.case else [Chain(device, True, n, t, SCALING_LATENT) for t, n in options.chain]
    for problem in problems:
        print(json.dumps({name: _peak_on_cpu(problem.provider(name)) for name in options.providers}))


if __name__ == "__main__":
    main()
