"""Reuse of CPU memory, never while a tensor still uses it."""

from __future__ import annotations

import threading

import torch

from ddvi_fast import dense, networks, rng
from ddvi_fast.native import memory
from ddvi_fast.rng import Draws

SHAPE = (700, 301)  # a size of its own, so that no other test's blocks count
SIZE = 4 * SHAPE[0] * SHAPE[1]


def test_a_block_comes_back_once_nothing_stands_in_it():
    first = memory.empty(*SHAPE)
    view, place = first[3:, 2:], first.data_ptr()
    second = memory.empty(*SHAPE)
    assert second.data_ptr() != place and second.shape == SHAPE and second.is_contiguous()
    del first
    assert memory.empty(*SHAPE).data_ptr() != place, "a view keeps its memory"
    del view
    assert memory.empty(*SHAPE).data_ptr() == place
    assert place % 64 == 0


def test_autograd_takes_gradients_as_they_are():
    """A copy would be in new memory from the system."""
    linear = networks.linear(SHAPE[1], SHAPE[0], Draws(0), 0)
    x = rng.normal(Draws(1), (3, SHAPE[1]), 0)
    idle = memory.empty(*SHAPE)
    place = idle.data_ptr()
    del idle
    dense.dense(linear, x).sum().backward()
    assert linear.weight.grad.data_ptr() == place
    torch.testing.assert_close(linear.weight.grad, x.sum(0).expand(SHAPE))


def test_idle_memory_goes_back_on_request():
    used, idle = memory.empty(*SHAPE), memory.empty(*SHAPE)
    del idle
    assert memory._idle[SIZE]
    memory.release()
    assert not memory._idle[SIZE]
    place = used.fill_(3).data_ptr()
    del used
    assert memory.empty(*SHAPE).data_ptr() == place, "memory in use is kept"


def test_small_and_huge_tensors_are_left_to_torch():
    assert memory.empty(3, 4).shape == (3, 4) and memory.empty(0, 5).numel() == 0
    huge = memory.LARGEST // 4 + 1
    assert memory.empty(huge).numel() == huge
    assert not memory._idle.keys() & {48, 0, 4 * huge}


def test_threads_never_share_a_block():
    torch.zeros(1)
    wrong, start = [], threading.Barrier(4)

    def work(number):
        start.wait()
        for _ in range(200):
            mine = memory.empty(*SHAPE)
            mine[0, 0] = number
            if mine[0, 0] != number:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
