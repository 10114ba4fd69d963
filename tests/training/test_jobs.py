"""Tests of parallel runs: each process has one thread, whatever ran in it before."""

from __future__ import annotations

import torch

from ddvi_fast import data
from ddvi_fast.training.jobs import in_processes


def threads_before_and_with(number: int) -> tuple[int, int]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    return before, torch.get_num_threads()


def known_data_sets(_: int) -> set[str]:
    return {name for name, loader in data.DATASETS.items() if loader is not None}


def test_a_process_knows_the_registered_data_sets():
    import ddvi_fast.genomes  # noqa: F401

    assert {"digits", "1kg", "genomes"} <= dict(in_processes(known_data_sets, [0], jobs=1))[0]


def test_a_process_has_one_thread_whatever_ran_in_it_before():
    found = dict(in_processes(threads_before_and_with, [3, 2, 3], jobs=1))
    assert found == {0: (1, 3), 1: (1, 2), 2: (1, 3)}
