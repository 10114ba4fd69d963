"""Many runs side by side on one GPU, in one process: each in a thread and on a stream of its own, and one thread at work at a time.

A run gives the others their turn after a few steps of training. Its steps are recorded and replayed, so that the device works on the steps of all
runs at once while the host asks for the next ones. The data are on the device once. Nothing else is shared, and no two threads run Python code at
the same time, so that the runs have the results of runs one after the other.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch

from ddvi_fast import _checks
from ddvi_fast.data import Dataset
from ddvi_fast.engine.engine import Engine
from ddvi_fast.engine.loop import Callback
from ddvi_fast.engine.signals import StopRequest

Given = TypeVar("Given")
Made = TypeVar("Made")
_Ended = tuple[int, Any, BaseException | None]  # number of an item, and the value of its call or the exception

STEPS = 4  # of training in a turn
RUNS = 8  # at a time, by default


class _Dropped(BaseException):
    """Ends a run because another one has failed."""


class Turns:
    """Who is at work: threads wait in the order in which they came, and one at a time works."""

    def __init__(self) -> None:
        self._lock, self._waiting, self._free = threading.Lock(), deque[threading.Semaphore](), True

    def take(self) -> None:
        """Wait for this thread's turn."""
        mine = threading.Semaphore(0)
        with self._lock:
            at_once, self._free = self._free, False
            if not at_once:
                self._waiting.append(mine)
        if not at_once:
            mine.acquire()

    def give(self) -> None:
        """End this thread's turn."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free = True

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Context of a turn."""
        self.take()
        try:
            yield
        finally:
            self.give()


class TurnTaking(Callback):
    """Gives the other runs their turn after every few steps."""

    def __init__(self, turns: Turns) -> None:
        self._turns, self.dropped, self.away = turns, False, 0.0

    def after_step(self, step: int, engine: Engine) -> None:
        if self.dropped:
            raise _Dropped
        if step % STEPS == 0:
            before = time.process_time()
            self._turns.give()
            self._turns.take()
            self.away += time.process_time() - before


_here = threading.local()  # the `TurnTaking` of the run in this thread
_data: dict[Any, Dataset] | None = None  # data sets that runs share, by their settings


def callbacks() -> list[TurnTaking]:
    """The callback of the training in this thread: none for a run by itself."""
    mine = getattr(_here, "taking", None)
    return [] if mine is None else [mine]


def seconds_of_others() -> float:
    """Processor seconds that passed while the run in this thread waited for its turn."""
    return sum(each.away for each in callbacks())


def shared_data(settings: Any, load: Callable[[], Dataset]) -> Dataset:
    """The data set that `load` makes: between runs side by side the same one for the same settings."""
    if _data is None:
        return load()
    key = repr(settings)
    if key not in _data:
        _data[key] = load()
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()  # before the streams of the others read them
    return _data[key]


def in_turns(function: Callable[[Given], Made], items: Sequence[Given], jobs: int | None, device: torch.device) -> Iterator[tuple[int, Made]]:
    """Call `function` on every item, `jobs` calls side by side on a device.

    Args:
        function: Function of one item, which trains a run.
        items: The items.
        jobs: Number of calls at a time; None for eight.
        device: Device of the runs.

    Yields:
        Number and value of each item, in the order in which the calls end.

    An exception of a call is raised here after the other calls have ended, each after its current step; calls that have not started are dropped.
    A signal stops every call, as it stops a single run.
    """
    global _data
    jobs = RUNS if jobs is None else jobs
    _checks.require(jobs >= 1, "jobs", "at least 1", jobs)
    turns, waiting, ended = Turns(), deque(enumerate(items)), queue.SimpleQueue[_Ended]()
    taking = [TurnTaking(turns) for _ in range(min(jobs, len(items)))]
    _data = {}

    def work(mine: TurnTaking) -> None:
        with turns.turn(), on_stream(device):
            _here.taking = mine
            while waiting and not mine.dropped:
                number, item = waiting.popleft()
                try:
                    ended.put((number, function(item), None))
                except BaseException as error:  # raised by the caller's thread
                    ended.put((number, None, error))

    threads = [threading.Thread(target=work, args=(mine,), daemon=True) for mine in taking]
    failure: BaseException | None = None
    try:
        with StopRequest():
            with turns.turn():  # they begin in order
                for thread in threads:
                    thread.start()
            for _ in items:
                number, made, error = _next(ended, threads)
                if error is not None:
                    failure = error
                    break
                with turns.turn():
                    yield number, made
    finally:
        for mine in taking:
            mine.dropped = True
        waiting.clear()
        for thread in threads:
            thread.join()
        _data = None
    if failure is not None:
        raise failure


def _next(ended: queue.SimpleQueue[_Ended], threads: Sequence[threading.Thread]) -> _Ended:
    """What ends next; waiting in short pieces lets signals through."""
    while True:
        try:
            return ended.get(timeout=0.5)
        except queue.Empty:
            at_work = any(thread.is_alive() for thread in threads) or not ended.empty()
            _checks.require(at_work, "jobs", "runs that end", "threads that ended without a result")


def on_stream(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which work on a GPU has a stream of its own, behind what was asked of the device before."""
    if device.type != "cuda":
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)
