"""Signals, lost peers, locks, failed steps: what ends a run, and what it leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch

from ddvi_fast import cli
from ddvi_fast._checks import InputError
from ddvi_fast._files import locked
from ddvi_fast.config.compose import compose
from ddvi_fast.engine import checkpoint, failed_step
from ddvi_fast.engine.callbacks import TermMeter
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.non_finite import NonFinite
from ddvi_fast.engine.run_folder import RunFolder, unfinished
from ddvi_fast.engine.signals import StopRequest
from ddvi_fast.engine.watchdog import EXIT_PEER_LOST
from ddvi_fast.objectives import Objective, Progress, Terms, Update
from ddvi_fast.recipes.phases import Optimisation
from ddvi_fast.rng import Draws
from ddvi_fast.training import run as runs
from ddvi_fast.training.replay import replay
from tests.engine import world
from tests.engine.small import NARROW

QUICK = [
    *NARROW, "dataset=digits", "method=vae", "epochs=3", "checkpoint_steps=4", "tensorboard=false", "progress=off", "evaluation.evidence=false",
    "evaluation.limit=8", "evaluation.elbo_samples=2", "evaluation.iwae_samples=2", "evaluation.prior_samples=64",
]  # fmt: skip
SPOILT = 77


def final(folder) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "checkpoints" / "final")[0]


def train(folder, *more: str) -> int:
    return cli.main(["train", *QUICK, f"run_dir={folder}", *more])


class Interrupted:
    """Sends a signal to this process while the loop is at a step."""

    def __init__(self, monkeypatch, step: int, number: int) -> None:
        told = TermMeter.step

        def tell(recorder, at, *news):
            told(recorder, at, *news)
            if at == step:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(TermMeter, "step", tell)


ACCUMULATED = ["recipe.average_decay=0.9", "engine=parallel", "accumulation=2"]


@pytest.mark.parametrize(
    ("number", "options"),
    [(signal.SIGTERM, ["dataset.binarize=true"]), (signal.SIGINT, ACCUMULATED)],
    ids=["SIGTERM, local, binary", "SIGINT, accumulated, averaged"],
)
def test_a_signal_ends_the_step_and_the_same_command_goes_on_bit_for_bit(tmp_path, monkeypatch, capsys, number, options):
    assert train(tmp_path / "calm", *options) == 0
    with monkeypatch.context() as patch:
        Interrupted(patch, 13, number)  # in the middle of an epoch
        assert train(tmp_path / "run", *options) == cli.EXIT_STOPPED
    assert "stopped after step 13; the same command resumes the run" in capsys.readouterr().err
    assert unfinished(tmp_path / "run")
    assert train(tmp_path / "run", *options) == 0
    assert "resuming at step 13 of 30" in capsys.readouterr().err
    expected, found = final(tmp_path / "calm"), final(tmp_path / "run")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    records = [runs.read_metrics(tmp_path / name / "metrics.jsonl") for name in ("calm", "run")]
    for record in (*records[0], *records[1]):
        del record["seconds"]
    assert records[0] == records[1] and len(records[0]) == 3


def test_a_finished_run_is_not_taken_up_again(tmp_path):
    assert train(tmp_path / "run") == 0
    assert train(tmp_path / "run") == cli.EXIT_BAD_INPUT


def test_a_run_goes_on_under_another_engine(tmp_path, monkeypatch):
    assert train(tmp_path / "calm") == 0
    with monkeypatch.context() as patch:
        Interrupted(patch, 13, signal.SIGTERM)
        assert train(tmp_path / "run", "engine=parallel", "accumulation=2") == cli.EXIT_STOPPED
    assert train(tmp_path / "run") == 0
    expected, found = final(tmp_path / "calm"), final(tmp_path / "run")
    assert all(torch.allclose(found[name], value, rtol=1e-4, atol=1e-5) for name, value in expected.items())


def test_a_second_interrupt_ends_a_process_at_once():
    code = "import os, signal, time\nfrom ddvi_fast.engine.signals import StopRequest\nwith StopRequest() as stop:\n" + "".join(
        f"    os.kill(os.getpid(), signal.SIGINT)\n    print(stop.asked, {number}, flush=True)\n" for number in range(2)
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=world.PROJECT, capture_output=True, text=True, timeout=3600)
    assert ended.stdout.split() == ["True", "0"] and ended.returncode == -signal.SIGINT


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_folder_has_one_writer(tmp_path):
    with locked(tmp_path / "run"):
        code = f"from ddvi_fast._files import locked\nwith locked({str(tmp_path / 'run')!r}): print('in')"
        second = subprocess.run([sys.executable, "-c", code], cwd=world.PROJECT, capture_output=True, text=True, timeout=3600)
        assert f"one held by process {os.getpid()} on " in second.stderr.splitlines()[-1] and second.stdout == ""
    with locked(tmp_path / "run"):
        RunFolder.create(tmp_path / "run", {})
    with pytest.raises(InputError, match="which is a file"), locked(tmp_path / "run" / "config.json"):
        pass


def test_a_start_that_was_cut_short_leaves_room(tmp_path):
    (tmp_path / "run" / "figures").mkdir(parents=True)
    (tmp_path / "run" / ".environment.json.partial").write_text("{")
    assert RunFolder.create(tmp_path / "run", {"seed": 1}).config == {"seed": 1}


# Kinds of loss: time limit in seconds, how many of two processes end by themselves, and what they say.
LOST = {
    "stopped": (1.5, 1, r"sent no heartbeat for 0\.9 s"),
    "killed": (600, 1, r"sent no heartbeat for 3 s"),  # it breaks the collective, and a few missing heartbeats suffice
    "failed": (10, 1, r"ended with an error: the third shelf is empty"),
    "asleep": (15, 2, r"did not reach the collective within 15 s \(at \S*workers\.py:\d+ in oversleep\); aborting"),
}


@pytest.fixture(scope="module")
def lost(tmp_path_factory) -> dict[str, dict]:
    """What became of the processes of each kind; they run at the same time, because they wait most of it."""
    folder = tmp_path_factory.mktemp("lost")
    settings = {"cases": {kind: limit for kind, (limit, _, _) in LOST.items()}, "ended": {kind: ended for kind, (_, ended, _) in LOST.items()}}
    (process,) = world.start(["-m", "tests.engine.workers", "lose_peers", json.dumps({**settings, "folder": str(folder)})], 1, start_new_session=True)
    try:
        error = process.communicate(timeout=world.LIMIT)[1]
    finally:
        if process.returncode != 0:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, error
    return json.loads((folder / "found").read_text())


@pytest.mark.parametrize("kind", LOST)
def test_a_peer_that_is_lost_ends_the_run_and_is_named(lost, kind):
    found, (_, ended, words) = lost[kind], LOST[kind]
    assert found["codes"] == [EXIT_PEER_LOST] * ended
    for error in found["errors"]:
        assert re.search(rf"rank 1 \(process {found['lost']} on \S+\) {words}", error), error


@pytest.fixture
def spoilt(tmp_path, monkeypatch, capsys):
    """A run with NaN in one training example, which fails, and what it said."""
    load = runs.load_dataset

    def load_spoilt(config):
        dataset = load(config)
        dataset = dataclasses.replace(dataset, train_inputs=dataset.train_inputs.float(), test_inputs=dataset.test_inputs.float())
        dataset.train_inputs[SPOILT] = float("nan")
        return dataset

    with monkeypatch.context() as patch:
        patch.setattr(runs, "load_dataset", load_spoilt)
        # Initial weights would be matched to the data, NaN included.
        assert train(tmp_path / "run", "recipe.match_prior=false") == cli.EXIT_NON_FINITE
    return tmp_path / "run", capsys.readouterr().err


def test_a_step_that_fails_is_kept_and_replayed(spoilt, capsys):
    folder, error = spoilt
    assert f"at training example {SPOILT}; ddvi-fast train --replay {folder / 'failed-step'} shows it" in error and error.count("\n") == 1
    kept = failed_step.read(folder / "failed-step")
    assert kept.state["examples"] == [SPOILT] and bool(kept.batch.flatten(1).isnan().all(1)[kept.indices == SPOILT].all())
    found = replay(folder / "failed-step", runs.load_dataset(compose(QUICK)))
    assert (found.names, found.examples, found.step) == (kept.state["names"], [SPOILT], kept.state["step"])
    assert cli.main(["train", "--replay", str(folder / "failed-step")]) == 0
    assert f"training examples: {SPOILT}" in capsys.readouterr().out


def test_a_gradient_that_is_not_finite_is_named():
    class Root(Objective):
        """A finite loss, the square root at zero, whose gradient is infinite."""

        def __init__(self):
            super().__init__()
            self.good, self.bad = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.zeros(2))

        def updates(self, x, progress, draws):
            yield Update("wake", lambda: Terms({"root": self.good.square() + self.bad.sqrt()}, {"root": 1.0}))

    objective = Root()
    with pytest.raises(NonFinite, match=r"^gradient: expected a finite number, got NaN or infinity in bad \(") as caught:
        Engine(objective, Optimisation()).run(torch.ones(2, 1), Progress(0, 1), Draws(0))
    assert caught.value.names == ["bad"] and torch.equal(objective.good, torch.ones(2))
