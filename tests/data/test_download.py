"""Tests of downloads with a substitute for torchvision: calls, files, errors."""

import builtins
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ddvi_fast.data import load
from tests.data.files import write_set


@pytest.fixture(autouse=True)
def no_system_folder(monkeypatch, fashion_system):
    fashion_system()
    monkeypatch.delenv("DDVI_FAST_DATA", raising=False)


@pytest.fixture
def torchvision(monkeypatch):
    """A torchvision whose data sets write or hold three training and two test examples, and that records every call."""
    calls = []

    def idx_class(name):
        def create(root, train, download):
            calls.append((name, root, train, download))
            write_set(Path(root) / name / "raw", (3, 2))

        return create

    def cifar(root, train, download):
        calls.append(("CIFAR10", root, train, download))
        size = 3 if train else 2
        images = np.arange(size * 32 * 32 * 3).astype(np.uint8).reshape(size, 32, 32, 3)
        return SimpleNamespace(data=images, targets=[9] * size)

    datasets = SimpleNamespace(MNIST=idx_class("MNIST"), FashionMNIST=idx_class("FashionMNIST"), CIFAR10=cifar)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=datasets))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", datasets)
    return SimpleNamespace(calls=calls, datasets=datasets)


@pytest.mark.parametrize("name, class_name", [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_sets_are_fetched_once_and_read_by_our_reader(tmp_path, torchvision, name, class_name):
    for _ in range(2):
        data = load(name, data_dir=tmp_path / "new", download=True)
        assert data.train_inputs.flatten().tolist() == list(range(18)) and data.labels(split="test").tolist() == [0, 1]
    assert torchvision.calls == [(class_name, str(tmp_path / "new"), True, True)]


def test_cifar_is_fetched_once_and_kept_without_pickles(tmp_path, torchvision):
    for _ in range(2):
        data = load("cifar10", data_dir=tmp_path, download=True)
        assert data.name == "cifar10" and data.size() == 3 and data.size("test") == 2
        assert data.train_inputs[0, :, 0, 1].tolist() == [3, 4, 5]
        assert data.labels().tolist() == [9, 9, 9]
    assert torchvision.calls == [("CIFAR10", str(tmp_path), train, True) for train in (True, False)]
    assert [path.name for path in (tmp_path / "cifar10").iterdir()] == ["cifar10.npz"]


def test_a_subset_does_not_stand_in_for_a_download(tmp_path, torchvision):
    images, labels = np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1, np.uint8)
    np.savez(tmp_path / "cifar10_subset.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    assert load("cifar10", data_dir=tmp_path).name == "cifar10_subset"
    assert load("cifar10", data_dir=tmp_path, download=True).size() == 3


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_nothing_is_fetched_unless_asked(tmp_path, torchvision, one_line, name):
    one_line(lambda: load(name, data_dir=tmp_path), r"download=true")
    assert torchvision.calls == []


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
@pytest.mark.parametrize("error", [ImportError("No module named 'torchvision'"), RuntimeError("operator torchvision::nms\ndoes not exist")])
def test_torchvision_that_cannot_be_imported_is_one_clear_line(tmp_path, monkeypatch, name, error, one_line):
    real_import = builtins.__import__

    def refuse(module, *arguments, **keywords):
        if module.startswith("torchvision"):
            raise error
        return real_import(module, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    text = one_line(lambda: load(name, data_dir=tmp_path, download=True), "a torchvision that can be imported here, got .*torchvision.* by hand")
    assert type(error).__name__ in text and str(tmp_path) in text


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_failed_download_is_one_clear_line(tmp_path, torchvision, one_line, name):
    def unreachable(root, train, download):
        raise RuntimeError("Error downloading train-images:\nTried everything")

    torchvision.datasets.MNIST = torchvision.datasets.CIFAR10 = unreachable
    words = r"download: expected .* got RuntimeError: Error downloading train-images: Tried everything .put"
    one_line(lambda: load(name, data_dir=tmp_path, download=True), words)


def test_download_needs_a_folder_that_can_be_made(tmp_path, torchvision, one_line):
    one_line(lambda: load("mnist", download=True), r"data_dir: expected a folder to download mnist into, got None .or set DDVI_FAST_DATA")
    (tmp_path / "file").write_text("")
    one_line(lambda: load("cifar10", data_dir=tmp_path / "file", download=True), r"data_dir: expected a folder that can be written to")
    assert torchvision.calls == []


def test_unknown_name_gets_the_nearest_ones(one_line):
    one_line(lambda: load("minst"), r"dataset: expected one of digits, mnist, .*genomes, got 'minst' \(did you mean mnist")
