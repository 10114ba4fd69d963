"""Checkpoints of a run: written aside, the last few kept, damage noticed and the one before used, nothing unpickled."""

from __future__ import annotations

import errno
import pickle
import random
import threading
from pathlib import Path

import pytest
import torch
from safetensors import torch as safetensors

from ddvi_fast.engine import checkpoint
from ddvi_fast.engine.checkpoint_manager import CheckpointManager


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def kept(tmp_path, told) -> CheckpointManager:
    return CheckpointManager(tmp_path, keep=2, tell=told.append)


def save(kept: CheckpointManager, *steps: int, best: bool = False) -> None:
    for step in steps:
        kept.save(step, {"w": torch.full((50,), float(step))}, {"step": step}, best)
    kept.wait()


def names(kept: CheckpointManager) -> list[str]:
    return sorted(path.name for path in kept.folder.iterdir())


def test_the_last_ones_and_the_best_are_kept(kept, told):
    assert kept.newest() is None
    save(kept, 1)
    save(kept, 2, best=True)
    save(kept, 3, 4)
    assert names(kept) == ["best", "step-00000003", "step-00000004"]
    assert kept.newest().state == {"step": 4} and checkpoint.load(kept.folder / "best")[1] == {"step": 2}
    assert told == []


def test_copies_take_the_same_memory_and_new_shapes(kept):
    """Memory of the copies is kept, and what is written is what the tensors are now, in any shape."""
    first, second = torch.zeros(3), torch.arange(6.0).reshape(2, 3)
    for step, tensors in enumerate([{"a": first, "b": second}, {"a": first + 1, "b": second.T}, {"a": first.double() + 2}], 1):
        kept.save(step, tensors, {})
        kept.wait()
        found = kept.newest().tensors
        assert found.keys() == tensors.keys() and all(torch.equal(found[name], value) for name, value in tensors.items())
        assert all(found[name].dtype == value.dtype for name, value in tensors.items())


def test_training_goes_on_while_a_checkpoint_is_written(kept, monkeypatch):
    """The write waits here until the weights have changed: what is written is what they were."""
    go_on, written = threading.Event(), checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: go_on.wait(3600) and written(*arguments))
    weights = torch.zeros(4)
    kept.save(1, {"w": weights}, {"step": 1})
    weights += 1
    assert kept.newest() is None
    go_on.set()
    kept.wait()
    assert torch.equal(kept.newest().tensors["w"], torch.zeros(4))


def test_damage_is_noticed_and_the_checkpoint_before_is_used(kept, told):
    save(kept, 1, 2)
    chance = random.Random(0)
    for number in range(60):
        file = kept.folder / "step-00000002" / (checkpoint.WEIGHTS if number % 4 else checkpoint.STATE)
        good = file.read_bytes()
        offset = chance.randrange(len(good) - 1)
        flipped = bytearray(good)
        flipped[offset] ^= 1 << chance.randrange(8)
        file.write_bytes(good[:offset] if number % 2 else bytes(flipped))
        told.clear()
        assert kept.newest().name == "step-00000001"
        assert (
            len(told) == 1 and told[0].startswith("checkpoint step-00000002 is corrupt (") and told[0].endswith("); falling back to the previous one")
        )
        file.write_bytes(good)
    assert kept.newest().name == "step-00000002"


def test_a_full_disk_is_told_and_the_checkpoint_before_stands(kept, told, monkeypatch):
    save(kept, 1)

    def half(path, tensors):
        path.write_bytes(b"the first half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", half)
        with pytest.raises(OSError, match="No space left"):
            save(kept, 2)
        kept.save(3, {"w": torch.zeros(1)}, {})  # training goes on and tries again
        kept._join()
    assert told == [f"checkpoint step-0000000{step} could not be written (No space left on device); the latest is step-00000001" for step in (2, 3)]
    assert names(kept) == ["step-00000001"] and kept.newest().state == {"step": 1}
    save(kept, 4)
    assert kept.newest().state == {"step": 4}


class Trap:
    """Leaves a trace if it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.STATE])
def test_a_pickle_in_place_of_a_file_executes_nothing(kept, told, tmp_path_factory, name):
    trace = tmp_path_factory.mktemp("outside") / "trace"
    save(kept, 1, 2)
    (kept.folder / "step-00000002" / name).write_bytes(pickle.dumps(Trap(trace)))
    assert kept.newest().name == "step-00000001" and len(told) == 1
    assert not trace.exists()
    pickle.loads(pickle.dumps(Trap(trace)))
    assert trace.exists(), "the trap works"


def test_the_files_are_safetensors_and_json(kept):
    save(kept, 1)
    loaded = safetensors.load_file(kept.folder / "step-00000001" / checkpoint.WEIGHTS)
    assert torch.equal(loaded["w"], torch.ones(50))
