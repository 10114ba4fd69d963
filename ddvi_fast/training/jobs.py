"""Many runs side by side, one process and one thread each: these networks are too small to share a run over cores."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch

from ddvi_fast import _checks
from ddvi_fast.config.schema import Config
from ddvi_fast.training.run import Result, train_run

Given, Made = TypeVar("Given"), TypeVar("Made")


def run_all(configs: Sequence[Config], jobs: int | None = None) -> Iterator[tuple[int, Result]]:
    """Train all runs, at most `jobs` at a time (one a core if not given); yields `(number, result)` as they end.

    Raises:
        InputError: as `train_run`, from the first run that fails; those not yet started are dropped.
    """
    return in_processes(train_run, configs, jobs)


def in_processes(function: Callable[[Given], Made], items: Sequence[Given], jobs: int | None = None) -> Iterator[tuple[int, Made]]:
    """Call `function` on every item, at most `jobs` at a time in processes of one thread; yields `(number, value)` as they end.

    What a call raises is raised here, and those not yet started are dropped. The processes end with this one, however it ends.
    """
    jobs = max(1, len(os.sched_getaffinity(0))) if jobs is None else jobs
    _checks.require(jobs >= 1, "jobs", "at least 1", jobs)
    if not items:
        return
    # Forked children would share this process's thread pools, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(items)), context, initializer=_start_worker, initargs=(os.getpid(),)) as pool:
        numbers = {pool.submit(_in_one_thread, function, item): number for number, item in enumerate(items)}
        try:
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _in_one_thread(function: Callable[[Given], Made], item: Given) -> Made:
    """`function(item)`, whatever the call before it did to the process."""
    torch.set_num_threads(1)
    return function(item)


def _start_worker(parent: int) -> None:
    # A worker whose parent was killed would wait for work for ever, or go on writing into a folder that another call has taken up.
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
