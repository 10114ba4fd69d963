"""Watchdog of several processes: ends a run whose peer was killed or hangs, and names that peer. A collective with it would never return.

A thread of every process writes a heartbeat and the current line of its training at short intervals; a process without a heartbeat for too
long is lost. If a process has heartbeats but does not reach a collective, that collective times out in the others, which then name its line.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import TracebackType

from torch.distributed import DistError

from ddvi_fast import distributed
from ddvi_fast.engine.non_finite import NonFinite
from ddvi_fast.engine.signals import Stopped

EXIT_PEER_LOST = 76
_BEATS = 5  # at least, within the timeout
_BEATS_OF_SILENCE = 3  # that suffice after a collective has failed
_BEATS_TO_READ = 10  # at most, that a process waits for the others to read why it ends
_SOON = 1.0  # seconds within which the failure of a process is reported


TOGETHER = (Stopped, NonFinite)  # raised by all processes at the same step
_GONE = "gone: "
_EXCHANGES = (os.path.join("torch", "distributed"), os.path.join("deepspeed", "comm"))  # folders of their code


class Watchdog:
    """Context in which this process sends heartbeats and watches those of the others; in one process it does nothing.

    Args:
        timeout: Time in seconds within which a process without a heartbeat is found lost, and the run is ended.
        end: Function that is called with the message from another thread. It must end this process, whose main thread may hang in a collective.
    """

    def __init__(self, timeout: float, end: Callable[[str], None] | None = None) -> None:
        self.timeout, self._end = timeout, end or _leave
        self._rank, self._interval = distributed.rank(), min(timeout / _BEATS, _SOON)
        self._patience = timeout - 2 * self._interval  # without a heartbeat, so that the run ends within the timeout
        self._done = threading.Event()
        self._beat_at = time.monotonic()
        self._threads: list[threading.Thread] = []
        self._trains, self._failed = threading.get_ident(), False

    def __enter__(self) -> Watchdog:
        if distributed.world_size() > 1:
            self._store = distributed.store("watchdog")
            self._store.set(f"name{self._rank}", f"rank {self._rank} (process {os.getpid()} on {socket.gethostname()})")
            self._store.set(str(self._rank), "0")
            distributed.wait_for_all()
            self._names = [self._store.get(f"name{rank}").decode() for rank in range(distributed.world_size())]
            self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._judge)]
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._threads:
            return
        if error is not None and _of_an_exchange(error):
            # It fails at once if a peer was killed; a few missing heartbeats show which, and the thread that sees it ends this process.
            self._failed, self._patience = True, _BEATS_OF_SILENCE * self._interval
            self._done.wait(2 * self._interval if _is_timeout(error) else self._patience + 3 * self._interval)
            self._blame()
        self._done.set()
        for thread in self._threads:
            thread.join(self._interval)
        if error is not None and not isinstance(error, TOGETHER):
            self._say_gone(" ".join(str(error).split()) or type(error).__name__)
        self._leave_store()

    def _say_gone(self, why: str) -> None:
        """Tell the others why this process ends, and wait until they have read it: the store may end with this process."""
        with contextlib.suppress(RuntimeError):
            self._store.set(str(self._rank), f"{_GONE}{why}")
            self._leave_store()
            self._store.wait([f"left{rank}" for rank in range(distributed.world_size())], timedelta(seconds=_BEATS_TO_READ * self._interval))

    def _leave_store(self) -> None:
        """Record that this process reads no more words of the others."""
        with contextlib.suppress(RuntimeError):
            self._store.set(f"left{self._rank}", "")

    def _rounds(self) -> Iterator[bool]:
        """Rounds at intervals until the watch ends; each yields whether this process was suspended since the last, so that none can be judged."""
        while True:
            since = time.monotonic()
            if self._done.wait(self._interval):
                return
            yield time.monotonic() - since > self._interval + self._patience / 2

    def _beat(self) -> None:
        """Write this process's heartbeat, and record the last ones of the others."""
        heard = dict.fromkeys(range(distributed.world_size()), ("", time.monotonic()))
        for beat, stood_still in enumerate(self._rounds(), 1):
            if stood_still:
                heard = {rank: (word, time.monotonic()) for rank, (word, _) in heard.items()}
            try:
                self._store.set(str(self._rank), f"{beat} {self._place()}")
                words = [self._store.get(str(rank)).decode() for rank in heard]
            except RuntimeError:  # the store ended with the process that held it; the other thread judges that
                return
            self._beat_at = time.monotonic()
            for rank, word in enumerate(words):
                if word != heard[rank][0]:
                    heard[rank] = (word, self._beat_at)
            gone = [
                f"{self._names[rank]} ended with an error: {word.removeprefix(_GONE)}" for rank, word in enumerate(words) if word.startswith(_GONE)
            ]
            if gone and not self._done.is_set():
                self._leave_store()
                self._end("; ".join(gone))
                return
            lost = [self._names[rank] for rank, (_, when) in heard.items() if self._beat_at - when > self._patience]
            if lost:
                self._lose(" and ".join(lost))
                return

    def _judge(self) -> None:
        """End the run if the store does not answer: the first process often holds it, and is then the lost one."""
        for stood_still in self._rounds():
            if stood_still:
                self._beat_at = time.monotonic()
            if time.monotonic() - self._beat_at > self._patience + self._interval:
                others = [name for rank, name in enumerate(self._names) if rank != self._rank]
                self._lose(self._names[0] if self._rank else " or ".join(others))
                return

    def _place(self) -> str:
        """The current line of training, ``file:line in function``; the empty string in a collective."""
        frame = sys._current_frames().get(self._trains)
        if frame is None or self._failed:
            return ""
        place = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        while frame is not None:
            if any(part in frame.f_code.co_filename for part in _EXCHANGES):
                return ""
            frame = frame.f_back
        return place

    def _blame(self) -> None:
        """End the run after a failed collective, naming the processes that have heartbeats but are not in a collective."""
        try:
            words = [self._store.get(str(rank)).decode() for rank in range(len(self._names))]
        except RuntimeError:  # the store is gone: the threads judge missing heartbeats
            return
        places = {name: word.partition(" ")[2] for name, word in zip(self._names, words, strict=True) if not word.startswith(_GONE)}
        late = [f"{name} did not reach the collective within {self.timeout:g} s (at {place})" for name, place in places.items() if place]
        if late:
            verdict = f"{'; '.join(late)}; aborting"
            self._done.set()
            self._say_gone(verdict)
            self._end(verdict)

    def _lose(self, who: str) -> None:
        if not self._done.is_set():
            self._end(f"{who} sent no heartbeat for {self._patience:g} s (killed, suspended, or its machine is unreachable); aborting")


def _of_an_exchange(error: BaseException) -> bool:
    """Whether a collective failed; gloo raises plain errors that name it."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _is_timeout(error: BaseException) -> bool:
    return "timed out" in str(error).lower()


def _leave(message: str) -> None:
    print(f"ddvi-fast: {message}", file=sys.stderr, flush=True)
    os._exit(EXIT_PEER_LOST)  # the main thread may never return from a collective
