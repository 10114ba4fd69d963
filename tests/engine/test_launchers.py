"""Runs under the launchers of clusters: one is taken back under torchrun and goes on under DeepSpeed's; the job for a queue fits."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddvi_fast import cli
from ddvi_fast.config.compose import compose
from ddvi_fast.training import run as runs
from tests.engine import world
from tests.engine.small import NARROW

SETTINGS = [
    *NARROW, "dataset=digits", "method=vae", "prior=gaussian", "epochs=25", "checkpoint_steps=1000", "tensorboard=false", "progress=off",
    "evaluation.evidence=false", "evaluation.limit=8", "evaluation.elbo_samples=2", "evaluation.iwae_samples=2", "evaluation.prior_samples=64",
]  # fmt: skip
JOB = world.PROJECT / "docs" / "slurm" / "train.sbatch"


def launch(module: str, options: list[str], folder: Path) -> subprocess.Popen:
    """The command for two processes under the launcher `python -m MODULE OPTIONS`."""
    variables = {key: value for key, value in world.environment(0, 1, 0).items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    command = [sys.executable, "-m", module, *options, "ddvi_fast.train", *SETTINGS, f"run_dir={folder}"]
    return subprocess.Popen(command, env=variables, cwd=world.PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed (the extra distributed)")
def test_a_job_that_is_taken_back_goes_on_under_another_launcher(tmp_path):
    free = f"--master_port={world.free_port()}"
    first = launch("torch.distributed.run", ["--nproc_per_node=2", free, "-m"], tmp_path / "run")
    records = tmp_path / "run" / "metrics.jsonl"
    while not (records.exists() and records.stat().st_size) and first.poll() is None:
        time.sleep(0.01)
    first.send_signal(signal.SIGTERM)
    words = first.communicate(timeout=world.LIMIT)[0]
    step = re.search(r"stopped after step (\d+); the same command resumes the run", words)
    assert step and not (tmp_path / "run" / "evaluation.json").exists(), words
    again = launch("deepspeed.launcher.runner", ["--num_gpus=2", free, "--module"], tmp_path / "run")
    words = again.communicate(timeout=world.LIMIT)[0]
    assert again.returncode == 0, words
    assert f"resuming at step {step[1]} of" in words and "engine deepspeed, ZeRO 0, 2 x 1 parts of a batch, float32, torch's fused Adam" in words
    assert cli.main(["train", *SETTINGS, f"run_dir={tmp_path / 'calm'}"]) == 0
    calm, taken_back = (runs.read_metrics(tmp_path / name / "metrics.jsonl") for name in ("calm", "run"))
    assert [record["step"] for record in taken_back] == [record["step"] for record in calm]
    for found, expected in zip(taken_back, calm, strict=True):
        assert found["reconstruction"] == pytest.approx(expected["reconstruction"], rel=1e-3)


def test_the_job_for_a_queue_is_a_script_and_its_settings_exist(tmp_path):
    """The queue's commands are stand-ins: what they are called with is read back."""
    for name, text in {"scontrol": 'echo node1; echo "scontrol $@" >> calls', "srun": 'echo "srun $@" >> calls'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "DDVI_FAST_DATA": "/data"}
    subprocess.run(["bash", JOB], cwd=tmp_path, env={**os.environ, **variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[-1] == "scontrol requeue 7"
    (run,) = (shlex.split(call) for call in calls if call.startswith("srun"))
    assert run[1:4] == ["torchrun", "--nnodes=2", "--nproc_per_node=8"] and "--rdzv_endpoint=node1:29500" in run
    config = compose(run[run.index("ddvi_fast.train") + 1 :])
    assert config.engine == "deepspeed" and config.recipe.batch_size % 16 == 0 and config.data_dir == "/data"
    (tmp_path / config.run_dir).mkdir(parents=True)
    (tmp_path / config.run_dir / "evaluation.json").write_text("{}")
    subprocess.run(["bash", JOB], cwd=tmp_path, env={**os.environ, **variables, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True)
    assert (tmp_path / "calls").read_text().splitlines()[len(calls) :] == [call for call in calls if "requeue" not in call]
