"""Memory that is used again, and never while somebody still looks at it."""

from __future__ import annotations

import threading

import torch

from ddvi_fast.native import memory

SHAPE = (700, 301)  # a size of its own, so that no other test's blocks count


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


def test_a_gradient_keeps_its_memory():
    weight = torch.zeros(SHAPE, requires_grad=True)
    gradient = memory.empty(*SHAPE).fill_(1)
    place = gradient.data_ptr()
    weight.backward(gradient)
    del gradient
    assert memory.empty(*SHAPE).fill_(7).data_ptr() != weight.grad.data_ptr() or weight.grad.data_ptr() != place
    assert (weight.grad == 1).all()


def test_small_and_huge_tensors_are_left_to_torch():
    before = {size: len(blocks) for size, blocks in memory._blocks.items()}
    assert memory.empty(3, 4).shape == (3, 4) and memory.empty(0, 5).numel() == 0
    assert memory.empty(memory.LARGEST // 4 + 1).numel() == memory.LARGEST // 4 + 1
    assert {size: len(blocks) for size, blocks in memory._blocks.items()} == before


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
