"""Tests of the IDX reader on the real MNIST and on small valid and damaged files."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from ddvi_fast.data import idx, load
from tests.data.files import encode, write_set

TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.fixture(scope="module")
def real_mnist(shared_data):
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        path = shared_data(f"mnist/{part}-ubyte.gz")
    return load("mnist", data_dir=path.parent.parent)


def test_real_mnist_has_its_published_labels_and_moments(real_mnist):
    assert real_mnist.train_inputs.shape == (60000, 28, 28) and real_mnist.test_inputs.shape == (10000, 28, 28)
    assert real_mnist.train_inputs.dtype == torch.uint8
    assert real_mnist.labels().bincount().tolist() == TRAIN_COUNTS
    assert real_mnist.labels(split="test").bincount().tolist() == TEST_COUNTS
    inputs = real_mnist.inputs()
    assert (inputs.mean().item(), inputs.std().item()) == pytest.approx((0.1307, 0.3081), abs=5e-5)
    assert (inputs.min().item(), inputs.max().item()) == (0.0, 1.0)


def test_real_mnist_pixels_are_the_bytes_of_the_file(real_mnist, shared_data):
    path = shared_data("mnist/train-images-idx3-ubyte.gz")
    with gzip.open(path) as file:
        assert real_mnist.train_inputs[:2].numpy().tobytes() == file.read(16 + 2 * 784)[16:]
    # The first training image is the well-known five: its label, its ink, its first row with any.
    assert real_mnist.labels(slice(0, 10)).tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert int(real_mnist.train_inputs[0].sum()) == 27525
    assert real_mnist.train_inputs[0, 5, 12:20].tolist() == [3, 18, 18, 18, 126, 136, 175, 26]


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("sub", ["", "mnist", "MNIST/raw", "mnist/raw"])
def test_every_name_and_place_gives_the_same_data(tmp_path, sub, dot, gz):
    write_set(tmp_path / sub, dot=dot, gz=gz)
    data = load("mnist", data_dir=tmp_path)
    assert data.train_inputs.tolist() == np.arange(30).reshape(5, 2, 3).tolist()
    assert data.labels(split="test").tolist() == [0, 1, 2] and data.size("test") == 3


def test_folder_comes_from_the_environment(tmp_path, monkeypatch):
    write_set(tmp_path / "mnist")
    monkeypatch.setenv("DDVI_FAST_DATA", str(tmp_path))
    assert load("mnist").size() == 5
    assert load("mnist", limit=2).size() == 2


def test_fashion_mnist_is_found_where_debian_installs_it(tmp_path, monkeypatch, fashion_system):
    fashion_system(write_set(tmp_path / "system", first=100))
    monkeypatch.delenv("DDVI_FAST_DATA", raising=False)
    assert load("fashion_mnist").train_inputs[0, 0, 0] == 100
    own = write_set(tmp_path / "own" / "FashionMNIST" / "raw", first=7)
    data = load("fashion_mnist", data_dir=own.parents[1])
    assert data.train_inputs[0, 0, 0] == 7 and data.class_names[9] == "Ankle boot"


@pytest.mark.parametrize("sub", ["mnist", "MNIST/raw"])
def test_a_folder_of_digits_is_never_read_as_fashion(tmp_path, fashion_system, sub, one_line):
    fashion_system()
    folder = write_set(tmp_path / sub)
    assert load("mnist", data_dir=folder).size() == 5
    one_line(lambda: load("fashion_mnist", data_dir=folder), r"fashion_mnist: expected the file train-images")


def test_missing_set_names_the_folders_and_the_way_out(tmp_path, monkeypatch, fashion_system, one_line):
    fashion_system(tmp_path / "absent")
    monkeypatch.delenv("DDVI_FAST_DATA", raising=False)
    line = one_line(lambda: load("fashion_mnist", data_dir=tmp_path))
    for part in (f"{tmp_path},", str(tmp_path / "fashion-mnist"), str(tmp_path / "absent"), "download=true", "apt install dataset-fashion-mnist"):
        assert part in line
    one_line(lambda: load("mnist"), r"no folder .data_dir and DDVI_FAST_DATA are not set.*download=true")


def test_missing_file_of_a_set_is_named(tmp_path, one_line):
    folder = write_set(tmp_path / "mnist")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    one_line(lambda: load("mnist", data_dir=tmp_path), r"mnist: expected the file t10k-labels-idx1-ubyte\(.gz\) in .*mnist, got None")


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
PIXELS = np.arange(30).reshape(5, 2, 3)


@pytest.mark.parametrize(
    "name, content, message",
    [
        (IMAGES, encode(PIXELS)[:-4], r"expected 46 bytes of IDX data for sizes \[5, 2, 3\], got 42 \(the file is cut short\)"),
        (IMAGES, encode(PIXELS)[:9], r"expected at least 16 bytes of IDX data, got 9 \(the file is cut short\)"),
        (IMAGES, b"", "expected at least 16 bytes of IDX data, got 0"),
        (IMAGES, encode(PIXELS) + b"ab", r"expected 46 bytes .* got 48 \(bytes after the end\)"),
        (IMAGES, encode(np.arange(16)), r"magic number 2051 \(unsigned bytes, axes: 3\), got 2049"),
        (IMAGES, encode(PIXELS, type_code=13), "magic number 2051 .*, got 3331"),
        (IMAGES, b"\x89PNG" + bytes(50), "magic number 2051 .*, got 2303741511"),
        (IMAGES, bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(30), r"expected 79228162458924105385300197391 bytes .* got 46"),
        (LABELS, encode(PIXELS), "magic number 2049 .*, got 2051"),
        (LABELS, encode(np.arange(4)), "expected 5 labels, one for each image of train-images-idx3-ubyte, got 4"),
        (LABELS, encode(np.array([0, 1, 10, 3, 4])), "train_labels: expected labels from 0 to 9, got '?10 at index 2"),
    ],
)
def test_broken_file_is_one_clear_line(tmp_path, name, content, message, one_line):
    path = write_set(tmp_path / "mnist") / name
    path.write_bytes(content)
    text = one_line(lambda: load("mnist", data_dir=tmp_path), message)
    assert "train_labels" in message or str(path) in text


def test_empty_set_is_refused(tmp_path, one_line):
    write_set(tmp_path / "mnist", sizes=(0, 3))
    one_line(lambda: load("mnist", data_dir=tmp_path), r"train_inputs: expected shape .* with at least one example")


PACKED = gzip.compress(encode(np.random.default_rng(0).integers(0, 256, (5, 20, 30))))


@pytest.mark.parametrize(
    "content, message",
    [
        (PACKED[:-8] + bytes([PACKED[-8] ^ 1]) + PACKED[-7:], "a gzip file, got corrupt data: .*incorrect data check"),
        (PACKED[:10] + b"\xff\xff\xff\xff" + PACKED[14:], "a gzip file, got corrupt data"),
        (b"PK" + PACKED[2:], "a gzip file, got corrupt data: .*incorrect header check"),
        (PACKED[: len(PACKED) // 2], r"expected 3016 bytes of IDX data for sizes \[5, 20, 30\], got \d+ \(the file is cut short\)"),
        (PACKED[:-4], r"a complete gzip file, got '?one without its end'? \(the file is cut short\)"),
    ],
    ids=["checksum", "body", "not gzip", "cut", "no end"],
)
def test_broken_gzip_is_one_clear_line(tmp_path, content, message, one_line):
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(content)
    assert str(path) in one_line(lambda: idx.read_idx(path, 3), message)


def test_truncated_copy_of_real_mnist_says_how_much_is_missing(tmp_path, shared_data, one_line):
    copy = tmp_path / "t10k-images-idx3-ubyte.gz"
    copy.write_bytes(shared_data(f"mnist/{copy.name}").read_bytes()[:100_000])
    one_line(lambda: idx.read_idx(copy, 3), r"expected 7840016 bytes of IDX data for sizes \[10000, 28, 28\], got \d+ \(the file is cut short\)")
