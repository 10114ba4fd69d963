"""Every record can be parsed, a killed run can be continued, and what is asked for is shown or refused."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddvi_fast import InputError
from ddvi_fast.engine import progress
from ddvi_fast.engine.logs import RunLog, read_metrics


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _quiet(folder, **options) -> RunLog:
    return RunLog(folder, **{"tensorboard": False, "progress": "off", **options})


def test_records_are_strict_json_with_the_values_given(tmp_path):
    with _quiet(tmp_path) as log:
        log.log(1, epoch=0, phase="warm-up", terms={"loss": torch.tensor(1.5), "kl": 2})
        log.log(2, epoch=1, phase="joint", terms={"loss": float("nan"), "kl": torch.tensor(-math.inf), "elbo": -23.125})

    def refuse(name):
        raise AssertionError(name)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    assert records == read_metrics(tmp_path / "metrics.jsonl")
    assert {k: records[0][k] for k in ("step", "epoch", "phase", "loss", "kl")} == {"step": 1, "epoch": 0, "phase": "warm-up", "loss": 1.5, "kl": 2.0}
    assert "non_finite" not in records[0] and 0 <= records[0]["seconds"] <= records[1]["seconds"]
    assert records[1]["loss"] is None and records[1]["kl"] is None and records[1]["elbo"] == -23.125
    assert records[1]["non_finite"] == ["loss", "kl"]


def test_records_are_on_the_disk_when_the_run_dies(tmp_path):
    with pytest.raises(RuntimeError, match="died"), RunLog(tmp_path, progress="on", stream=_Terminal()) as log:
        log.log(1, epoch=0, phase="joint", terms={"loss": 1.0})
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
        raise RuntimeError("died")
    assert log._file.closed
    log.close()


def test_names_of_the_record_itself_are_refused(tmp_path):
    with _quiet(tmp_path) as log, pytest.raises(InputError, match="names other than step"):
        log.log(1, epoch=0, phase="joint", terms={"epoch": 1.0})


def test_a_run_is_continued_only_when_asked(tmp_path):
    with _quiet(tmp_path) as log:
        for step in (10, 20, 30):
            log.log(step, epoch=0, phase="joint", terms={"loss": step})
    records = read_metrics(tmp_path / "metrics.jsonl")
    records[1]["seconds"] = 500.0
    torn = "".join(json.dumps(record) + "\n" for record in records) + '{"step": 40, "lo'
    (tmp_path / "metrics.jsonl").write_text(torn)
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 30]
    with pytest.raises(InputError, match=r"without metrics\.jsonl"):
        _quiet(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == torn
    with _quiet(tmp_path, resume_from=20) as log:
        log.log(25, epoch=0, phase="joint", terms={"loss": 0.0})
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == [10, 20, 25]
    assert records[-1]["seconds"] >= 500.0


def test_metrics_that_are_none_are_named_by_line(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: expected a JSON object"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_tensorboard_holds_the_same_numbers(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLog(tmp_path, progress="off") as log:
        for step in (1, 2):
            log.log(step, epoch=0, phase="joint", terms={"loss": 0.5 * step})
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/joint")] == [(1, 0.5), (2, 1.0)]


def test_tensorboard_that_is_not_there_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard, or tensorboard=false"):
        RunLog(tmp_path / "run", progress="off")
    assert not (tmp_path / "run").exists()
    _quiet(tmp_path / "run").close()


def test_the_bar_shows_phase_count_rate_and_terms(tmp_path):
    stream = _Terminal()
    with RunLog(tmp_path, total_steps=40, tensorboard=False, stream=stream) as log:
        log.advance(20, phase="warm-up", terms={"loss": 1.25})
        log.advance(40, phase="joint")
    shown = stream.getvalue()
    assert all(part in shown for part in ("joint", "40/40", "steps/s", "loss 1.25"))


@pytest.mark.parametrize("columns", [70, 80, 200])
def test_the_bar_outlasts_the_terms_on_a_narrow_terminal(tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = _Terminal()
    with RunLog(tmp_path, total_steps=4000, tensorboard=False, stream=stream) as log:
        log.advance(1234, phase="train", terms={"reconstruction": 27.06, "kl": 94.4, "sleep": -27.75, "sleep_top": 4.3})
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).rstrip().splitlines()[-1].rpartition("\r")[2]
    assert len(last) <= columns and "1234/4000" in last and "━━━━" in last and "steps/s" in last
    assert ("sleep_top 4.3" in last) == (columns == 200)


LABELLED = """
import multiprocessing, sys
from ddvi_fast.engine.progress import display

class Terminal:
    def isatty(self): return True
    def write(self, text): sys.stdout.write(text)
    def flush(self): sys.stdout.flush()

def work():
    shown = display("auto", Terminal(), total=3, label="runs-a")
    shown.update(3, "train", {})
    shown.close()

if __name__ == "__main__":
    worker = multiprocessing.get_context("spawn").Process(target=work)
    worker.start(), worker.join()
    sys.exit(worker.exitcode)
"""


def test_processes_that_share_a_terminal_write_labelled_lines_instead_of_bars(tmp_path):
    (tmp_path / "several.py").write_text(LABELLED)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    ran = subprocess.run([sys.executable, "several.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=3600, check=True)
    assert ran.stdout.startswith("runs-a  train  step 3/3") and "\x1b" not in ran.stdout and ran.stdout.count("\n") == 1


def test_without_a_terminal_plain_lines_come_now_and_then(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with RunLog(tmp_path, total_steps=1000, tensorboard=False, stream=stream, interval=10.0) as log:
        for step in range(1, 26):
            clock[0] += 1.0
            log.advance(step, phase="joint", terms={"loss": step} if step % 5 == 0 else None)
    assert stream.getvalue().splitlines() == [
        "joint  step 10/1000  1 steps/s  0:16:30 left  loss 10",
        "joint  step 20/1000  1 steps/s  0:16:20 left  loss 20",
        "joint  step 25/1000  1 steps/s  0:16:15 left  loss 25",
    ]


def test_a_terminal_without_rich_gets_lines(monkeypatch):
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    stream = _Terminal()
    shown = progress.display("auto", stream, total=3)
    shown.update(3, "train", {"loss": 1.5})
    shown.close()
    assert stream.getvalue().startswith("train  step 3/3") and stream.getvalue().endswith("loss 1.5\n")


def test_off_is_silent_and_other_words_are_refused(tmp_path):
    stream = _Terminal()
    with _quiet(tmp_path, stream=stream) as log:
        log.log(1, epoch=0, phase="joint", terms={"loss": 1.0})
    assert stream.getvalue() == ""
    with pytest.raises(InputError, match="progress: expected one of auto, on, off"):
        RunLog(tmp_path / "other", progress="atuo")
