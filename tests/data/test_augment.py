"""Tests of random flips: their rate, and their independence of the batch."""

import math

import torch

from ddvi_fast import rng
from ddvi_fast.data import flip


def test_each_image_is_itself_or_its_mirror_and_half_are_mirrored():
    images = torch.arange(3 * 2 * 4, dtype=torch.float32).reshape(1, 3, 2, 4).repeat(4000, 1, 1, 1)
    out = flip(images, rng.Draws(seed=2))
    same, mirrored = (out == images).flatten(1).all(1), (out == images.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert abs(int(mirrored.sum()) - 2000) < 4 * math.sqrt(4000 / 4)


def test_an_image_has_its_own_fate_in_any_batch():
    images = torch.arange(60.0).reshape(20, 3)
    draws = rng.Draws(seed=8, first_index=1000)
    whole = flip(images, draws)
    parts = torch.cat([flip(images[:7], draws), flip(images[7:], draws.advance(7))])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, flip(images, draws.advance(20)))


def test_input_is_left_alone_and_dtype_kept():
    images = torch.arange(40, dtype=torch.uint8).reshape(10, 4)
    before = images.clone()
    assert flip(images, rng.Draws(seed=1)).dtype == torch.uint8
    assert torch.equal(images, before)
    assert flip(images[:0], rng.Draws(seed=1)).shape == (0, 4)


def test_refuses_a_batch_without_a_width(one_line):
    one_line(lambda: flip(torch.zeros(3), rng.Draws(seed=0)), r"images: expected shape")
