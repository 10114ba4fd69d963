"""Tests of the CIFAR-10 readers on the real subset and on small files of both formats."""

import pickle
import zipfile

import numpy as np
import pytest
import torch

from ddvi_fast.data import cifar, load

SUBSET_TRAIN_COUNTS = [396, 366, 420, 384, 422, 393, 414, 385, 407, 413]
SUBSET_TEST_COUNTS = [103, 89, 100, 103, 90, 86, 112, 102, 106, 109]


def test_real_subset_has_known_pixels_and_labels(shared_data):
    data = load("cifar10", data_dir=shared_data("cifar10/cifar10_subset.npz").parents[1])
    assert data.name == "cifar10_subset" and data.train_inputs.dtype == torch.uint8
    assert data.train_inputs.shape == (4000, 3, 32, 32) and data.test_inputs.shape == (1000, 3, 32, 32)
    assert data.train_inputs[0, 0, 0, :10].tolist() == [59, 43, 50, 68, 98, 119, 139, 145, 149, 149]
    assert data.test_inputs[0, 0, 0, :3].tolist() == [158, 159, 165]
    assert data.labels(slice(0, 10)).tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert data.labels(slice(0, 10), "test").tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert data.labels().bincount().tolist() == SUBSET_TRAIN_COUNTS and data.labels(split="test").bincount().tolist() == SUBSET_TEST_COUNTS
    assert data.class_names[6] == "frog" and data.value_range == (0.0, 1.0) and data.inputs().max() == 1.0


def random_arrays(train=20, test=4):
    generator, sizes = np.random.default_rng(0), {"train": train, "test": test}
    arrays = {f"{split}_images": generator.integers(0, 256, (size, 32, 32, 3), np.uint8) for split, size in sizes.items()}
    return arrays | {f"{split}_labels": generator.integers(0, 10, size, np.uint8) for split, size in sizes.items()}


@pytest.fixture
def small_binary(tmp_path, monkeypatch):
    """A folder of the binary version with four records a file, and its arrays. A record is a label, then red, green and blue pixels by rows."""
    monkeypatch.setattr(cifar, "_RECORDS", 4)
    arrays, folder = random_arrays(), tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name, split, start in [*((f"data_batch_{i + 1}.bin", "train", 4 * i) for i in range(5)), ("test_batch.bin", "test", 0)]:
        records = slice(start, start + 4)
        planes = np.moveaxis(arrays[f"{split}_images"][records], 3, 1).reshape(4, 3072)
        np.column_stack((arrays[f"{split}_labels"][records], planes)).tofile(folder / name)
    return tmp_path, arrays


def test_binary_version_and_archive_give_the_same_data(small_binary):
    folder, arrays = small_binary
    (folder / "other" / "cifar10").mkdir(parents=True)
    np.savez(folder / "other" / "cifar10" / "cifar10.npz", **arrays)
    binary, archive = load("cifar10", data_dir=folder), load("cifar10", data_dir=folder / "other")
    assert binary.name == archive.name == "cifar10"
    for field in ("train_inputs", "train_labels", "test_inputs", "test_labels"):
        assert torch.equal(getattr(binary, field), getattr(archive, field))
    assert torch.equal(binary.train_inputs[7, 2], torch.from_numpy(arrays["train_images"][7, :, :, 2]))
    assert binary.train_inputs.is_contiguous() and archive.train_inputs.is_contiguous()


def test_the_whole_set_is_preferred_to_the_subset(small_binary):
    folder, _ = small_binary
    np.savez(folder / "cifar10_subset.npz", **random_arrays(2, 2))
    assert load("cifar10", data_dir=folder).size() == 20


def test_binary_version_cut_short_or_incomplete(small_binary, one_line):
    folder, _ = small_binary
    path = folder / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-3073])
    one_line(lambda: load("cifar10", data_dir=folder), r"data_batch_3.bin: expected 12292 bytes, 4 records of 3073, got 9219")
    path.unlink()
    one_line(lambda: load("cifar10", data_dir=folder), r"cifar10: expected the file data_batch_3.bin in .*cifar-10-batches-bin, got None")


def test_pickled_version_is_refused_and_never_opened(tmp_path, one_line):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Bomb()))
    refusal = r"the binary version, got the Python version, .*reading it would run its pickles; download=true"
    one_line(lambda: load("cifar10", data_dir=tmp_path), refusal)


def test_nothing_there_says_where_it_looked(tmp_path, monkeypatch, one_line):
    one_line(lambda: load("cifar10", data_dir=tmp_path), f"cifar10_subset.npz, got none; looked in {tmp_path}, {tmp_path}/cifar10 .download=true")
    monkeypatch.delenv("DDVI_FAST_DATA", raising=False)
    one_line(lambda: load("cifar10"), r"data_dir and DDVI_FAST_DATA are not set")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: {name: a[name] for name in a if name != "test_labels"}, "arrays train_images, train_labels, test_images, test_labels"),
        (lambda a: {**a, "train_images": a["train_images"].astype(np.float32)}, "train_images: expected uint8 of shape .*, got '?float32"),
        (lambda a: {**a, "train_images": a["train_images"].transpose(0, 3, 1, 2)}, r"expected uint8 of shape \[N, 32, 32, 3\]"),
        (lambda a: {**a, "test_labels": a["test_labels"][:-1]}, r"test_labels: expected 4 integer labels, got '?uint8 of shape \[3\]"),
        (lambda a: {**a, "test_labels": a["test_labels"] / 2}, "test_labels: expected 4 integer labels, got '?float64"),
        (lambda a: {**a, "train_labels": a["train_labels"] + 10}, "train_labels: expected labels from 0 to 9"),
        (lambda a: {**a, "train_labels": np.array([{}] * 20, object)}, "expected a NumPy archive .* without pickled objects"),
    ],
)
def test_archive_with_wrong_arrays(tmp_path, change, message, one_line):
    np.savez(tmp_path / "cifar10.npz", **change(random_arrays()))
    one_line(lambda: load("cifar10", data_dir=tmp_path), message)


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "flipped", "npy", "pickle", "other zip"])
def test_file_that_is_no_archive(tmp_path, kind, one_line):
    path = tmp_path / "cifar10.npz"
    np.savez(path, **random_arrays())
    whole = path.read_bytes()
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "other zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("train_images", b"no array")
    else:
        middle = len(whole) // 3
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        path.write_bytes({"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2], "flipped": flipped, "pickle": pickle.dumps([1])}[kind])
    assert str(path) in one_line(lambda: load("cifar10", data_dir=tmp_path))
