"""Tests of the checkpoint reader: tensors as torch.load returns them, without executing anything."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

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
