"""Parallel runs: on a GPU in one process, otherwise each in a process with one thread, as the networks are too small for several cores."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch

from ddvi_fast import _checks, data
from ddvi_fast.recipes.build import registered_modules
from ddvi_fast.training.turns import in_turns

Given, Made = TypeVar("Given"), TypeVar("Made")


def side_by_side(
    function: Callable[[Given], Made], items: Sequence[Given], jobs: int | None = None, device: str = "cpu"
) -> Iterator[tuple[int, Made]]:
    """Call `function` on every item: on a GPU in one process (`turns.in_turns`), otherwise in several (`in_processes`); arguments are theirs."""
    return in_turns(function, items, jobs, torch.device(device)) if device.startswith("cuda") else in_processes(function, items, jobs)


def in_processes(function: Callable[[Given], Made], items: Sequence[Given], jobs: int | None = None) -> Iterator[tuple[int, Made]]:
    """Call `function` on every item in processes with one thread each.

    Args:
        function: Function of one item; it must be picklable.
        items: The items.
        jobs: Number of processes; None for one per core.

    Yields:
        Number and value of each item, in the order in which the calls end.

    An exception of a call is raised here, and calls that have not started are dropped. The processes end when this one ends.
    """
    jobs = max(1, len(os.sched_getaffinity(0))) if jobs is None else jobs
    _checks.require(jobs >= 1, "jobs", "at least 1", jobs)
    if not items:
        return
    # Forked children would share this process's thread pools, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    modules = [*data.registered_modules(), *registered_modules()]
    with ProcessPoolExecutor(min(jobs, len(items)), context, initializer=_start_worker, initargs=(os.getpid(), modules)) as pool:
        numbers = {pool.submit(_in_one_thread, function, item): number for number, item in enumerate(items)}
        try:
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _in_one_thread(function: Callable[[Given], Made], item: Given) -> Made:
    """Call `function(item)` with one thread, whatever an earlier call set."""
    torch.set_num_threads(1)
    return function(item)


def _start_worker(parent: int, modules: Sequence[str]) -> None:
    for name in modules:  # the data sets and recipes of the parent
        importlib.import_module(name)
    # Without this, a worker whose parent was killed would wait forever, or write into a folder that another call uses.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
