"""Tests of the checkpoint reader: tensors as torch.load returns them, without executing anything."""

from __future__ import annotations

import pickle
import random
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

import ddvi_fast
from ddvi_fast import interop


class Encoder(nn.Module):
    """A module of a class that the reader does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4, bias=False))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)


@pytest.fixture
def model(forked_generator):
    return Encoder()


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in expected)


def test_a_state_dictionary(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "state.pt")
    same(interop.read_checkpoint(tmp_path / "state.pt"), dict(model.state_dict()))


def test_nested_containers_views_and_dtypes(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    stored = {
        "epoch": 3,
        "state_dict": OrderedDict(transposed=whole.T, part=whole[1:3, ::2], empty=torch.empty(0, 3), scalar=torch.tensor(2.5)),
        "list": [torch.tensor([True, False]), (torch.arange(3, dtype=torch.int64), torch.ones(2, dtype=torch.float16))],
    }
    torch.save(stored, tmp_path / "nested.pt")
    found = interop.read_checkpoint(tmp_path / "nested.pt")
    expected = {f"state_dict.{name}": value for name, value in stored["state_dict"].items()}
    expected |= {"list.0": stored["list"][0], "list.1.0": stored["list"][1][0], "list.1.1": stored["list"][1][1]}
    same(found, expected)


def test_a_whole_module_gives_its_state_dictionary_without_its_class(tmp_path, model):
    torch.save({"model": model, "best": 0.5}, tmp_path / "module.pt")
    renamed = tmp_path / "foreign.pt"
    with zipfile.ZipFile(tmp_path / "module.pt") as source, zipfile.ZipFile(renamed, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            # The class of another project, of the same length: unpickling it would fail here.
            target.writestr(name, content.replace(b"Encoder", b"Unknown") if name.endswith("data.pkl") else content)
    same(interop.read_checkpoint(renamed), {f"model.{name}": value for name, value in model.state_dict().items()})


def test_an_optimiser_state(tmp_path, model):
    optimiser = torch.optim.Adam(model.parameters())
    model.net(torch.ones(3, 6)).sum().backward()
    optimiser.step()
    torch.save(optimiser.state_dict(), tmp_path / "optimiser.pt")
    found = interop.read_checkpoint(tmp_path / "optimiser.pt")
    assert torch.equal(found["state.0.exp_avg"], optimiser.state_dict()["state"][0]["exp_avg"])


def archive(path, content: bytes, **storages: bytes):
    with zipfile.ZipFile(path, "w") as target:
        for name, data in {"data.pkl": content, **storages}.items():
            target.writestr(f"archive/{name}", data)
    return path


class _Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, *call) -> None:
        self.call = call

    def __reduce__(self):
        return (self.call[0], self.call[1:])


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_nothing_is_executed(tmp_path, protocol):
    made = tmp_path / "made"
    content = pickle.dumps({"a": _Calls(open, str(made), "w"), "b": _Calls(eval, "__import__('os').abort()")}, protocol=protocol)
    assert interop.read_checkpoint(archive(tmp_path / "bad.pt", content)) == {}
    assert not made.exists()


def test_a_state_cannot_replace_what_a_record_does(tmp_path):
    # BUILD with a state that names methods of the record, then a call of one of them by APPEND.
    content = b"\x80\x02cos\nsystem\n)\x81}(X\x06\x00\x00\x00appendcos\nsystem\nubX\x04\x00\x00\x00echoa."
    assert interop.read_checkpoint(archive(tmp_path / "bad.pt", content)) == {}


def test_damaged_files_are_refused_in_one_line(tmp_path, model, one_line):
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    torch.save(model.state_dict(), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:1000])
    (tmp_path / "text.pt").write_bytes(b"not a checkpoint")
    for name in ("missing", "cut", "text", "legacy"):
        one_line(lambda name=name: interop.read_checkpoint(tmp_path / f"{name}.pt"), name)


@pytest.mark.parametrize("content", [b"", b"\x80\x02garbage", pickle.dumps({"x": 1})[:-3]])
def test_damaged_pickles_are_refused_in_one_line(tmp_path, content, one_line):
    one_line(lambda: interop.read_checkpoint(archive(tmp_path / "bad.pt", content)), "plain containers")


def test_a_tensor_beyond_its_storage_is_refused(tmp_path, one_line):
    torch.save({"x": torch.arange(6.0)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as source:
        content = source.read("x/data.pkl")
    small = archive(tmp_path / "small.pt", content, **{"data/0": b"\0" * 8})
    one_line(lambda: interop.read_checkpoint(small), r"storage 0 of 2 elements, 6 named")


def nested_lists(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def nested_tuples(depth: int, after: bytes = b"") -> bytes:
    return b"\x80\x02)" + b"\x85" * depth + after + b"."


def doubled(times: int, before: bytes = b"\x80\x02", after: bytes = b".") -> bytes:
    """Lists that hold the one before twice."""
    made = before + b"]r\x00\x00\x00\x00"
    for number in range(times):
        made += b"](h" + bytes([number]) + b"h" + bytes([number]) + b"eq" + bytes([number + 1])
    return made + after


def tensor_of(size: bytes, stride: bytes, count: bytes = b"K\x01", key: bytes = b"X\x01\x00\x00\x000") -> bytes:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + key + b"X\x03\x00\x00\x00cpu" + count + b"tQ"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + stride + b"\x89ccollections\nOrderedDict\n)RtR."


TRILLION = b"\x8a\x06\x00\x00\x00\x00\x00\x01"
HOSTILE = {
    "deep lists": nested_lists(200_000),
    "deep tuples": nested_tuples(300_000),
    "deep tuples as a key": b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s.",
    "deep tuples in a set": b"\x80\x04\x8f()" + b"\x85" * 300_000 + b"\x90.",
    "deep dictionaries": b"\x80\x02" + b"}K\x01" * 100_000 + b"}" + b"s" * 100_000 + b".",
    "deep records": b"\x80\x02" + b"cposix\nsystem\n(" * 50_000 + b"K\x01" + b"tR" * 50_000 + b".",
    "doubled lists": doubled(40),
    "doubled tuples": b"\x80\x02)" + b"".join(b"q\x00h\x00h\x00\x86" for _ in range(60)) + b".",
    "doubled lists as a name": doubled(40, b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n", b"X\x03\x00\x00\x00cpuK\x01tQ."),
    "doubled lists as a storage": doubled(40, b"\x80\x02", b"Q."),
    "doubled lists as a shape": tensor_of(doubled(40, b"", b""), b"K\x01\x85"),
    "an endless loop": b"\x80\x02]q\x00h\x00a]q\x01h\x01h\x00ah\x00h\x01a.",
    "a place beyond memory": b"\x80\x02]r\xff\xff\xff\xff.",
    "an array beyond memory": b"\x80\x05\x96" + (1 << 45).to_bytes(8, "little") + b".",
    "text beyond memory": b"\x80\x04\x8d" + (1 << 45).to_bytes(8, "little") + b".",
    "a frame beyond memory": b"\x80\x04\x95" + (1 << 45).to_bytes(8, "little") + b".",
    "an expanded tensor": tensor_of(TRILLION + b"\x85", b"K\x00\x85"),
    "an expanded matrix": tensor_of(b"\x8a\x05\x00\x00\x00\x00\x01" * 2 + b"\x86", b"K\x00K\x00\x86"),
    "a tensor of negative size": tensor_of(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
    "a tensor of many dimensions": tensor_of(b"(" + b"K\x01" * 900 + b"t", b"(" + b"K\x01" * 900 + b"t"),
    "strides beyond integers": tensor_of(b"K\x01\x85", b"\x8a\x10" + b"\xff" * 15 + b"\x01\x85"),
    "a shape of text": tensor_of(b"X\x01\x00\x00\x00a\x85", b"K\x01\x85"),
    "a size of text": tensor_of(b"K\x01\x85", b"K\x01\x85", count=b"X\x01\x00\x00\x00a"),
    "a name that is no text": tensor_of(b"K\x01\x85", b"K\x01\x85", key=b"]"),
    "a module of numbers": b"\x80\x02cx\nModule\n)\x81}(X\x0b\x00\x00\x00_parametersK\x01X\x08\x00\x00\x00_buffersK\x02ub.",
    "a module of odd names": b"\x80\x02cx\nModule\n)\x81}(X\x0b\x00\x00\x00_parameters}X\x08\x00\x00\x00_buffers}K\x01K\x02s"
    b"X\x1c\x00\x00\x00_non_persistent_buffers_setK\x07ub.",
    "a tensor with a state": tensor_of(b"K\x01\x85", b"K\x01\x85")[:-1] + b"(K\x01" + TRILLION + b"K\x01K\x01tb.",
    "an entry of a tensor": tensor_of(b"K\x01\x85", b"K\x01\x85")[:-1] + nested_lists(50_000)[2:-1] + b"K\x01s.",
    "entries of a tensor": tensor_of(b"K\x01\x85", b"K\x01\x85")[:-1] + b"(K\x00K\x01u.",
    "a long name": b"\x80\x02}X\x00\x00\x10\x00" + b"a" * (1 << 20) + b"]s.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_end_in_one_line_or_in_nothing(tmp_path, name, one_line):
    """Each took a second and little memory at most; without limits they take hours, all memory, or the process."""
    path = archive(tmp_path / "bad.pt", HOSTILE[name], **{"data/0": b"\0" * 4})
    try:
        found = interop.read_checkpoint(path)
    except ddvi_fast.InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
    else:
        assert sum(value.numel() for value in found.values()) <= 1


def test_a_pickle_of_too_many_operations_is_refused(tmp_path, monkeypatch, one_line):
    monkeypatch.setattr(interop.checkpoint, "_STEPS", 1000)
    one_line(lambda: interop.read_checkpoint(archive(tmp_path / "bad.pt", b"\x80\x02](" + b"K\x01" * 1000 + b"e.")), "more than 1,000 operations")


def test_an_archive_that_expands_is_refused(tmp_path, one_line):
    torch.save({"x": torch.zeros(1 << 20)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    one_line(lambda: interop.read_checkpoint(tmp_path / "bomb.pt"), "larger than the file")


def test_shared_and_expanded_tensors_are_read(tmp_path):
    shared = torch.arange(6.0)
    torch.save({"a": shared, "b": [shared, shared[2:]], "c": torch.ones(1).expand(4, 5), ("k", 1): shared}, tmp_path / "x.pt")
    found = interop.read_checkpoint(tmp_path / "x.pt")
    same(found, {"a": shared, "b.0": shared, "b.1": shared[2:], "c": torch.ones(4, 5), "('k', 1)": shared})
    found["a"].zero_()
    assert torch.equal(found["b.0"], shared), "each has memory of its own"


def test_damaged_bytes_end_in_one_line(tmp_path, model):
    """Generated: bits flipped and parts cut out anywhere in the file."""
    torch.save({"model": model, "state": model.state_dict(), "epoch": 3}, tmp_path / "whole.pt")
    whole, generator = (tmp_path / "whole.pt").read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            if generator.random() < 0.3:
                start = generator.randrange(len(data))
                del data[start : start + generator.randint(1, 200)]
            else:
                data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        (tmp_path / "bad.pt").write_bytes(data)
        try:
            interop.read_checkpoint(tmp_path / "bad.pt")
        except ddvi_fast.InputError as error:
            assert "\n" not in str(error)


def test_damaged_pickles_end_in_one_line(tmp_path, model):
    """Generated: the archive is whole, and so are its checksums, but the pickle is not."""
    torch.save({"model": model, "state": model.state_dict(), "epoch": 3}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as source:
        content = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    pickled, generator = content.pop("data.pkl"), random.Random(1)
    for _ in range(300):
        data = bytearray(pickled)
        for _ in range(generator.randint(1, 3)):
            data[generator.randrange(len(data))] = generator.choice([generator.randrange(256), *b"\x85\x86\x87tRQbesuh\x81]})(."])
        try:
            interop.read_checkpoint(archive(tmp_path / "bad.pt", bytes(data), **content))
        except ddvi_fast.InputError as error:
            assert "\n" not in str(error)
