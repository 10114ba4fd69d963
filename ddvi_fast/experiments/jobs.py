"""Many runs side by side, one process and one thread each: these networks are too small to share a run over cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from ddvi_fast import _checks
from ddvi_fast.experiments.config import Config
from ddvi_fast.experiments.run import Result, train_run


def run_all(configs: Sequence[Config], jobs: int | None = None) -> Iterator[tuple[int, Result]]:
    """Train all runs, at most `jobs` at a time (one a core if not given); yields `(number, result)` as they end.

    Raises:
        InputError: as `train_run`, from the first run that fails; those not yet started are dropped.
    """
    jobs = max(1, len(os.sched_getaffinity(0))) if jobs is None else jobs
    _checks.require(jobs >= 1, "jobs", "at least 1", jobs)
    # Forked children would share this process's thread pools, which do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(configs)), context, initializer=_single_thread) as pool:
        numbers = {pool.submit(train_run, config): number for number, config in enumerate(configs)}
        try:
            for future in as_completed(numbers):
                yield numbers[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _single_thread() -> None:
    torch.set_num_threads(1)
