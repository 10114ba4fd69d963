"""The digits of scikit-learn: 1,797 images of 8 x 8 pixels with values 0 to 16, which need no download."""

from __future__ import annotations

import numpy as np

from ddvi_fast.data.dataset import Dataset, from_arrays

TEST_SIZE = 397


def load_digits(seed: int = 0) -> Dataset:
    """Load 1,400 training and 397 test digits, split by `seed`: uint8 [N, 8, 8], as floats in [0, 1].

    Example:
        >>> data = load_digits()
        >>> data.size("train"), data.size("test"), data.input_shape, data.value_range
        (1400, 397, (8, 8), (0.0, 1.0))
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    names = [str(digit) for digit in range(10)]
    return from_arrays(
        "digits", bunch.images.astype(np.uint8), bunch.target, test_size=TEST_SIZE, seed=seed, num_classes=10,
        scale=1 / 16, value_range=(0.0, 1.0), class_names=names,
    )  # fmt: skip
