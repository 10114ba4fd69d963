"""Checkpoints survive crashes, notice damage, execute nothing, and put an optimiser back bit for bit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from ddvi_fast import InputError
from ddvi_fast.engine import checkpoint

pytestmark = pytest.mark.usefixtures("forked_generator")


OLD, NEW = {"w": torch.arange(6.0).reshape(2, 3)}, {"w": torch.ones(2, 3)}


def test_everything_comes_back_with_its_type(tmp_path):
    tensors = {
        "half": torch.randn(4, 3).bfloat16(),
        "turned": torch.arange(12.0).reshape(3, 4).T,
        "count": torch.tensor(7),
        "flag": torch.tensor([True, False]),
        "none": torch.empty(0, 5, dtype=torch.float64),
    }
    state = {"step": 12, "best": -23.456789012345678, "names": ["a", "ü"], "nothing": None}
    checkpoint.save(tmp_path / "deep" / "last", tensors, state)
    loaded, found = checkpoint.load(tmp_path / "deep" / "last")
    assert found == state and loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype and torch.equal(loaded[name], value)


@pytest.mark.parametrize("can_link", [True, False])
def test_a_second_name_outlives_the_first(tmp_path, monkeypatch, can_link):
    """And costs no second writing, where the file system has links."""
    if not can_link:
        monkeypatch.setattr(os, "link", lambda *arguments: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    checkpoint.save(tmp_path / "best", OLD, {"step": 1})
    checkpoint.save(tmp_path / "step-2", NEW, {"step": 2})
    checkpoint.link(tmp_path / "step-2", tmp_path / "best")
    files = [tmp_path / name / checkpoint.WEIGHTS for name in ("step-2", "best")]
    assert os.path.samefile(*files) == can_link
    checkpoint.save(tmp_path / "step-2", OLD, {"step": 3})
    tensors, state = checkpoint.load(tmp_path / "best")
    assert torch.equal(tensors["w"], NEW["w"]) and state == {"step": 2}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["best", "step-2"]


def test_tensors_that_share_memory_are_saved_each(tmp_path):
    whole = torch.arange(8.0)
    checkpoint.save(tmp_path / "c", {"whole": whole, "part": whole[2:4]}, {})
    loaded, _ = checkpoint.load(tmp_path / "c")
    assert torch.equal(loaded["whole"], whole) and torch.equal(loaded["part"], whole[2:4])


@pytest.mark.parametrize(("call", "nth"), [("write_tensors", 1), ("write_synced", 1), *((c, n) for c in ("sync_path", "rename") for n in (1, 2))])
def test_a_crash_at_any_point_leaves_a_whole_checkpoint(tmp_path, monkeypatch, call, nth):
    path = tmp_path / "last"
    checkpoint.save(path, OLD, {"step": 1})
    owner = Path if call == "rename" else checkpoint
    real, calls = getattr(owner, call), []

    def crash(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, call, crash)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(path, NEW, {"step": 2})
    tensors, state = checkpoint.load(path)
    assert state["step"] in (1, 2)
    assert torch.equal(tensors["w"], (OLD if state["step"] == 1 else NEW)["w"])
    if call != "sync_path":
        assert state["step"] == 1
    checkpoint.save(path, NEW, {"step": 3})
    assert checkpoint.load(path)[1] == {"step": 3}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["last"]


def test_a_half_written_file_leaves_the_old_one(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "last", OLD, {"step": 1})

    def half(path, tensors):
        path.write_bytes(b"the first half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", half)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path / "last", NEW, {"step": 2})
    tensors, state = checkpoint.load(tmp_path / "last")
    assert state == {"step": 1} and torch.equal(tensors["w"], OLD["w"])


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.STATE])
def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path, name):
    checkpoint.save(tmp_path / "c", OLD, {"step": 1, "lr": 1e-3, "phase": "joint"})
    file = tmp_path / "c" / name
    good = file.read_bytes()
    for offset in range(len(good)):
        bad = bytearray(good)
        bad[offset] ^= 1 << offset % 8
        file.write_bytes(bytes(bad))
        with pytest.raises(InputError, match=r"altered|expected format"):
            checkpoint.load(tmp_path / "c")
    for length in range(0, len(good) - 1, 7):  # all but the final newline
        file.write_bytes(good[:length])
        with pytest.raises(InputError, match=name):
            checkpoint.load(tmp_path / "c")
    file.write_bytes(good)
    assert checkpoint.load(tmp_path / "c")[1]["step"] == 1


class _Trap:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_malicious_pickle_executes_nothing(tmp_path):
    sprung = tmp_path / "sprung"
    poison = pickle.dumps(_Trap(str(sprung)))
    checkpoint.save(tmp_path / "c", OLD, {})
    (tmp_path / "c" / checkpoint.WEIGHTS).write_bytes(poison)
    envelope = json.loads((tmp_path / "c" / checkpoint.STATE).read_text())
    envelope["weights_sha256"] = hashlib.sha256(poison).hexdigest()  # the attacker signs as well
    (tmp_path / "c" / checkpoint.STATE).write_text(json.dumps(envelope))
    with pytest.raises(InputError, match="expected a safetensors file"):
        checkpoint.load(tmp_path / "c")
    (tmp_path / "c" / checkpoint.STATE).write_bytes(poison)
    with pytest.raises(InputError, match="expected JSON"):
        checkpoint.load(tmp_path / "c")
    (tmp_path / "model.pt").write_bytes(poison)
    with pytest.raises(InputError, match="expected a checkpoint folder"):
        checkpoint.load(tmp_path / "model.pt")
    assert not sprung.exists()
    pickle.loads(poison)
    assert sprung.exists()  # the trap does work


def test_what_is_missing_is_named_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no such folder") as caught:
        checkpoint.load(tmp_path / "none")
    assert str(tmp_path / "none") in str(caught.value) and "\n" not in str(caught.value)
    checkpoint.save(tmp_path / "c", OLD, {})
    (tmp_path / "c" / checkpoint.WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"weights\.safetensors: expected a readable file, got No such file"):
        checkpoint.load(tmp_path / "c")


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="of another kind"):
        checkpoint.save(tmp_path, OLD, {})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_state_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(InputError, match="state: expected what JSON can hold"):
        checkpoint.save(tmp_path / "c", OLD, {"best": value})
    assert not any(tmp_path.iterdir())


def test_modules_round_trip_and_say_what_does_not_fit():
    encoder, decoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.Linear(4, 3)
    tensors = checkpoint.module_tensors({"encoder": encoder, "decoder": decoder})
    assert {"encoder.0.weight", "encoder.1.running_mean", "decoder.bias"} < tensors.keys()
    saved = {name: value.clone() for name, value in tensors.items()}
    other = nn.Linear(4, 3)
    before = other.weight
    checkpoint.load_modules({**saved, "adam.state.0.step": torch.tensor(1.0)}, {"decoder": other})
    assert torch.equal(other.weight, decoder.weight) and other.weight is before

    with pytest.raises(InputError, match=r"got none for decoder\.bias"):
        checkpoint.load_modules({"decoder.weight": saved["decoder.weight"]}, {"decoder": other})
    with pytest.raises(InputError, match=r"unexpected decoder\.extra"):
        checkpoint.load_modules({**saved, "decoder.extra": torch.zeros(1)}, {"decoder": other})
    untouched = other.weight.detach().clone()
    wrong = {"decoder.weight": torch.zeros(3, 4), "decoder.bias": torch.zeros(5)}
    with pytest.raises(InputError, match=r"decoder\.bias: expected a float32 tensor of shape \[3\], got .*\[5\]"):
        checkpoint.load_modules(wrong, {"decoder": other})
    with pytest.raises(InputError, match="float64"):
        checkpoint.load_modules({"decoder.weight": saved["decoder.weight"].double(), "decoder.bias": saved["decoder.bias"]}, {"decoder": other})
    assert torch.equal(other.weight, untouched)
    with pytest.raises(InputError, match="without a dot"):
        checkpoint.module_tensors({"a.b": decoder})


def test_a_link_to_a_checkpoint_stays_one(tmp_path):
    checkpoint.save(tmp_path / "real", {"w": torch.zeros(2)}, {})
    (tmp_path / "link").symlink_to(tmp_path / "real")
    checkpoint.save(tmp_path / "link", {"w": torch.ones(2)}, {})
    assert (tmp_path / "link").is_symlink() and torch.equal(checkpoint.load(tmp_path / "real")[0]["w"], torch.ones(2))


def test_files_of_others_in_a_checkpoint_are_named_and_kept(tmp_path, one_line):
    checkpoint.save(tmp_path / "kept", {"w": torch.zeros(2)}, {})
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    one_line(lambda: checkpoint.save(tmp_path / "kept", {"w": torch.ones(2)}, {}), "files of another kind: notes.txt$")
    assert (tmp_path / "kept" / "notes.txt").read_text() == "mine"
