"""Generated damage of every file of a run and of a model: each command that reads it ends in one line, and a resumed run goes on where it can."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import resource
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from ddvi_fast import DDVI, InputError, _files, cli
from ddvi_fast.engine.run_folder import read_evaluation
from ddvi_fast.report import sections
from ddvi_fast.training import exporting
from ddvi_fast.training import run as runs

SETTINGS = [
    "method=vae", "prior=gaussian", "epochs=3", "limit=64", "recipe.batch_size=64", "dataset.encoder.hidden=[4]", "dataset.decoder.hidden=[4]",
    "checkpoint_steps=1", "progress=off", "tensorboard=false", "figures=false", "evaluation.evidence=false", "evaluation.elbo_samples=2",
    "evaluation.iwae_samples=2",
    "evaluation.prior_samples=50", "evaluation.limit=20",
]  # fmt: skip
FINAL = "checkpoints/final"
READ = ("config.json", "environment.json", "evaluation.json", "metrics.jsonl", f"{FINAL}/weights.safetensors", f"{FINAL}/state.json")
ODD = (None, [], {}, "text", -1, 1.5, 10**30, True, [[]], {"a": None})


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run, beside one whose step was not finite."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(["train", *SETTINGS, f"run_dir={folder}"]) == 0
    diverges = ["recipe.lr=1e30", "recipe.max_norm=null", f"run_dir={folder.with_name('diverged')}"]
    assert cli.main(["train", *SETTINGS, *diverges]) == cli.EXIT_NON_FINITE
    return folder


@pytest.fixture
def readers_only(monkeypatch) -> None:
    """What is computed once everything has been read takes no time."""
    monkeypatch.setattr(runs, "evaluate", lambda *_: {"elbo": -1.0})
    monkeypatch.setattr(exporting, "export", SimpleNamespace(sampler=lambda *_, **__: None, save=lambda program, output, overwrite: output))
    for name, value in {"decompose": None, "split_of_gap": None, "timings": {}, "line_chart": "", "memory": {}}.items():
        monkeypatch.setattr(sections, name, lambda *_, value=value: value)


@pytest.fixture
def ends(capsys) -> Callable[..., tuple[int, str]]:
    """``ends(*arguments)``: exit code and standard error of a command, which are lines of our own."""

    def run(*arguments: object) -> tuple[int, str]:
        code = cli.main([*map(str, arguments)])
        error = capsys.readouterr().err
        assert all(line.startswith("ddvi-fast: ") for line in error.splitlines()), error
        assert code in (0, cli.EXIT_BAD_INPUT, cli.EXIT_NON_FINITE), (code, error)
        if code == cli.EXIT_BAD_INPUT:
            assert len(error.splitlines()[-1]) < 1500 and ": expected" in error
        return code, error

    return run


def damaged(data: bytes, generator: random.Random) -> Iterator[bytes]:
    """Truncated and altered bytes."""
    yield from (b"", data[:-2], data[: len(data) // 2], data[: generator.randrange(len(data))], b"\0" * len(data), b"\xff\xfe" + data, data + data)
    for _ in range(3):
        flipped = bytearray(data)
        flipped[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        yield bytes(flipped)


def hostile(data: bytes, generator: random.Random) -> Iterator[bytes]:
    """JSON of another form: another value, or an entry that is missing or of another type."""
    yield from (b"[]", b"{}", b"null", b"NaN", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b'{"a": 1e999}', b'"\\ud800"')
    for _ in range(10):
        value = json.loads(data.partition(b"\n{")[0] if data.startswith(b'{"step"') else data)
        alter(value, generator)
        yield json.dumps(value).encode() + b"\n"


def alter(value: dict, generator: random.Random) -> None:
    """Remove or change one entry of nested mappings."""
    while True:
        key = generator.choice(list(value))
        if isinstance(value[key], dict) and value[key] and generator.random() < 0.7:
            value = value[key]
            continue
        if generator.random() < 0.4:
            del value[key]
        else:
            value[key] = generator.choice(ODD)
        return


def commands(folder: Path) -> dict[str, list[object]]:
    return {
        "evaluate": ["evaluate", folder, "--overwrite"],
        "report": ["report", folder, "--output", folder / "report.html", "--overwrite"],
        "export": ["export", folder, "--output", folder / "x.pt2", "--overwrite"],
    }


@pytest.mark.parametrize("name", READ)
def test_every_reader_of_a_damaged_file_ends_in_one_line(finished, tmp_path, name, readers_only, ends):
    generator, whole = random.Random(name), (finished / name).read_bytes()
    cases = [*damaged(whole, generator), *(hostile(whole, generator) if name.endswith(("json", "jsonl")) else ())]
    folder = shutil.copytree(finished, tmp_path / "run")
    refused = 0
    for number, data in enumerate(cases):
        (folder / name).write_bytes(data)
        for command, arguments in commands(folder).items():
            if name == "evaluation.json" and command != "report":
                continue
            code, _ = ends(*arguments)
            refused += code == cli.EXIT_BAD_INPUT
            if FINAL in name and command != "report" and data != whole:
                assert code == cli.EXIT_BAD_INPUT, (command, number)
            (folder / name).write_bytes(data)
    assert refused >= 5


@pytest.mark.parametrize("name", ["config.json", "environment.json", "evaluation.json", "metrics.jsonl", "state.json", "weights.safetensors"])
def test_a_resumed_run_goes_on_or_says_why_not(finished, tmp_path, name, readers_only, ends):
    generator = random.Random(name)
    places = sorted((finished / "checkpoints").glob(f"step-*/{name}")) or [finished / name]
    where = places[-1].relative_to(finished)
    for data in [*damaged(places[-1].read_bytes(), generator), *(hostile(places[-1].read_bytes(), generator) if "json" in name else ())]:
        folder = shutil.copytree(finished, tmp_path / "run")
        (folder / "evaluation.json").unlink()
        (folder / where).write_bytes(data)
        code, error = ends("train", *SETTINGS, f"run_dir={folder}")
        if name in ("state.json", "weights.safetensors", "metrics.jsonl"):
            told = "falling back" in error or name == "metrics.jsonl" or data == places[-1].read_bytes()
            assert code == 0 and told, error
            assert read_evaluation(folder)["elbo"] == -1.0
            assert (folder / FINAL / "weights.safetensors").read_bytes() == (finished / FINAL / "weights.safetensors").read_bytes()
        if name == "evaluation.json" and code == 0:
            assert read_evaluation(folder)["elbo"] == -1.0
        shutil.rmtree(folder)


def signed(path: Path, state: dict) -> None:
    """Write another state into a checkpoint, with its checksum."""
    envelope = json.loads((path / "state.json").read_text())
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    (path / "state.json").write_text(json.dumps({**envelope, "state": state, "state_sha256": digest}))


def test_states_that_are_signed_and_wrong_are_refused(finished, tmp_path, readers_only, ends):
    generator = random.Random(5)
    for place in (f"run/{FINAL}", "run/checkpoints/step-00000003", "diverged/failed-step"):
        state = json.loads((finished.parent / place / "state.json").read_text())["state"]
        for key in [*state] * 2:
            shutil.copytree(finished.parent, tmp_path / "copy")
            changed = {name: value for name, value in state.items() if name != key}
            if generator.random() < 0.6:
                changed[key] = generator.choice(ODD)
            signed(tmp_path / "copy" / place, changed)
            if "step-" in place:
                (tmp_path / "copy/run/evaluation.json").unlink()
                ends("train", *SETTINGS, f"run_dir={tmp_path / 'copy/run'}")
            elif "failed" in place:
                ends("train", "--replay", tmp_path / "copy" / place)
            else:
                ends("evaluate", tmp_path / "copy/run", "--overwrite")
            shutil.rmtree(tmp_path / "copy")


def signed_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Write other tensors into a checkpoint, with their checksum."""
    data = safetensors.torch.save(change(safetensors.torch.load((path / "weights.safetensors").read_bytes())))
    (path / "weights.safetensors").write_bytes(data)
    envelope = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**envelope, "weights_sha256": hashlib.sha256(data).hexdigest()}))


def nan_in(part: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {
        name: value * torch.nan if name.startswith(part) and value.is_floating_point() else value for name, value in tensors.items()
    }


def without(part: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name: value for name, value in tensors.items() if not name.startswith(part)}


OTHER_TENSORS = {
    "NaN in the optimizer's state": (nan_in("adam/"), "expected numbers, got NaN in adam/"),
    "NaN in the weights": (nan_in("weights/model"), "expected numbers, got NaN in weights/model"),
    "no optimizer's state": (without("adam/"), "expected the optimizer's state after 2 steps, got no state of it"),
    "no weights of the model": (without("weights/model"), "got none for model.decoder"),
    "other shapes": (lambda tensors: {name: value[..., :1].contiguous() if value.ndim == 2 else value for name, value in tensors.items()}, "shape"),
    "another type": (lambda tensors: {name: value.double() for name, value in tensors.items()}, "float64"),
}


@pytest.mark.parametrize("name", OTHER_TENSORS)
def test_a_checkpoint_with_other_tensors_is_refused_or_passed_over(finished, tmp_path, name, readers_only, ends):
    """Its checksums fit: nothing else tells that it is not the run's."""
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "evaluation.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "step-00000003")
    change, words = OTHER_TENSORS[name]
    signed_weights(folder / "checkpoints" / "step-00000002", change)
    code, error = ends("train", *SETTINGS, f"run_dir={folder}")
    assert words in error and code == (0 if "falling back" in error else cli.EXIT_BAD_INPUT)
    assert (folder / FINAL / "weights.safetensors").read_bytes() == (finished / FINAL / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("step", [-1, 4, 10**9])
def test_a_checkpoint_of_a_step_that_the_run_does_not_have_is_refused(finished, tmp_path, step, readers_only, ends):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "evaluation.json").unlink()
    place = folder / "checkpoints" / "step-00000003"
    signed(place, {**json.loads((place / "state.json").read_text())["state"], "step": step})
    code, error = ends("train", *SETTINGS, f"run_dir={folder}")
    assert code == cli.EXIT_BAD_INPUT and f"checkpoint, step: expected 0 to 3, the steps of the run, got {step}" in error


def test_final_weights_with_nan_are_refused(finished, tmp_path, ends):
    folder = shutil.copytree(finished, tmp_path / "run")
    signed_weights(folder / FINAL, nan_in("posterior."))
    for command in ("evaluate", "export"):
        code, error = ends(*commands(folder)[command])
        assert code == cli.EXIT_BAD_INPUT and "checkpoint: expected numbers, got NaN in posterior.encoder" in error
    assert ends(*commands(folder)["report"])[0] == 0
    assert "got NaN in posterior.encoder" in (folder / "report.html").read_text()


@pytest.mark.parametrize("kind", ["folder", "dangling link"])
@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.jsonl", "state.json", "weights.safetensors"])
def test_a_folder_or_a_dangling_link_in_place_of_a_file(finished, tmp_path, name, kind, readers_only, ends):
    """A checkpoint is passed over; the run is the same at the end, or is left as it is."""
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "evaluation.json").unlink()
    path = next((folder / "checkpoints").glob(f"step-00000003/{name}"), folder / name)
    path.unlink()
    path.mkdir() if kind == "folder" else path.symlink_to(tmp_path / "nowhere" / "file")
    code = cli.main(["train", *SETTINGS, f"run_dir={folder}"])
    assert code == (0 if "step" in path.parent.name else cli.EXIT_NOT_WRITTEN if (name, kind) == ("metrics.jsonl", "dangling link") else 2)
    assert (folder / FINAL / "weights.safetensors").read_bytes() == (finished / FINAL / "weights.safetensors").read_bytes()


def test_evaluation_is_refused_before_the_work_if_it_cannot_be_written(finished, tmp_path, monkeypatch, ends):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "evaluation.json").unlink()
    (folder / "evaluation.json").mkdir()
    monkeypatch.setattr(runs, "evaluate", lambda *_: pytest.fail("the work was done"))
    code, error = ends(*commands(folder)["evaluate"])
    assert code == cli.EXIT_BAD_INPUT and "evaluation.json: expected a file, got a folder" in error


def test_a_damaged_failed_step_ends_in_one_line(finished, tmp_path, ends):
    generator, source = random.Random(3), finished.parent / "diverged" / "failed-step"
    for name in ("state.json", "weights.safetensors"):
        whole = (source / name).read_bytes()
        for data in [*damaged(whole, generator), *(hostile(whole, generator) if name == "state.json" else ())]:
            folder = shutil.copytree(source, tmp_path / "step")
            (folder / name).write_bytes(data)
            code, _ = ends("train", "--replay", folder)
            assert code == cli.EXIT_BAD_INPUT or json.loads(data) == json.loads(whole)
            shutil.rmtree(folder)
    assert ends("train", "--replay", source)[0] == 0


def test_a_damaged_model_ends_in_one_line(tmp_path):
    model = DDVI(epochs=1, hidden=(4,), num_steps=2, n_samples=2).fit(np.random.default_rng(0).normal(size=(20, 3)))
    path, generator = model.save(tmp_path / "model"), random.Random(4)
    state = json.loads((path / "state.json").read_text())["state"]

    def load() -> None:
        try:
            DDVI.load(path)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500

    for name in ("state.json", "weights.safetensors"):
        whole = (path / name).read_bytes()
        for data in [*damaged(whole, generator), *(hostile(whole, generator) if name == "state.json" else ())]:
            (path / name).write_bytes(data)
            load()
        (path / name).write_bytes(whole)
    for part in [*[None] * 30, *["parameters"] * 40, *["config"] * 40]:
        changed = json.loads(json.dumps(state))
        alter(changed if part is None else changed[part], generator)
        signed(path, changed)
        load()


@pytest.mark.parametrize("name", ["dataset", "prior", "method", "recipe", "evaluation", "method.chain", "recipe.kl", "dataset.encoder"])
def test_a_configuration_without_a_group_is_refused(finished, tmp_path, name, ends):
    folder = shutil.copytree(finished, tmp_path / "run")
    config = place = json.loads((folder / "config.json").read_text())
    *above, last = name.split(".")
    for key in above:
        place = place[key]
    del place[last]
    (folder / "config.json").write_text(json.dumps(config))
    code, error = ends("evaluate", folder, "--overwrite")
    assert code == cli.EXIT_BAD_INPUT and f"one without {name}" in error


def test_a_configuration_without_a_setting_is_told(finished, tmp_path, readers_only, ends):
    folder = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    del config["recipe"]["prior_blur"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="config.json does not state recipe.prior_blur: the defaults of this version are used"):
        assert ends("evaluate", folder, "--overwrite") == (0, "")
    with sys.modules["ddvi_fast.cli.main"]._one_line_warnings():
        assert warnings.formatwarning("two\nlines", UserWarning, "file", 1) == "ddvi-fast: two lines\n"


def test_damaged_lines_of_the_log_are_dropped_and_told(finished, tmp_path, readers_only, ends):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "evaluation.json").unlink()
    first, *others = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([first[:20], first, "[]", '{"step": "3"}', *others]) + "\n")
    code, error = ends("train", *SETTINGS, f"run_dir={folder}")
    assert code == 0 and "metrics.jsonl: 3 damaged lines dropped (1, 3, 4)" in error
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """A disk on which no file can be larger than `room` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 60, 600])
def test_a_full_disk_ends_every_command_with_one_line_and_code_74(finished, tmp_path, room, readers_only, capsys, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "run")
    model = DDVI(epochs=1, hidden=(4,), num_steps=2).fit(np.zeros((8, 2)) + np.arange(8)[:, None])
    store = tmp_path / "store"
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    monkeypatch.setattr(runs, "evaluate", lambda *_: {f"elbo{number}": -1.0 for number in range(100)})
    monkeypatch.setattr(exporting.export, "save", lambda program, output, overwrite: _files.write_text(output, "0" * 1000))
    once = [*(setting for setting in SETTINGS if setting != "checkpoint_steps=1"), "checkpoint_steps=null"]
    wanted = [
        ["evaluate", folder, "--overwrite"],
        ["train", *SETTINGS, f"run_dir={tmp_path / 'new'}"],
        ["train", *once, f"run_dir={tmp_path / 'other'}"],
        ["report", folder, "--output", tmp_path / "report.html"],
        ["export", folder],
    ]
    for arguments in wanted:
        with full_disk(room):
            code = cli.main([*map(str, arguments)])
        error = [arguments[0], *capsys.readouterr().err.splitlines()]
        assert code == cli.EXIT_NOT_WRITTEN, (arguments[0], code, error)
        assert "cannot be written: File too large" in error[-1] and str(tmp_path) in error[-1] and ".partial" not in error[-1], error
    with full_disk(room), pytest.raises(OSError, match="File too large") as caught:
        model.save(tmp_path / "model")
    assert caught.value.errno == errno.EFBIG and str(tmp_path / "model") in str(caught.value) and not store.exists()
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in kept} == kept
    assert not list(tmp_path.rglob("*partial*")), "nothing is left over"
    for again, settings in (("new", SETTINGS), ("other", once)):
        assert cli.main(["train", *settings, f"run_dir={tmp_path / again}"]) == 0
