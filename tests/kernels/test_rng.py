"""Philox in Triton against `ddvi_fast.rng`."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from ddvi_fast import rng
from ddvi_fast.kernels import rng as kernel_rng
from ddvi_fast.rng import Draws

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def _fill(out_words, out_uniforms, out_normals, state, offset, rows, rows_per_sample, width, stream, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    index = kernel_rng.draw_index(state, offset, row, rows_per_sample)
    seed = tl.load(state)
    place = row[:, None] * width + columns[None, :]
    mask = (row < rows)[:, None] & (columns < width)[None, :]
    tl.store(out_words + place, kernel_rng.word_tile(index, stream, seed, ROWS, WIDTH).to(tl.int64), mask)
    tl.store(out_uniforms + place, kernel_rng.uniform_tile(index, stream, seed, ROWS, WIDTH), mask)
    tl.store(out_normals + place, kernel_rng.normal_tile(index, stream, seed, ROWS, WIDTH), mask)


def _numbers(draws: Draws, shape: tuple[int, ...], stream: int, offset: int = 0) -> tuple[torch.Tensor, ...]:
    seed = draws.seed - (draws.seed >> 63 << 64)
    state = torch.tensor([seed, draws.first_index - offset], dtype=torch.int64, device=DEVICE)
    words = torch.empty(shape, dtype=torch.int64, device=DEVICE)
    uniforms, normals = torch.empty(shape, device=DEVICE), torch.empty(shape, device=DEVICE)
    rows = words[..., 0].numel()
    grid = (triton.cdiv(rows, 16),)
    _fill[grid](words, uniforms, normals, state, offset, rows, shape[-2], shape[-1], stream, 16, triton.next_power_of_2(shape[-1]))
    return words.cpu(), uniforms.cpu(), normals.cpu()


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
