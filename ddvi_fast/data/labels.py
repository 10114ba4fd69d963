"""Selection of the labelled training examples for semi-supervised learning, with equally many of each class."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from ddvi_fast import _checks, rng

COUNTS = (10, 50, 100, 250, 500, 1000, 2500, 10_000)
RELEASED = "released"

# The released code removes labels among the first 50,000 training images only, so that the last 10,000 of MNIST keep theirs.
_RELEASED_COUNT, _RELEASED_HIDDEN = 1000, 50_000


def select_labels(labels: Tensor, count: int | float | str, num_classes: int, seed: int = 0) -> Tensor:
    """Indices of the examples that keep their label, int64 [count], increasing.

    The numbers of labels of any two classes differ by at most one, unless a class has fewer examples than its share.

    Args:
        labels: Labels of all training examples, int64 [N].
        count: Number of labels to keep (int), their fraction (float below 1), or ``"released"``: as in the released code 1,000 of the
            first 50,000 and all after them (11,000 on MNIST).
        num_classes: Number of classes, C.
        seed: Seed of the selection (int, default 0).

    Raises:
        InputError: `count` is above the number of examples or below that of classes, or a class has no examples.

    Example:
        >>> labels = torch.arange(1000) % 10
        >>> kept = select_labels(labels, 50, 10)
        >>> len(kept), torch.bincount(labels[kept]).tolist()
        (50, [5, 5, 5, 5, 5, 5, 5, 5, 5, 5])
    """
    if isinstance(count, str):
        return _select_released(labels, count, num_classes, seed)
    if not isinstance(count, numbers.Integral):
        expected = "a whole number, or a share of all between 0 and 1"
        _checks.require(isinstance(count, numbers.Real) and 0 < count < 1, "labels", expected, count)
        count = round(float(count) * len(labels))
    count = _checks.integer(count, "labels", 0)
    _checks.require(count >= num_classes, "labels", f"at least {num_classes}, one for each class", count)
    hint = f"counts in use are {', '.join(str(known) for known in COUNTS)}"
    _checks.require(count <= len(labels), "labels", f"at most {len(labels)}, the number of training examples", count, hint)
    order = rng.permutation(rng.Draws(seed).lane("labels"), len(labels), labels.device)
    members = [order[labels[order] == label] for label in range(num_classes)]
    sizes = [len(part) for part in members]
    _checks.require(min(sizes) > 0, "labels", "training examples of every class", f"none of class {sizes.index(min(sizes))}")
    return torch.cat([part[:share] for part, share in zip(members, _shares(sizes, count), strict=True)]).sort().values


def _select_released(labels: Tensor, name: str, num_classes: int, seed: int) -> Tensor:
    _checks.choice(name, [RELEASED], "labels")
    enough = len(labels) > _RELEASED_HIDDEN
    _checks.require(enough, "labels", f"a number, for fewer than {_RELEASED_HIDDEN + 1} training examples", name, "released needs all of MNIST")
    first = select_labels(labels[:_RELEASED_HIDDEN], _RELEASED_COUNT, num_classes, seed)
    return torch.cat((first, torch.arange(_RELEASED_HIDDEN, len(labels), device=labels.device)))


def _shares(sizes: list[int], count: int) -> list[int]:
    """Shares of `count` for classes of `sizes`, as equal as the sizes allow."""
    shares = [0] * len(sizes)
    while (left := count - sum(shares)) > 0:
        open_classes = [label for label, size in enumerate(sizes) if shares[label] < size]
        each, extra = divmod(left, len(open_classes))
        for place, label in enumerate(open_classes):
            shares[label] = min(sizes[label], shares[label] + each + (place < extra))
    return shares
