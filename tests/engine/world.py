"""Runs a function in several processes that train together, each an interpreter of its own; collects what they return."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
LIMIT = 600  # seconds; far more than any of them takes, on a busy machine too


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
    try:
        with ThreadPoolExecutor(size) as pool:
            ended = pool.map(lambda process: _end(process, processes), processes)
        outputs = list(ended)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for rank, (_, error) in enumerate(outputs):
        assert processes[rank].returncode == 0, f"process {rank} of {size} ended with {processes[rank].returncode}:\n{error[-4000:]}"
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def run_all(size: int, calls: dict[str, tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Results of `run` for several calls `key: (name, settings)`, in one start of the processes, which costs more than most of the calls."""
    return [dict(zip(calls, results, strict=True)) for results in run("in_turn", size, calls=list(calls.values()))]


def _end(process: subprocess.Popen, others: list[subprocess.Popen]) -> tuple[str, str]:
    """What a process printed; where it failed, the others would wait for it in vain."""
    try:
        printed = process.communicate(timeout=LIMIT)
    finally:
        if process.returncode != 0:
            for other in others:
                other.kill()
    return printed
