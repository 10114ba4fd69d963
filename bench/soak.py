"""The long campaign of faults: `make soak`, or `python -m bench.soak [PART ...] [--output NAME]`.

Runs are forked from this process, which has imported everything, so that a start costs no imports and thousands of kills are cheap.
Figures of every part go into `bench/results/NAME.json` and `.md`; parts that are not run again keep theirs.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import pickle
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from bench.equality import equality
from ddvi_fast import cli
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.checkpoints import Checkpoints
from ddvi_fast.engine.run_folder import environment

RESULTS = Path(__file__).resolve().parent / "results"
SMALL = [
    "dataset=digits", "method=ddvi", "method.chain.num_steps=3", "method.chain.hidden_dim=64", "dataset.encoder.hidden=[24]",
    "dataset.decoder.hidden=[24]", "epochs=12", "checkpoint_steps=2", "tensorboard=false", "figures=false", "progress=off",
    "evaluation.evidence=false", "evaluation.limit=8", "evaluation.elbo_samples=2", "evaluation.iwae_samples=2", "evaluation.prior_samples=64",
]  # fmt: skip
KILLS, KILLS_A_RUN, DAMAGES, TIMEOUT = 30, 5, 200, 4.0


def fork(overrides: Sequence[str], folder: Path, size: int = 1, run: Path | None = None) -> list[int]:
    """Start the run `run` (in `folder`, if not given) in `size` processes, whose words go into `folder`; their ids."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(size):
        process = os.fork()
        if process == 0:
            _become(rank, size, port, [*overrides, f"run_dir={run or folder / 'run'}"], folder)
        processes.append(process)
    return processes


def _become(rank: int, size: int, port: int, overrides: Sequence[str], folder: Path) -> None:
    """The forked process: the command itself, its words in a file."""
    words = os.open(folder / f"words{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(words, 1)
    os.dup2(words, 2)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    code = 1
    try:
        code = cli.main(["train", *overrides])
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def wait(processes: Sequence[int], limit: float = 120.0) -> list[int | None]:
    """Exit codes, minus the signal where one ended it; None, and killed, where the limit has passed."""
    until, codes = time.monotonic() + limit, dict.fromkeys(processes)
    while time.monotonic() < until and None in codes.values():
        for process in [process for process, code in codes.items() if code is None]:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                codes[process] = os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    for process in [process for process, code in codes.items() if code is None]:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return list(codes.values())


def words(folder: Path, rank: int = 0) -> str:
    return (folder / f"words{rank}").read_text()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Final weights of a run."""
    return checkpoint.load(folder / "run" / "checkpoints" / "final")[0]


def kills(size: int, count: int = KILLS) -> dict[str, Any]:
    """Kill -9 at random moments, every other one in a checkpoint's write: the final weights are those of a run that nobody disturbed."""
    chance = random.Random(size)
    with tempfile.TemporaryDirectory() as name:
        calm = Path(name) / "calm"
        calm.mkdir()
        started = time.monotonic()
        assert wait(fork(SMALL, calm, size)) == [0] * size, words(calm)
        length, expected = time.monotonic() - started, weights(calm)
        done = writing = runs = resumed = 0
        furthest = 0.0
        while done < count:
            folder = Path(name) / f"run{runs}"
            folder.mkdir()
            runs, until = runs + 1, min(count, done + KILLS_A_RUN)
            while not (folder / "run" / "evaluation.json").exists():
                before, processes = half_written(folder), fork(SMALL, folder, size)
                if done < until:
                    time.sleep(chance.uniform(0.15, 0.8) * length)
                    if done % 2:
                        await_write(folder, before, length)
                    for process in processes:
                        os.kill(process, signal.SIGKILL)
                codes = wait(processes)
                killed = any(code == -signal.SIGKILL for code in codes)
                done += killed
                writing += killed and bool(half_written(folder) - before)
                assert killed or codes == [0] * size, words(folder)
            resumed += words(folder).count("goes on after step")
            found = weights(folder)
            furthest = max([furthest, *(float((found[key] - expected[key]).abs().max()) for key in expected)])
    return {
        "processes": size, "kills": done, "that cut a checkpoint's write short": writing, "runs": runs,
        "starts that went on from a checkpoint": resumed, "largest difference of a final weight": furthest, "undisturbed seconds": round(length, 2),
    }  # fmt: skip


def half_written(folder: Path) -> set[tuple[str, int]]:
    """Checkpoints that were begun and not finished, with the time of their beginning."""
    found = set()
    for path in (folder / "run" / "checkpoints").glob(".*.partial"):
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ctime_ns))
    return found


def await_write(folder: Path, before: set[tuple[str, int]], limit: float) -> None:
    """Until a checkpoint is being written, or the limit has passed."""
    until = time.monotonic() + limit
    while time.monotonic() < until and not half_written(folder) - before:
        time.sleep(0.0002)


@contextmanager
def two_checkpoints() -> Iterator[tuple[Checkpoints, list[str]]]:
    """Checkpoints of steps 1 and 2, and what is told when they are read."""
    told: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        kept = Checkpoints(Path(name), keep=2, tell=told.append)
        for step in (1, 2):
            kept.save(step, {"w": torch.full((500,), float(step)), "m": torch.ones(20, 3)}, {"step": step, "best": None})
        kept.wait()
        yield kept, told


def first_is_used(kept: Checkpoints, told: list[str]) -> bool:
    """Whether the second checkpoint is refused in words, and the first one read."""
    told.clear()
    found = kept.newest()
    return found is not None and found.name == "step-00000001" and len(told) == 1 and "step-00000002" in told[0]


def damages(count: int = DAMAGES) -> dict[str, Any]:
    """Cut or flip one bit of the newest checkpoint: it is noticed, and the one before it is read instead."""
    chance, noticed = random.Random(0), 0
    with two_checkpoints() as (kept, told):
        for number in range(count):
            file = kept.folder / "step-00000002" / (checkpoint.WEIGHTS if number % 4 else checkpoint.STATE)
            good = file.read_bytes()
            offset = chance.randrange(len(good) - 1)
            bad = bytearray(good)
            bad[offset] ^= 1 << chance.randrange(8)
            file.write_bytes(good[:offset] if number % 2 else bytes(bad))
            noticed += first_is_used(kept, told)
            file.write_bytes(good)
    return {"damages": count, "noticed, and the one before it used": noticed}


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def pickles() -> dict[str, Any]:
    """A pickle that does something, in place of each file and in the tensors' place of a signed one: it is refused and not executed."""
    with tempfile.TemporaryDirectory() as beside, two_checkpoints() as (kept, told):
        trace = Path(beside) / "trace"
        poison, refused = pickle.dumps(Trap(trace)), 0
        state, tensors = (kept.folder / "step-00000002" / name for name in (checkpoint.STATE, checkpoint.WEIGHTS))
        signed = json.loads(state.read_bytes()) | {"weights_sha256": hashlib.sha256(poison).hexdigest()}
        for contents in ({state: poison}, {tensors: poison}, {tensors: poison, state: json.dumps(signed).encode()}):
            good = {file: file.read_bytes() for file in contents}
            for file, data in contents.items():
                file.write_bytes(data)
            refused += first_is_used(kept, told)
            for file, data in good.items():
                file.write_bytes(data)
        executed = trace.exists()
        pickle.loads(poison)
        return {"places of a pickle": 3, "refused, and the one before it used": refused, "executed": executed, "the trap works": trace.exists()}


@contextmanager
def small_disk(options: str) -> Iterator[tuple[Path, Path]]:
    """A folder on a file system of its own, and one beside it."""
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as beside:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", name], check=True)
        try:
            yield Path(name), Path(beside)
        finally:
            subprocess.run(["umount", name], check=True)


def full_disk() -> dict[str, Any]:
    """A run on a file system of four megabytes that fills up: it says so, its last checkpoint stands, and with space again it goes on."""
    with small_disk("size=4m") as (disk, beside):
        (beside / "calm").mkdir()
        wait(fork(SMALL, beside / "calm"))
        processes = fork(SMALL, beside, run=disk / "run")
        while not list((disk / "run").glob("checkpoints/step-*")):
            time.sleep(0.002)
        with open(disk / "ballast", "wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(b"x" * 512)
        (full,) = wait(processes)
        stands = Checkpoints(disk / "run" / "checkpoints", tell=lambda line: None).newest()
        said = [line for line in words(beside).splitlines() if "written" in line]
        (disk / "ballast").unlink()
        (again,) = wait(fork(SMALL, beside, run=disk / "run"))
        (beside / "run").symlink_to(disk / "run")
        expected, found = weights(beside / "calm"), weights(beside)
        return {
            "exit code on the full disk": full, "words": " | ".join(said), "whole checkpoint that stands": stands.name if stands else "none",
            "exit code with space again": again,
            "final weights are the same bits": all(torch.equal(value, expected[key]) for key, value in found.items()),
        }  # fmt: skip


def read_only() -> dict[str, Any]:
    """A folder on a file system that is read only: one line."""
    with small_disk("ro") as (disk, beside):
        (code,) = wait(fork(SMALL, beside, run=disk))
        return {"exit code": code, "words": words(beside).strip().splitlines()[-1].replace(str(disk), "FOLDER")}


def peers() -> dict[str, Any]:
    """One of two processes stands still, or is killed: the other ends within the time-out and names it."""
    found = {}
    for kind, number in (("stopped", signal.SIGSTOP), ("killed", signal.SIGKILL)):
        for victim in (0, 1):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                processes = fork([*SMALL, "epochs=4000", f"timeout={TIMEOUT}"], folder, 2)
                while not (folder / "run" / "metrics.jsonl").exists():
                    time.sleep(0.01)
                time.sleep(0.5)
                started = time.monotonic()
                os.kill(processes[victim], number)
                (code,) = wait([processes[1 - victim]], limit=10 * TIMEOUT)
                seconds = time.monotonic() - started
                os.kill(processes[victim], signal.SIGKILL)
                os.waitpid(processes[victim], 0)
                last = words(folder, 1 - victim).strip().splitlines()[-1]
                found[f"rank {victim} {kind}"] = {"exit code": code, "seconds": round(seconds, 2), "words": last}
    return {"time-out, seconds": TIMEOUT, **found}


def signals() -> dict[str, Any]:
    """SIGTERM and SIGINT at random steps: the step is finished, a checkpoint stands, and the run goes on from it bit for bit."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        calm = Path(name) / "calm"
        calm.mkdir()
        wait(fork(SMALL, calm))
        expected = weights(calm)
        for number in (signal.SIGTERM, signal.SIGINT):
            folder = Path(name) / number.name
            folder.mkdir()
            (process,) = fork(SMALL, folder)
            while not (folder / "run" / "metrics.jsonl").exists():
                time.sleep(0.002)
            time.sleep(random.Random(int(number)).uniform(0.3, 1.5))
            os.kill(process, number)
            codes = [*wait([process]), *wait(fork(SMALL, folder))]
            same = all(torch.equal(value, expected[key]) for key, value in weights(folder).items())
            found[number.name] = {"exit codes": codes, "final weights are the same bits": same, "words": words(folder).splitlines()[0]}
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "kills, one process": lambda: kills(1),
    "kills, two processes": lambda: kills(2),
    "signals": signals,
    "peers": peers,
    "damages": damages,
    "pickles": pickles,
    "full disk": full_disk,
    "read only": read_only,
    "equality": equality,
}


def import_all() -> None:
    """What runs import late, here and once."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in ("ddvi_fast.training.run", "hydra", "sklearn.neighbors", "deepspeed"):
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; all of them if none is given")
    parser.add_argument("--output", default="soak-cpu", metavar="NAME")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    import_all()
    path = RESULTS / f"{options.output}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in options.parts or PARTS:
        started = time.monotonic()
        results[name] = {**PARTS[name](), "took seconds": round(time.monotonic() - started, 1), "commit": environment()["commit"]}
        print(name, json.dumps(results[name]), flush=True)
        path.write_text(json.dumps({**results, "environment": environment()}, indent=2) + "\n")
        path.with_suffix(".md").write_text(as_text(results))


def as_text(results: dict[str, Any]) -> str:
    """The figures for people."""
    lines = ["# Faults and how runs took them", "", "Written by `make soak` (`python -m bench.soak`).", ""]
    for part, figures in results.items():
        if part != "environment":
            lines += [f"## {part.capitalize()}", "", *(f"- {name}: {_plain(value)}" for name, value in figures.items()), ""]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return "; ".join(f"{name} {_plain(inner)}" for name, inner in value.items()) if isinstance(value, dict) else str(value)


if __name__ == "__main__":
    main()
