"""A run folder is made once, opened often, and never taken from another run or another purpose."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml

from ddvi_fast import InputError
from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.run_folder import RunFolder, environment

CONFIG = {"dataset": "digits", "prior": {"name": "pinwheel", "arms": 10}, "lr": 1e-3, "seeds": [0, 1], "note": None}


def _fill(run: RunFolder) -> None:
    run.metrics.write_text('{"step": 1}\n')
    (run.figures / "latents.png").write_bytes(b"picture")
    (run.tensorboard / "events.out.tfevents.1").write_bytes(b"events")
    checkpoint.save(run.checkpoints / "last", {"w": torch.ones(2)}, {})


def _contents(folder) -> dict:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_is_written_can_be_read(tmp_path):
    run = RunFolder.create(tmp_path / "a" / "run", CONFIG)
    assert RunFolder.open(tmp_path / "a" / "run") == run
    assert run.config == CONFIG == yaml.safe_load((run.path / "config.yaml").read_text())
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__ and environment["versions"]["python"]
    assert environment["machine"]["cores"] >= 1 and environment["time"]
    assert run.figures.is_dir() and run.checkpoints.is_dir() and run.tensorboard.is_dir() and run.metrics.parent == run.path


@pytest.mark.parametrize("config", [CONFIG, {**CONFIG, "lr": 2e-3}])
def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path, config):
    _fill(RunFolder.create(tmp_path / "run", CONFIG))
    before = _contents(tmp_path)
    with pytest.raises(InputError, match=r"holds another run.*overwrite=true"):
        RunFolder.create(tmp_path / "run", config)
    assert _contents(tmp_path) == before


def test_overwrite_removes_what_the_run_owns_and_nothing_else(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG)
    _fill(run)
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "state.json").write_text("not ours")
    (run.checkpoints / "linked").symlink_to(outside / "deep")
    (run.path / "notes.txt").write_text("mine")
    (run.figures / "table.csv").write_text("mine")
    RunFolder.create(run.path, {**CONFIG, "lr": 0.5}, overwrite=True)
    assert RunFolder.open(run.path).config["lr"] == 0.5
    left = {name for name in _contents(run.path) if not name.startswith("checkpoints/linked")}
    assert left == {"config.json", "config.yaml", "environment.json", "notes.txt", "figures/table.csv"}
    assert (outside / "deep" / "state.json").read_text() == "not ours"


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
@pytest.mark.parametrize("name", ["thesis.tex", "config.json", "environment.json"])
def test_a_folder_of_something_else_is_never_touched(tmp_path, options, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="a folder with other files"):
        RunFolder.create(tmp_path, CONFIG, **options)
    assert _contents(tmp_path) == {name: b"{}"}


def test_resume_continues_the_same_run_and_names_what_differs(tmp_path):
    first = RunFolder.create(tmp_path / "run", {**CONFIG, "resume": True, "overwrite": False}, resume=True)  # none stands: it starts
    _fill(first)
    again = RunFolder.create(tmp_path / "run", {**CONFIG, "resume": False}, resume=True)
    assert again == first and again.metrics.read_text() == '{"step": 1}\n'
    assert len(json.loads((again.path / "environment.json").read_text())["resumed"]) == 1
    with pytest.raises(InputError, match=r'prior\.name="square" \(was "pinwheel"\)'):
        RunFolder.create(tmp_path / "run", {**CONFIG, "prior": {"name": "square", "arms": 10}}, resume=True)
    with pytest.raises(InputError, match=r"extra=1 \(was null\)"):
        RunFolder.create(tmp_path / "run", {**CONFIG, "extra": 1}, resume=True)
    with pytest.raises(InputError, match=r"overwrite or resume, got .both"):
        RunFolder.create(tmp_path / "run", CONFIG, resume=True, overwrite=True)


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("name", ["evaluation.json", "metrics.jsonl", "config.yaml", "tracker.json"])
def test_a_folder_where_a_file_is_to_be_written_is_told_before_the_work(tmp_path, options, name):
    run = RunFolder.create(tmp_path / "run", CONFIG)
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).mkdir()
    with pytest.raises(InputError, match=rf"run/{name}: expected a file, got a folder"):
        RunFolder.create(run.path, CONFIG, **options)
    assert (run.path / name).is_dir() and (run.path / "config.json").exists()


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/final", "figures", "tensorboard", "failed-step", "checkpoints/features"])
def test_a_file_where_a_folder_is_to_be_made_is_told_before_the_work(tmp_path, options, name):
    run = RunFolder.create(tmp_path / "run", CONFIG)
    if (run.path / name).is_dir():
        (run.path / name).rmdir()
    (run.path / name).write_text("a file")
    with pytest.raises(InputError, match=rf"run/{name}: expected a folder, got a file"):
        RunFolder.create(run.path, CONFIG, **options)
    assert (run.path / name).read_text() == "a file"


def test_a_folder_with_a_file_of_the_name_of_a_folder_is_foreign(tmp_path):
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(InputError, match="a folder with other files"):
        RunFolder.create(tmp_path, CONFIG)


def test_a_start_that_was_cut_short_can_be_resumed(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG)
    (run.path / "config.json").unlink()  # written last
    assert RunFolder.create(tmp_path / "run", CONFIG, resume=True).config == CONFIG
    assert RunFolder.open(tmp_path / "run").config == CONFIG


def test_open_says_in_one_line_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="which is missing"):
        RunFolder.open(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    for call in (RunFolder.open, lambda path: RunFolder.create(path, CONFIG)):
        with pytest.raises(InputError, match="which is a file"):
            call(tmp_path / "file")
    run = RunFolder.create(tmp_path / "run", CONFIG)
    (run.path / "config.json").write_text('{"dataset": ')
    with pytest.raises(InputError, match=r"config\.json: expected JSON") as caught:
        RunFolder.open(run.path)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_json_cannot_hold_makes_no_folder(tmp_path):
    with pytest.raises(InputError, match="config: expected plain values"):
        RunFolder.create(tmp_path / "run", {"lr": torch.ones(1)})
    assert not (tmp_path / "run").exists()


def test_a_command_is_named_without_the_folders_that_lead_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for program, named in ((tmp_path / "bench/soak.py", "bench/soak.py"), (tmp_path.parent / "bin/ddvi-fast", "ddvi-fast")):
        monkeypatch.setattr(sys, "argv", [str(program), "kills"])
        assert environment()["command"] == [named, "kills"]
