"""Runs a function in several processes that train together, and collects what they return."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
LIMIT = 3600  # seconds; far more than any of them takes, on a busy machine too


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


Calls = dict[str, tuple[str, dict[str, Any]]]  # by key: a function of `tests.engine.workers` by name, and its settings


def run_groups(*groups: tuple[int, Calls]) -> list[list[dict[str, Any]]]:
    """Results by key of the calls of each group (size, calls), in each of its `size` processes.

    The processes of one group after the other are forks of one that has imported everything, whose start costs more than most of the calls.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = json.dumps([[size, list(calls.values())] for size, calls in groups])
        (process,) = start(["-m", "tests.engine.workers", "groups", given, folder], 1, start_new_session=True)
        try:
            _, error = process.communicate(timeout=LIMIT)
        finally:
            if process.returncode != 0:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 0, error[-4000:]
        return [
            [dict(zip(calls, json.loads(Path(folder, f"{number}-{rank}").read_text()), strict=True)) for rank in range(size)]
            for number, (size, calls) in enumerate(groups)
        ]
