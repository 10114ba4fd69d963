"""Trackers get what the run's own record holds, under one name however often the run is continued, and never end the run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ddvi_fast import InputError, cli
from ddvi_fast.engine.logs import RunLog
from ddvi_fast.engine.trackers import ErrorTolerantTracker, open_tracker

SETTINGS = {"seed": 3, "prior": {"name": "square", "options": {}}}
SMALL = ["epochs=2", "limit=256", "progress=off", "tensorboard=false", "figures=false", "evaluation.iwae_samples=5", "evaluation.limit=32"]


class _Recorder:
    def __init__(self) -> None:
        self.records, self.figures, self.closed = [], {}, []

    def log(self, step, values):
        self.records.append((step, dict(values)))

    def summarise(self, figures):
        self.figures.update(figures)

    def close(self, failed=False):
        self.closed.append(failed)


def test_a_log_hands_every_record_on_and_closes(tmp_path):
    tracker = _Recorder()
    with RunLog(tmp_path, tensorboard=False, progress="off", tracker=tracker) as log:
        log.advance(1, phase="warm-up")
        log.log(2, epoch=1, phase="warm-up", terms={"loss": 1.5})
        log.log(4, epoch=2, phase="train", terms={"loss": 0.5, "kl": 2.0})
    assert tracker.records == [(2, {"epoch": 1, "loss/warm-up": 1.5}), (4, {"epoch": 2, "loss/train": 0.5, "kl/train": 2.0})]
    log.close()
    assert tracker.closed == [False]


def test_a_run_that_dies_is_told_to_have_failed(tmp_path):
    tracker = _Recorder()
    with pytest.raises(RuntimeError, match="died"), RunLog(tmp_path, tensorboard=False, progress="off", tracker=tracker):
        raise RuntimeError("died")
    assert tracker.closed == [True]


def test_a_tracker_that_breaks_does_not_end_the_run(capsys):
    broken = _Recorder()
    broken.log = lambda step, values: [][1]
    tracker = ErrorTolerantTracker(broken, "mlflow")
    for step in (1, 2):
        tracker.log(step, {"loss": 1.0})
    tracker.summarise({"elbo": 1.0})
    tracker.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "mlflow" in said and "IndexError" in said
    assert broken.figures == {} and broken.closed == []


def test_without_a_name_nothing_follows(tmp_path):
    assert open_tracker(None, tmp_path, SETTINGS) is None


@pytest.mark.parametrize(("name", "words"), [("wandb", "pip install wandb, or tracker=null"), ("mlflow", "pip install mlflow, or tracker=null")])
def test_a_library_that_is_not_there_is_named(tmp_path, monkeypatch, name, words):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=words):
        open_tracker(name, tmp_path, SETTINGS)


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(InputError, match="did you mean wandb"):
        open_tracker("wandbb", tmp_path, SETTINGS)


@pytest.fixture
def imitation(monkeypatch) -> list[SimpleNamespace]:
    """A module that stands for wandb, and the runs that it was asked for."""
    runs = []

    def init(**options):
        runs.append(SimpleNamespace(options=options, records=[], summary={}, codes=[]))
        run = runs[-1]
        run.log = lambda values, step: run.records.append((step, values))
        run.finish = lambda exit_code: run.codes.append(exit_code)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict))
    return runs


def test_weights_and_biases_is_asked_for_one_run_however_often_it_is_continued(tmp_path, imitation):
    folder = tmp_path / "mine"
    for step in (1, 2):
        tracker = open_tracker("wandb", folder, SETTINGS)
        tracker.log(step, {"loss/train": 0.5, "kl/train": math.nan})
        tracker.close(failed=step == 1)
    first, second = imitation
    assert first.options["id"] == second.options["id"] and first.options["name"] == "mine" and first.options["resume"] == "allow"
    assert first.options["config"] == {"seed": 3, "prior.name": "square"}
    assert (first.records, second.records) == ([(1, {"loss/train": 0.5})], [(2, {"loss/train": 0.5})])
    assert (first.codes, second.codes) == ([1], [0])
    open_tracker("wandb", tmp_path / "other", SETTINGS)
    assert imitation[2].options["id"] != first.options["id"]


def test_a_refusal_of_the_library_is_one_line(tmp_path, imitation, monkeypatch):
    def refuse(**options):
        raise RuntimeError("no account\nlog in")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(InputError, match="wandb to accept a run, got RuntimeError, no account log in"):
        open_tracker("wandb", tmp_path, SETTINGS)


def test_a_run_is_followed_from_training_to_evaluation_and_begins_anew_when_overwritten(tmp_path, imitation, capsys):
    command = ["train", f"run_dir={tmp_path / 'run'}", "tracker=wandb", *SMALL]
    assert cli.main(command) == 0
    trained, evaluated = imitation
    assert [record[1]["epoch"] for record in trained.records] == [1, 2] and trained.codes == [0]
    assert trained.options["config"]["prior.name"] == "pinwheel"
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert trained.records[1][1]["kl/train"] == metrics[1]["kl"]
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluated.options["id"] == trained.options["id"] and evaluated.summary == figures
    assert cli.main([*command, "overwrite=true"]) == 0
    assert imitation[2].options["id"] != trained.options["id"]


def test_wandb_itself_keeps_a_run_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (pip install wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tracker = open_tracker("wandb", tmp_path / "run", SETTINGS)
    tracker.log(1, {"loss/train": 0.5})
    tracker.summarise({"elbo": -3.0})
    tracker.close()
    name = json.loads((tmp_path / "run" / "tracker.json").read_text())["wandb"]
    (kept,) = (tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb")
    held = kept.read_bytes()
    assert all(text in held for text in (b"loss/train", b"elbo", b"prior.name", b"square"))


def test_mlflow_itself_keeps_figures_settings_and_state(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed (pip install mlflow)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "run"
    settings = {**SETTINGS, "many": {str(number): number for number in range(150)}}
    tracker = open_tracker("mlflow", folder, settings)
    for step in (1, 2):
        tracker.log(step, {"loss/train": 1.0 / step, "kl/train": math.inf})
    tracker.close(failed=True)
    client, run = mlflow.MlflowClient(), json.loads((folder / "tracker.json").read_text())["mlflow"]
    assert client.get_run(run).info.status == "FAILED"

    tracker = open_tracker("mlflow", folder, settings)  # goes on from step 1
    for step in (2, 3):
        tracker.log(step, {"loss/train": 1.0 / step})
    tracker.close()
    tracker = open_tracker("mlflow", folder, settings)
    tracker.summarise({"elbo": -3.0})
    tracker.close()
    kept = client.get_run(run)
    assert kept.info.status == "FINISHED" and kept.info.run_name == "run"
    assert kept.data.params["prior.name"] == "square" and kept.data.params["many.149"] == "149"
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run, "loss/train")] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert kept.data.metrics["elbo"] == -3.0 and "kl/train" not in kept.data.metrics
    assert len(list(Path(tmp_path / "store").glob("*/*/metrics"))) == 1
