"""Data set on a device: one tensor per split, in its smallest dtype, converted to float as batches are gathered."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddvi_fast import _checks, rng

SPLITS = ("train", "test")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples, kept as they were measured.

    Args:
        name: Name in tables and pictures.
        train_inputs, test_inputs: Raw values [N, *input_shape] of one dtype; the inputs of a model are ``raw * scale + shift``.
        train_labels, test_labels: Labels, int64 [N] in ``[0, num_classes)``, or None.
        num_classes: Number of classes (int, default 0, for no labels).
        scale, shift: Constants that turn raw values into model inputs (float, default 1 and 0).
        value_range: Smallest and largest possible value of a model input (default: of both splits).
        class_names: Name of each class (default none).
        validation: Fraction of the training examples that is held out and stands in place of the test set (float, default 0: the test set
            itself). `validation.hold_out` makes such a data set.

    Raises:
        InputError: A split is empty, inputs and labels differ in length, labels are out of range, or values are NaN or infinite.

    Example:
        >>> pixels = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
        >>> data = Dataset("tiny", pixels, None, pixels[:1], None, scale=1 / 11, value_range=(0.0, 1.0))
        >>> data.inputs(torch.tensor([2, 0])).shape, data.num_dimensions
        (torch.Size([2, 2, 2]), 4)
    """

    name: str
    train_inputs: Tensor
    train_labels: Tensor | None
    test_inputs: Tensor
    test_labels: Tensor | None
    num_classes: int = 0
    scale: float = 1.0
    shift: float = 0.0
    value_range: tuple[float, float] | None = None
    class_names: tuple[str, ...] = ()
    validation: float = 0.0

    def __post_init__(self) -> None:
        self._check_constants()
        for split in SPLITS:
            inputs, labels = self._split(split)
            _check_inputs(inputs, f"{split}_inputs")
            _checks.require(labels is None or self.num_classes >= 1, "num_classes", "at least 1 where there are labels", self.num_classes)
            _check_labels(labels, f"{split}_labels", len(inputs), self.num_classes)
        same = self.train_inputs.shape[1:] == self.test_inputs.shape[1:] and self.train_inputs.dtype == self.test_inputs.dtype
        _checks.require(same, "test_inputs", f"shape {list(self.train_inputs.shape[1:])} and dtype of train_inputs", self.test_inputs)
        named = len(self.class_names) in (0, self.num_classes)
        _checks.require(named, "class_names", f"{self.num_classes} names, one for each class", len(self.class_names))
        if self.value_range is None:
            object.__setattr__(self, "value_range", self._seen_range())

    def _check_constants(self) -> None:
        """Check the numbers that are no data, and keep them as Python's."""
        _checks.require(not isinstance(self.class_names, str), "class_names", "a sequence of names", self.class_names)
        checked: dict[str, Any] = {
            "num_classes": _checks.integer(self.num_classes, "num_classes", 0),
            "scale": _checks.number(self.scale, "scale"),
            "shift": _checks.number(self.shift, "shift"),
        }
        _checks.require(checked["scale"] != 0, "scale", "a number other than 0", self.scale)
        if self.value_range is not None:
            checked["value_range"] = _checks.numbers_of(self.value_range, "value_range")
            ordered = len(checked["value_range"]) == 2 and checked["value_range"][0] <= checked["value_range"][1]
            _checks.require(ordered, "value_range", "(low, high) with low <= high", self.value_range)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.train_inputs.shape[1:])

    @property
    def num_dimensions(self) -> int:
        """Number of values of one example, flattened."""
        return math.prod(self.input_shape)

    @property
    def has_pixel_metric(self) -> bool:
        """Whether distances between examples are comparable to those between images, for the MMD of decoded samples."""
        return True

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.train_inputs.device

    def size(self, split: str = "train") -> int:
        """Number of examples of `split`, ``"train"`` or ``"test"``."""
        return len(self._split(split)[0])

    def inputs(self, indices: Tensor | slice | None = None, split: str = "train") -> Tensor:
        """Scaled examples, float32 [B, *input_shape], for `indices` (int64 [B] on the device of the data, or a slice; default all).

        The raw dtype is gathered, and nothing waits for the device.
        """
        raw = self._split(split)[0]
        chosen = raw if indices is None else raw[rows_of(indices, len(raw))]
        floats = chosen.float() * self.scale
        return floats + self.shift if self.shift else floats

    def labels(self, indices: Tensor | slice | None = None, split: str = "train") -> Tensor:
        """Labels of the examples `indices` (default all), int64 [B]; `InputError` if the split has none."""
        labels = self._split(split)[1]
        _checks.require(labels is not None, f"{split}_labels", f"labels of {self.name}", None)
        return labels if indices is None else labels[rows_of(indices, len(labels))]

    def wrap_encoder(self, network: nn.Module) -> nn.Module:
        """`network`, with whatever preprocessing examples of this data set need in front of it (here none)."""
        return network

    def initialize_decoder(self, decoder: nn.Module) -> None:
        """Change the initial weights of `decoder` in place to suit the data (here nothing)."""

    def to(self, device: torch.device | str) -> Dataset:
        """Return the same data on `device`."""
        moved = {key: value.to(device) for key, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def take(self, limit: int) -> Dataset:
        """Return the first `limit` training and the first `limit` test examples (all, where there are fewer)."""
        limit = _checks.integer(limit, "limit", 1)
        # Cloned, so that the rest of the data can be freed.
        per_example = [f"{split}_{kind}" for split in SPLITS for kind in ("inputs", "labels")]
        fewer = {key: getattr(self, key)[:limit].clone() for key in per_example if getattr(self, key) is not None}
        return replace(self, **fewer)

    def _split(self, split: str) -> tuple[Tensor, Tensor | None]:
        _checks.choice(split, SPLITS, "split")
        return (self.train_inputs, self.train_labels) if split == "train" else (self.test_inputs, self.test_labels)

    def _seen_range(self) -> tuple[float, float]:
        ends = [float(end) * self.scale + self.shift for raw in (self.train_inputs, self.test_inputs) for end in (raw.min(), raw.max())]
        return min(ends), max(ends)


def from_arrays(
    name: str,
    inputs: Any,
    labels: Any = None,
    *,
    test_inputs: Any = None,
    test_labels: Any = None,
    test_size: int | float = 0.2,
    seed: int = 0,
    num_classes: int | None = None,
    scale: float = 1.0,
    shift: float = 0.0,
    value_range: tuple[float, float] | None = None,
    class_names: Sequence[str] = (),
) -> Dataset:
    """Make a `Dataset` from arrays or tensors in memory.

    Integers are kept in the smallest dtype that holds them, everything else in float32.

    Args:
        name: Name in tables and pictures.
        inputs: Examples [N, ...].
        labels: Class of each example, integers [N] (default none).
        test_inputs, test_labels: Test set. Without it the last `test_size` of the examples, in a random order, are the test set.
        test_size: Number (int) or fraction (float below 1) of the examples for the test set (default 0.2).
        seed: Seed of the random order (int, default 0).
        num_classes: Number of classes (default: the largest label plus one).
        scale, shift, value_range, class_names: See `Dataset`.

    Raises:
        InputError: As for `Dataset`; `test_size` leaves a split empty; an array does not hold numbers.

    Example:
        >>> data = from_arrays("grid", np.arange(20).reshape(10, 2), np.arange(10) % 2, test_size=3)
        >>> data.size("train"), data.size("test"), data.train_inputs.dtype, data.num_classes
        (7, 3, torch.uint8, 2)
    """
    train, train_classes = _numbers(inputs, "inputs"), _classes(labels, "labels")
    _checks.require(not isinstance(class_names, str), "class_names", "a sequence of names", class_names)
    _checks.require(train.dim() >= 1 and len(train) > 0, "inputs", "at least one example", train)
    _check_labels(train_classes, "labels", len(train), num_classes)
    if test_inputs is None:
        _checks.require(test_labels is None, "test_labels", "None without test_inputs", "labels")
        train_part, test_part = random_split(len(train), test_size, seed)
        test, train = train[test_part], train[train_part]
        if train_classes is not None:
            train_classes, test_classes = train_classes[train_part], train_classes[test_part]
        else:
            test_classes = None
    else:
        test, test_classes = _numbers(test_inputs, "test_inputs"), _classes(test_labels, "test_labels")
    train, test = _smallest((train, test))
    if num_classes is None:
        num_classes = max((int(part.max()) + 1 for part in (train_classes, test_classes) if part is not None and len(part)), default=0)
    return Dataset(name, train, train_classes, test, test_classes, num_classes, scale, shift, value_range, tuple(class_names))


def random_split(size: int, test_size: int | float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the test examples: all in a random order by `seed`, of which the last `test_size` are the test set."""
    wanted = f"a count from 1 to {size - 1}, or a fraction that leaves both sets at least one of {size} examples"
    real = isinstance(test_size, numbers.Real) and not isinstance(test_size, bool)
    _checks.require(real and math.isfinite(test_size), "test_size", wanted, test_size)
    count = int(test_size) if isinstance(test_size, numbers.Integral) else round(float(test_size) * size)
    _checks.require(0 < count < size, "test_size", wanted, test_size)
    order = rng.permutation(rng.Draws(seed).lane("split"), size)
    return order[: size - count], order[size - count :]


def rows_of(indices: Tensor | slice, size: int) -> Tensor | slice:
    """Checked indices; torch takes no negative step."""
    chosen = _checks.rows(indices, size, "indices")
    backward = isinstance(chosen, slice) and chosen.step is not None and chosen.step < 0
    _checks.require(not backward, "indices", "a slice with a positive step", indices)
    return torch.from_numpy(chosen) if isinstance(chosen, np.ndarray) else chosen


def _numbers(value: Any, argument: str) -> Tensor:
    if isinstance(value, Tensor):
        result = _checks.valued(_checks.tensor(value, argument, floating=False), argument).detach()
    else:
        result = torch.from_numpy(_native(_array(value, argument), argument))
    _checks.require(not result.is_complex(), argument, "real numbers", result)
    return result.to(torch.uint8) if result.dtype == torch.bool else result


def _array(value: Any, argument: str) -> np.ndarray:
    _checks.require(not np.ma.is_masked(value), argument, "values without a mask", "masked ones")
    try:
        return np.asarray(value)
    except ValueError as error:  # lists of different lengths
        _checks.fail(argument, "an array of numbers", " ".join(str(error).split()))


def _native(array: np.ndarray, argument: str) -> np.ndarray:
    """A writable copy in a dtype with which torch computes (for wider unsigned integers it has no minimum)."""
    _checks.require(array.dtype.kind in "buif", argument, "an array of numbers", f"dtype {array.dtype}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        _checks.require(not array.size or int(array.max()) < 1 << 63, argument, "integers below 2^63", str(array.max(initial=0)))
        return array.astype(np.int64)
    return array.astype(array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.float64, order="C", copy=True)


def _classes(value: Any, argument: str) -> Tensor | None:
    if value is None:
        return None
    labels = _numbers(value, argument)
    _checks.require(not labels.is_floating_point(), argument, "whole numbers", labels)
    return labels.long()


def _smallest(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if any(part.is_floating_point() for part in parts):
        return tuple(_single(part).contiguous() for part in parts)
    values = [int(end) for part in parts if part.numel() for end in (part.amin(), part.amax())] or [0]
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        if torch.iinfo(dtype).min <= min(values) and max(values) <= torch.iinfo(dtype).max:
            return tuple(part.to(dtype).contiguous() for part in parts)
    return tuple(part.long().contiguous() for part in parts)


def _single(value: Tensor) -> Tensor:
    """Numbers in single precision, which must not lose all of them."""
    if value.dtype == torch.float64 and value.numel():
        limits, largest = torch.finfo(torch.float32), float(value.nan_to_num().abs().max())
        expected = f"numbers of a size from {limits.tiny:.0e} to {limits.max:.0e}, which single precision holds"
        beyond = bool(value.isfinite().all()) and largest != 0 and not limits.tiny <= largest <= limits.max
        _checks.require(not beyond, "inputs", expected, f"up to {largest:.3g}", "use other units")
    return value.float()


def _check_inputs(inputs: Tensor, argument: str) -> None:
    _checks.require(isinstance(inputs, Tensor), argument, "a tensor", type(inputs).__name__, "from_arrays takes other arrays")
    _checks.require(inputs.dim() >= 2 and inputs.numel() > 0, argument, "shape [N, ...] with at least one example", inputs)
    if inputs.is_floating_point():
        _checks.finite(inputs, argument)


def _check_labels(labels: Tensor | None, argument: str, size: int, num_classes: int | None) -> None:
    """Check labels against the number of inputs and of classes (None: any number of classes)."""
    if labels is None:
        return
    _checks.require(isinstance(labels, Tensor), argument, "a tensor", type(labels).__name__, "from_arrays takes other arrays")
    _checks.require(labels.dim() == 1 and labels.dtype == torch.int64, argument, "an int64 tensor of shape [N]", labels)
    _checks.require(len(labels) == size, argument, f"{size} labels, one for each input", len(labels))
    wrong = labels < 0 if num_classes is None else (labels < 0) | (labels >= num_classes)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        top = "non-negative labels" if num_classes is None else f"labels from 0 to {num_classes - 1}"
        _checks.fail(argument, top, f"{int(labels[first])} at index {first}, {int(wrong.sum())} such labels in all")
