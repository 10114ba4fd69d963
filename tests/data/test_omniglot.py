"""Tests of the Omniglot reader on the real files and on small ones."""

import numpy as np
import pytest
import torch

from ddvi_fast import rng
from ddvi_fast.data import load, omniglot


def test_real_files_have_known_sizes_and_ink(shared_data):
    data = load("omniglot", data_dir=shared_data("omniglot/images_background.npz").parents[1], limit=300)
    assert data.train_inputs.shape == (300, 28, 28) and data.train_inputs.dtype == torch.uint8 and data.train_labels is None
    with np.load(shared_data("omniglot/images_background.npz")) as archive:
        ink = 1 - archive["images"].reshape(-1, 105, 105).mean((1, 2))
    found = data.inputs().mean((1, 2)).double()
    order = rng.permutation(rng.Draws(0).lane("split"), len(ink))[:300]
    assert np.abs(found.numpy() - ink[order.numpy()]).max() < 0.005  # averaging down keeps the ink
    assert abs(float(found.mean()) - ink.mean()) < 4 * ink.std() / 300**0.5  # the first ones are a sample of all
    assert data.inputs().min() == 0 and data.inputs().max() > 0.95
    # strokes are inside: the outermost pixels of most images are paper
    assert float((data.inputs()[:, 0] == 0).float().mean()) > 0.8


@pytest.fixture
def small(tmp_path):
    """A folder of archives with 3 and 2 characters of 4 drawings each; drawing i of a character is white but for rows 15 i to 15 i + 14."""
    (tmp_path / "omniglot").mkdir()
    for name, count in ((omniglot.TRAIN, 3), (omniglot.TEST, 2)):
        images = np.ones((count, 4, 105, 105), bool)
        for drawing in range(4):
            images[:, drawing, 15 * drawing : 15 * drawing + 15] = False
        np.savez(tmp_path / "omniglot" / name, images=images, labels=np.zeros((count, 4), np.int64))
    return tmp_path


def test_images_are_characters_by_drawings_and_strokes_are_one(small):
    data = load("omniglot", data_dir=small)
    assert data.name == "omniglot" and data.size("train") == 12 and data.size("test") == 8 and data.value_range == (0.0, 1.0)
    x, tests = data.inputs(), data.inputs(split="test")
    first = x.flatten(1).argmax(1).div(28, rounding_mode="floor")  # the first row of strokes tells the drawing
    assert first.tolist() != sorted(first.tolist())  # in a random order
    x, tests = x[first.argsort(stable=True)][::3], tests[tests.flatten(1).argmax(1).argsort(stable=True)][::2]
    assert torch.equal(x, tests)
    for drawing in range(4):
        rows = x[drawing].mean(1)
        assert torch.equal(x[drawing], rows[:, None].expand(28, 28))  # constant along each row
        # rows 15 d to 15 d + 14 of 105 are rows 4 d to 4 d + 3 of 28
        assert (rows[4 * drawing + 1 : 4 * drawing + 3] > 0.98).all() and rows[4 * drawing + 5 :].abs().sum() < 0.01
        assert abs(float(rows.sum()) - 4) < 0.2
    assert torch.equal(load("omniglot", data_dir=small / "omniglot").train_inputs, data.train_inputs)


def test_rescaling_averages_as_exact_integration_does(small):
    """Against the integral of the image under the triangle of twice a pixel's width, which antialiased bilinear interpolation is."""
    image = np.random.default_rng(1).random((105, 105)) < 0.3
    centres, scale = (np.arange(28) + 0.5) * 105 / 28, 105 / 28
    weights = np.maximum(0, 1 - np.abs(np.arange(105) + 0.5 - centres[:, None]) / scale)
    weights /= weights.sum(1, keepdims=True)
    expected = weights @ image @ weights.T
    found = omniglot._rescaled(torch.from_numpy(image)[None])[0].double() / 255
    assert np.abs(found.numpy() - expected).max() < 1 / 255


def test_missing_and_wrong_files_are_told(small, tmp_path, one_line):
    one_line(lambda: load("omniglot", data_dir=tmp_path / "nowhere"), "omniglot: expected the files images_background.npz and images_evaluation.npz")
    path = small / "omniglot" / omniglot.TEST
    whole = path.read_bytes()
    np.savez(path, images=np.zeros((2, 4, 28, 28), bool))
    one_line(lambda: load("omniglot", data_dir=small), "images: expected boolean of shape .*105, 105.*got bool of shape .2, 4, 28, 28")
    np.savez(path, images=np.zeros((2, 4, 105, 105), np.uint8))
    one_line(lambda: load("omniglot", data_dir=small), "images: expected boolean")
    np.savez(path, pictures=np.zeros(3))
    one_line(lambda: load("omniglot", data_dir=small), "expected the arrays images")
    for damaged in (whole[: len(whole) // 2], b"", b"text"):
        path.write_bytes(damaged)
        one_line(lambda: load("omniglot", data_dir=small), "expected a NumPy archive")
    path.unlink()
    one_line(lambda: load("omniglot", data_dir=small), "omniglot: expected the file images_evaluation.npz in")
