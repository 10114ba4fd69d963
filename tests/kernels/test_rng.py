"""Philox in Triton against `ddvi_fast.rng`."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from ddvi_fast import rng
from ddvi_fast.kernels import noise
from ddvi_fast.rng import Draws
from tests.operands import TRITON_DEVICE


def _numbers(draws: Draws, shape: tuple[int, ...], stream: int, offset: int = 0) -> list[torch.Tensor]:
    """Words, uniforms and normals."""
    state = draws.advance(-offset).state(torch.device(TRITON_DEVICE))
    return [noise.fill(kind, state, offset, shape, stream)[0].cpu() for kind in noise.KINDS]


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 16, 33])
def test_words_and_uniforms_are_those_of_the_package_bit_for_bit_and_normals_nearly(width):
    draws, shape, stream = Draws((1 << 64) - 5, (1 << 33) - 7), (3, 19, width), rng.CHAIN + 11
    words, uniforms, normals = _numbers(draws, shape, stream)
    assert torch.equal(words, rng.words(draws, shape, stream))
    assert torch.equal(uniforms, rng.uniform(draws, shape, stream))
    expected = rng.normal(draws, shape, stream)
    # Near a zero of the cosine the error is that of the angle, relative to the radius, which is at most about 6.
    assert ((normals - expected).abs() <= 4 * torch.finfo(torch.float32).eps * expected.abs() + 6e-7).all()


def test_an_offset_moves_the_first_index():
    draws = Draws(5, 1 << 41)
    for with_offset, without in zip(_numbers(draws, (7, 2), rng.START, offset=1 << 40), _numbers(draws, (7, 2), rng.START), strict=True):
        assert torch.equal(with_offset, without)


def test_normals_follow_their_law():
    _, uniforms, normals = _numbers(Draws(3), (1, 2000, 4), rng.NOISE)
    count = normals.numel()
    assert (uniforms > 0).all() and (uniforms <= 1).all()
    assert normals.mean().abs() < 4 / count**0.5
    assert (normals.var() - 1).abs() < 4 * (2 / count) ** 0.5
    assert (normals.pow(4).mean() - 3).abs() < 4 * (96 / count) ** 0.5
