"""Tests of `Dataset` and `from_arrays`: values, dtypes, splits, errors, registration."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from ddvi_fast.data import Dataset, from_arrays
from ddvi_fast.data.packed import PackedDataset, Scaling

NAN, INF = float("nan"), float("inf")


def tiny(**changes) -> Dataset:
    fields = {
        "name": "tiny", "train_inputs": torch.arange(12, dtype=torch.uint8).reshape(4, 3), "train_labels": torch.tensor([0, 1, 1, 0]),
        "test_inputs": torch.full((2, 3), 20, dtype=torch.uint8), "test_labels": torch.tensor([1, 0]), "num_classes": 2,
    }  # fmt: skip
    return Dataset(**{**fields, **changes})


def test_inputs_are_raw_values_scaled_and_shifted():
    data = tiny(scale=0.5, shift=-1.0)
    expected = torch.tensor([[3.5, 4.0, 4.5], [-1.0, -0.5, 0.0], [3.5, 4.0, 4.5]])
    torch.testing.assert_close(data.inputs(torch.tensor([3, 0, 3])), expected, rtol=0, atol=0)
    assert data.inputs(split="test").tolist() == [[9.0] * 3] * 2
    assert data.inputs(slice(1, 2)).tolist() == [[0.5, 1.0, 1.5]]


def test_labels_sizes_and_shapes():
    data = tiny()
    assert data.labels(torch.tensor([1, 3])).tolist() == [1, 0]
    assert data.labels(split="test").tolist() == [1, 0]
    assert (data.size(), data.size("test"), data.input_shape, data.num_dimensions) == (4, 2, (3,), 3)


PACKED = PackedDataset(
    "packed", torch.zeros(4, 1, dtype=torch.uint8), torch.tensor([0, 1, 1, 0]), torch.zeros(2, 1, dtype=torch.uint8), torch.tensor([1, 0]),
    num_classes=2, value_range=(0.0, 2.0), scaling=Scaling(torch.ones(4), torch.ones(4)),
)  # fmt: skip


@pytest.mark.parametrize("data", [tiny(), PACKED], ids=["plain", "packed"])
@pytest.mark.parametrize(
    "indices", [torch.tensor([4]), torch.tensor([-5]), torch.tensor([0.0]), torch.tensor([True]), torch.zeros(1, 1).long(), 2, "all", slice(0, "b"),
                slice(3, 0, -1), torch.tensor([1], dtype=torch.uint8), np.array([9])], ids=repr,
)  # fmt: skip
def test_indices_that_are_none_of_the_examples_are_refused(data, indices, one_line):
    one_line(lambda: data.inputs(indices), "^indices: expected a slice")
    one_line(lambda: data.labels(indices), "^indices: expected a slice")


@pytest.mark.parametrize("indices", [[1, 3], np.array([1, 3], np.uint8), torch.tensor([1, -1]), torch.tensor([False, True, False, True])], ids=repr)
def test_indices_of_every_kind_choose_the_same_examples(indices):
    for data in (tiny(), PACKED):
        assert torch.equal(data.inputs(indices).nan_to_num(), data.inputs(slice(1, 4, 2)).nan_to_num())
        assert data.labels(indices).tolist() == [1, 0]


def test_range_is_seen_over_both_splits_or_given():
    assert tiny(scale=0.5, shift=1.0).value_range == (1.0, 11.0)
    assert tiny(scale=-1.0).value_range == (-20.0, 0.0)
    assert tiny(value_range=(0.0, 255.0)).value_range == (0.0, 255.0)


def test_inputs_can_be_moved_to_a_device():
    moved = tiny().to("cpu")
    assert moved.device.type == "cpu" and torch.equal(moved.inputs(), tiny().inputs())


def test_take_keeps_the_first_examples_and_frees_the_rest():
    fewer = tiny().take(3)
    assert fewer.size() == 3 and fewer.size("test") == 2
    assert torch.equal(fewer.train_inputs, tiny().train_inputs[:3])
    assert fewer.train_inputs.untyped_storage().nbytes() == 9


def test_fields_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny().name = "other"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_labels": torch.tensor([0, 1, 1])}, "train_labels: expected 4 labels, one for each input, got 3"),
        ({"test_labels": torch.tensor([0, 1, 1])}, "test_labels: expected 2 labels, one for each input, got 3"),
        ({"train_labels": torch.tensor([0, 1, 2, 5])}, "train_labels: expected labels from 0 to 1, got '?2 at index 2, 2 such labels in all"),
        ({"train_labels": torch.tensor([0, -1, 1, 1])}, "got '?-1 at index 1"),
        ({"train_labels": torch.tensor([0, 1, 1, 0], dtype=torch.int32)}, "train_labels: expected an int64 tensor of shape"),
        ({"num_classes": 0}, "num_classes: expected at least 1 where there are labels, got 0"),
        ({"train_inputs": torch.zeros(0, 3), "train_labels": None}, "train_inputs: expected shape .* with at least one example"),
        ({"test_inputs": torch.zeros(0, 3), "test_labels": None}, "test_inputs: expected shape .* with at least one example"),
        ({"train_inputs": torch.tensor([[1.0, NAN]] * 4)}, r"train_inputs: expected finite values, got nan at index \(0, 1\), 4 such"),
        ({"test_inputs": torch.tensor([[1.0, INF]] * 2)}, r"test_inputs: expected finite values, got inf at index \(0, 1\)"),
        ({"test_inputs": torch.zeros(2, 4, dtype=torch.uint8)}, r"test_inputs: expected shape \[3\] and dtype of train_inputs"),
        ({"test_inputs": torch.zeros(2, 3)}, "test_inputs: expected shape .* and dtype of train_inputs"),
        ({"train_inputs": np.zeros((4, 3))}, "train_inputs: expected a tensor, got 'ndarray' .from_arrays"),
        ({"class_names": ("one",)}, "class_names: expected 2 names, one for each class, got 1"),
    ],
)
def test_refuses(changes, message, one_line):
    one_line(lambda: tiny(**changes), message)


def test_refuses_unknown_split_absent_labels_and_bad_limit(one_line):
    one_line(lambda: tiny().size("trian"), r"split: expected one of train, test, got 'trian' .did you mean train")
    one_line(lambda: tiny(test_labels=None).labels(split="test"), r"test_labels: expected labels of tiny")
    for limit in (0, -1, 2.0):
        one_line(lambda limit=limit: tiny().take(limit), r"limit: expected an integer of at least 1")


def test_split_is_a_partition_and_keeps_labels_with_inputs():
    values = np.arange(50).reshape(50, 1) * 7
    data = from_arrays("line", values, np.arange(50), test_size=0.3, seed=4)
    assert (data.size(), data.size("test"), data.num_classes) == (35, 15, 50)
    both = torch.cat([data.train_inputs, data.test_inputs]).squeeze(1)
    assert both.sort().values.tolist() == (7 * np.arange(50)).tolist()
    assert torch.equal(both, 7 * torch.cat([data.train_labels, data.test_labels]).to(both.dtype))


def test_split_depends_on_the_seed_alone():
    values = np.arange(60).reshape(30, 2)
    first, again, other = (from_arrays("line", values, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.train_inputs, again.train_inputs)
    assert set(first.test_inputs[:, 0].tolist()) != set(other.test_inputs[:, 0].tolist())


def test_given_test_set_is_kept_apart_in_order():
    data = from_arrays("two", [[1.0], [2.0]], [0, 2], test_inputs=[[3.0]], test_labels=[1])
    assert data.train_inputs.tolist() == [[1.0], [2.0]] and data.test_inputs.tolist() == [[3.0]]
    assert data.num_classes == 3 and data.train_inputs.dtype == torch.float32


@pytest.mark.parametrize("top, dtype", [(255, torch.uint8), (256, torch.int16), (-128, torch.int8), (1 << 15, torch.int32), (1 << 31, torch.int64)])
def test_integers_take_the_smallest_dtype_of_both_splits(top, dtype):
    data = from_arrays("sizes", [[0], [1]], test_inputs=[[top]])
    assert data.train_inputs.dtype == data.test_inputs.dtype == dtype and data.test_inputs.item() == top


X = np.random.default_rng(0).normal(size=(20, 3))


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        (np.ma.masked_array(X, mask=X > 1), {}, "inputs: expected values without a mask"),
        ([[1, 2], [3]], {}, "inputs: expected an array of numbers"),
        (torch.zeros(20, 3).to_sparse(), {}, "inputs: expected a dense tensor"),
        (torch.zeros(20, 3, device="meta"), {}, "inputs: expected a tensor with values"),
        (1e-310 * X, {}, "inputs: expected numbers of a size from 1e-38 to 3e"),
        (1e300 * X, {}, "inputs: expected numbers of a size from 1e-38 to 3e"),
        (X, {"scale": 0.0}, "scale: expected a number other than 0"),
        (X, {"scale": float("nan")}, "scale: expected a finite number"),
        (X, {"scale": "1"}, "scale: expected a finite number"),
        (X, {"shift": float("inf")}, "shift: expected a finite number"),
        (X, {"value_range": (1.0, 0.0)}, r"value_range: expected \(low, high\)"),
        (X, {"value_range": (0.0, float("nan"))}, "value_range"),
        (X, {"value_range": (0.0, 1.0, 2.0)}, "value_range"),
        (X, {"num_classes": -1}, "num_classes: expected an integer of at least 0"),
        (X, {"num_classes": 2.5}, "num_classes: expected an integer"),
        (X, {"class_names": "ab", "labels": np.arange(20) % 2}, "class_names: expected a sequence of names"),
    ],
)
def test_arrays_and_constants_that_are_refused(inputs, options, words, one_line):
    one_line(lambda: from_arrays("a", inputs, **options), words)


@pytest.mark.parametrize("dtype", ["bool", "uint16", ">i4", ">f8", "float16", "longdouble"])
def test_numpy_dtypes_that_torch_lacks_or_computes_badly(dtype):
    values = np.array([[0], [1], [1]], dtype=dtype)
    assert from_arrays("odd", values, test_inputs=values).inputs().tolist() == [[0.0], [1.0], [1.0]]


def test_arrays_are_copied_not_shared():
    values = np.zeros((4, 2), np.float32)
    data = from_arrays("copy", values, test_inputs=values)
    values[:] = 9
    assert data.train_inputs.sum() == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"inputs": []}, "inputs: expected at least one example"),
        ({"inputs": [["a"], ["b"]]}, "inputs: expected an array of numbers"),
        ({"inputs": [[1j], [2j]]}, "inputs: expected an array of numbers"),
        ({"inputs": np.array([[2**63], [0]], np.uint64)}, "inputs: expected integers below"),
        ({"inputs": [[1.0], [NAN], [2.0]]}, "expected finite values, got nan"),
        ({"labels": [0, 1]}, "labels: expected 3 labels, one for each input, got 2"),
        ({"labels": [0.5, 1, 1]}, "labels: expected whole numbers"),
        ({"labels": [0, -2, 1]}, "labels: expected non-negative labels, got '?-2 at index 1"),
        ({"labels": [0, 1, 2], "num_classes": 2}, "labels: expected labels from 0 to 1, got '?2 at index 2"),
        ({"test_labels": [1]}, "test_labels: expected None without test_inputs"),
        ({"test_size": 0}, "test_size: expected a count from 1 to 2"),
        ({"test_size": 3}, "test_size: expected a count from 1 to 2"),
        ({"test_size": 0.01}, "test_size: expected a count from 1 to 2"),
        ({"test_size": NAN}, "test_size: expected a count from 1 to 2"),
        ({"seed": -1}, "seed: expected an integer"),
    ],
)
def test_from_arrays_refuses(arguments, message, one_line):
    one_line(lambda: from_arrays("bad", **{"inputs": [[1.0], [2.0], [3.0]], **arguments}), message)


def test_data_sets_of_other_packages_register_themselves():
    code = """
from ddvi_fast import InputError, data
try:
    data.load("1kg")
except InputError as error:
    print(error)
print(data.registered_modules())
import ddvi_fast.genomes
print(data.registered_modules(), all(data.DATASETS.values()))
"""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0] == "dataset: expected a registered data set, got '1kg' (`import ddvi_fast.genomes` registers it)"
    assert lines[1:] == ["()", "('ddvi_fast.genomes.dataset',) True"]
