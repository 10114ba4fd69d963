"""Fault injection in training runs: kills at random moments, full and read-only disks. Root is needed for the file systems.

    make soak                           # or python -m bench.studies.soak [PART ...] [--output NAME]

Results of parts that are not run again stay in the results file. Signals, lost peers and damaged checkpoints are part of the test suite
(`tests/engine`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from bench import records
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.checkpoint_manager import CheckpointManager
from ddvi_fast.engine.run_folder import environment

SMALL = [
    "dataset=digits", "method=ddvi", "method.chain.num_steps=3", "method.chain.hidden_dim=64", "dataset.encoder.hidden=[24]",
    "dataset.decoder.hidden=[24]", "epochs=12", "checkpoint_steps=2", "tensorboard=false", "figures=false", "progress=off",
    "evaluation.evidence=false", "evaluation.limit=8", "evaluation.elbo_samples=2", "evaluation.iwae_samples=2", "evaluation.prior_samples=64",
]  # fmt: skip
KILLS, KILLS_A_RUN = 30, 5


def launch(overrides: Sequence[str], folder: Path, size: int = 1, run: Path | None = None) -> list[subprocess.Popen]:
    """Start a training run, whose output goes into `folder`.

    Args:
        overrides: Settings of the run.
        folder: Folder of the output files.
        size: Number of processes (int, default 1).
        run: Run folder (default ``folder / "run"``).

    Returns:
        The processes.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": probe.getsockname()[1], "OMP_NUM_THREADS": 1, "DS_ACCELERATOR": "cpu"}
    command, processes = [sys.executable, "-m", "ddvi_fast.cli", "train", *overrides, f"run_dir={run or folder / 'run'}"], []
    for rank in range(size):
        variables = {name: str(value) for name, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()}
        with (folder / f"output{rank}").open("ab") as file:
            processes.append(subprocess.Popen(command, env={**os.environ, **variables}, stdout=file, stderr=subprocess.STDOUT))
    return processes


def wait(processes: Sequence[subprocess.Popen], limit: float = 300.0) -> list[int | None]:
    """Exit codes of processes; a process that takes more than `limit` seconds is killed, and its code is None."""
    codes: list[int | None] = []
    for process in processes:
        try:
            codes.append(process.wait(limit))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            codes.append(None)
    return codes


def output(folder: Path) -> str:
    """Output of the first process of a run."""
    return (folder / "output0").read_text()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Final weights of a run."""
    return checkpoint.load(folder / "run" / "checkpoints" / "final")[0]


def kills(size: int, count: int = KILLS) -> dict[str, Any]:
    """Kill runs at random moments, every other time while a checkpoint is written, and compare their final weights with an undisturbed run's."""
    chance = random.Random(size)
    with tempfile.TemporaryDirectory() as name:
        calm = Path(name) / "calm"
        calm.mkdir()
        started = time.monotonic()
        assert wait(launch(SMALL, calm, size)) == [0] * size, output(calm)
        length, expected = time.monotonic() - started, weights(calm)
        done = writing = runs = resumed = 0
        furthest = 0.0
        while done < count:
            folder = Path(name) / f"run{runs}"
            folder.mkdir()
            runs, until = runs + 1, min(count, done + KILLS_A_RUN)
            while not (folder / "run" / "evaluation.json").exists():
                before, processes = half_written(folder), launch(SMALL, folder, size)
                if done < until:
                    time.sleep(chance.uniform(0.4, 0.95) * length)  # the first part of a run is imports
                    if done % 2:
                        await_write(folder, before, length)
                    for process in processes:
                        process.kill()
                codes = wait(processes)
                killed = any(code == -signal.SIGKILL for code in codes)
                done += killed
                writing += killed and bool(half_written(folder) - before)
                assert killed or codes == [0] * size, output(folder)
            resumed += len(re.findall("(goes on after|resuming at) step", output(folder)))
            found = weights(folder)
            furthest = max([furthest, *(float((found[key] - expected[key]).abs().max()) for key in expected)])
    return {
        "processes": size, "kills": done, "kills while a checkpoint was written": writing, "runs": runs,
        "starts that resumed from a checkpoint": resumed, "largest difference of a final weight": furthest, "undisturbed seconds": round(length, 2),
    }  # fmt: skip


def half_written(folder: Path) -> set[tuple[str, int]]:
    """Names of unfinished checkpoints, with the times at which they were begun."""
    found = set()
    for path in (folder / "run" / "checkpoints").glob(".*.partial"):
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ctime_ns))
    return found


def await_write(folder: Path, before: set[tuple[str, int]], limit: float) -> None:
    """Wait until a checkpoint is being written, at most `limit` seconds."""
    until = time.monotonic() + limit
    while time.monotonic() < until and not half_written(folder) - before:
        time.sleep(0.0002)


@contextmanager
def small_disk(options: str) -> Iterator[tuple[Path, Path]]:
    """Mount a small file system; yields its folder and a folder beside it."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as beside:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", name], check=True)
        try:
            yield Path(name), Path(beside)
        finally:
            subprocess.run(["umount", name], check=True)


def full_disk() -> dict[str, Any]:
    """Fill the file system of a run: it must report this, keep its last checkpoint, and resume once there is space."""
    with small_disk("size=4m") as (disk, beside):
        (beside / "calm").mkdir()
        wait(launch(SMALL, beside / "calm"))
        processes = launch(SMALL, beside, run=disk / "run")
        while not list((disk / "run").glob("checkpoints/step-*")):
            time.sleep(0.002)
        with open(disk / "ballast", "wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(b"x" * 512)
        (full,) = wait(processes)
        intact = CheckpointManager(disk / "run" / "checkpoints", tell=lambda line: None).newest()
        said = [line for line in output(beside).splitlines() if "space" in line]
        (disk / "ballast").unlink()
        (again,) = wait(launch(SMALL, beside, run=disk / "run"))
        (beside / "run").symlink_to(disk / "run")
        expected, found = weights(beside / "calm"), weights(beside)
        return {
            "exit code on the full disk": full, "output": " | ".join(said), "last intact checkpoint": intact.name if intact else "none",
            "exit code with space again": again,
            "final weights are the same bits": all(torch.equal(value, expected[key]) for key, value in found.items()),
        }  # fmt: skip


def read_only() -> dict[str, Any]:
    """Start a run on a read-only file system: it must end with one line."""
    with small_disk("ro") as (disk, beside):
        (code,) = wait(launch(SMALL, beside, run=disk))
        return {"exit code": code, "output": output(beside).strip().splitlines()[-1].replace(str(disk), "FOLDER")}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "kills, one process": lambda: kills(1),
    "kills, two processes": lambda: kills(2),
    "full disk": full_disk,
    "read only": read_only,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; all of them if none is given")
    parser.add_argument("--output", default="soak-cpu", metavar="NAME", help="name of the results file")
    options = parser.parse_args(arguments)
    path = records.RESULTS / f"{options.output}.json"
    results = records.read(path)["parts"] if path.exists() else {}
    for name in options.parts or PARTS:
        started, made = time.monotonic(), environment()
        results[name] = {**PARTS[name](), "seconds of this part": round(time.monotonic() - started, 1), "commit": made["commit"]}
        print(name, json.dumps(results[name]), flush=True)
        records.write(path, {"kind": "bench.studies.soak", **made, "parts": results})


def markdown(record: dict[str, Any]) -> str:
    """A list for each part."""
    lines = ["# Training runs under injected faults", "", "Written by `make soak` (`python -m bench.studies.soak`).", ""]
    for part, found in record["parts"].items():
        earlier = "" if part in PARTS else " (earlier measurement, now part of the test suite)"
        lines += [f"## {part.capitalize()}{earlier}", "", *(f"- {name}: {_plain(value)}" for name, value in found.items()), ""]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return "; ".join(f"{name} {_plain(inner)}" for name, inner in value.items()) if isinstance(value, dict) else str(value)


if __name__ == "__main__":
    main()
