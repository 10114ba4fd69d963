"""Tests of runs side by side in one process: they have the results of runs one after the other, bit for bit."""

from __future__ import annotations

import functools
import json
import threading

import pytest
import torch

from ddvi_fast import data, use_backend
from ddvi_fast._files import locked
from ddvi_fast.config.compose import compose
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.run_folder import RunFolder
from ddvi_fast.engine.signals import Stopped, StopRequest
from ddvi_fast.training import engines, jobs, turns
from ddvi_fast.training.run import run
from tests.engine.recording import OperationRecording
from tests.pretend_device import DEVICE, PretendDevice

CPU = torch.device("cpu")
SMALL = (
    "dataset=digits", "limit=100", "recipe.batch_size=20", "progress=off", "tensorboard=false", "prior.resolution=20",
    "evaluation.limit=20", "evaluation.iwae_samples=2", "evaluation.elbo_samples=2", "evaluation.prior_samples=100", "figures=false",
    "dataset.encoder.hidden=[16]", "dataset.decoder.hidden=[16]", "method.chain.num_steps=2",
)  # fmt: skip
RUNS = (("method=ddvi", "seed=1"), ("method=vae", "prior=square"), ("method=ddvi", "seed=2", "checkpoint_steps=3"))


def settings(folder, *more, epochs=2):
    return [compose([*SMALL, *own, *more, f"epochs={epochs}", f"run_dir={folder / str(number)}"]) for number, own in enumerate(RUNS)]


def results(folder):
    """Weights, metrics without times, and the log of every run."""
    found = []
    for number in range(len(RUNS)):
        made = RunFolder.open(folder / str(number))
        metrics = json.loads((made.path / "evaluation.json").read_text())
        weights = sorted((path.name, path.read_bytes()) for path in (made.checkpoints / "final").rglob("*.safetensors"))
        lines = [{key: value for key, value in json.loads(line).items() if "second" not in key} for line in made.metrics.read_text().splitlines()]
        found.append((weights, {name: value for name, value in metrics.items() if "seconds" not in name}, lines))
        assert weights and lines
    return found


@pytest.mark.parametrize("capture", [False, True])
def test_runs_side_by_side_equal_runs_one_after_the_other(tmp_path, monkeypatch, capture):
    """Recorded steps, too: those of the first process are replayed on memory of their own."""
    monkeypatch.setattr(engines, "Engine", functools.partial(Engine, make_recording=OperationRecording))
    more = [f"capture={str(capture).lower()}", "device=cpu"]
    with use_backend("reference"):
        for config in settings(tmp_path / "alone", *more):
            run(config)
        switches = []
        monkeypatch.setattr(turns.TurnTaking, "after_step", counted(turns.TurnTaking.after_step, switches))
        made = dict(turns.in_turns(run, settings(tmp_path / "together", *more), 2, CPU))
    assert sorted(made) == [0, 1, 2] and results(tmp_path / "alone") == results(tmp_path / "together")
    assert len({name for name in switches}) == 2 and switches != sorted(switches), "the first two took turns"


def counted(function, calls):
    def called(*arguments):
        calls.append(threading.get_ident())
        return function(*arguments)

    return called


def test_runs_side_by_side_on_a_pretended_device(tmp_path, monkeypatch):
    """Each on a stream of its own, with the data on the device once."""
    loaded, streams, load = [], [], data.load
    monkeypatch.setattr(data, "load", lambda *arguments: loaded.append(arguments) or load(*arguments))
    device = PretendDevice()

    def on_stream(asked):
        streams.append(asked)
        return device

    monkeypatch.setattr(turns, "on_stream", on_stream)
    with use_backend("reference"):
        with PretendDevice():
            for config in settings(tmp_path / "alone", "device=cuda", "capture=false", epochs=1):
                run(config)
        loaded.clear()
        made = dict(jobs.side_by_side(run, settings(tmp_path / "together", "device=cuda", "capture=false", epochs=1), 3, "cuda"))
    assert sorted(made) == [0, 1, 2] and results(tmp_path / "alone") == results(tmp_path / "together")
    assert len(loaded) == 1 and [stream.type for stream in streams] == [DEVICE.type] * 3


def test_a_run_that_fails_ends_the_others(tmp_path):
    """Each after its step; its folder can be resumed, and is free."""
    first, second, _ = settings(tmp_path, "device=cpu", epochs=50)

    def work(config):
        if config.seed != first.seed:
            raise ValueError("broken")
        return run(config)

    with pytest.raises(ValueError, match="broken"):
        list(turns.in_turns(work, [first, second], 2, CPU))
    assert not (tmp_path / "0" / "evaluation.json").exists()
    with locked(tmp_path / "0"):
        pass
    assert turns.callbacks() == []


def test_a_signal_stops_every_run(tmp_path, monkeypatch):
    monkeypatch.setattr(StopRequest, "_asked", True, raising=False)
    monkeypatch.setattr(StopRequest, "__init__", lambda self: setattr(self, "_before", {}))
    with pytest.raises(Stopped, match="stopped after step 1;"):
        list(turns.in_turns(run, settings(tmp_path, "device=cpu"), 3, CPU))


def test_threads_work_one_at_a_time_in_the_order_in_which_they_came():
    order, line = [], turns.Turns()

    def work(number):
        for _ in range(3):
            with line.turn():
                order.append(number)
                order.append(number)

    with line.turn():
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert order[::2] == order[1::2] and sorted(order) == sorted([*range(4)] * 6)


def test_no_runs():
    assert list(turns.in_turns(run, [], None, CPU)) == []
