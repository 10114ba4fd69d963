"""Runs a function in several processes that train together, each an interpreter of its own; collects what they return."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
LIMIT = 240  # seconds; far more than any of them takes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun gives to a process."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    fixed = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), "DS_ACCELERATOR": "cpu"}
    return {**os.environ, **fixed, **{name: str(value) for name, value in place.items()}}


def start(arguments: list[str], size: int, **options: Any) -> list[subprocess.Popen]:
    """`python ARGUMENTS` in `size` processes."""
    port = free_port()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": PROJECT}
    return [subprocess.Popen([sys.executable, *arguments], env=environment(rank, size, port), **{**pipes, **options}) for rank in range(size)]


def run(name: str, size: int, **settings: Any) -> list[Any]:
    """What `tests.engine.workers.NAME(**settings)` returns in each of `size` processes."""
    processes = start(["-m", "tests.engine.workers", name, json.dumps(settings)], size)
    results = []
    try:
        for rank, process in enumerate(processes):
            out, error = process.communicate(timeout=LIMIT)
            assert process.returncode == 0, f"process {rank} of {size} ended with {process.returncode}:\n{error[-4000:]}"
            results.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return results
