"""The watch over peers, with two of them in one process."""

from __future__ import annotations

import threading
import time

import pytest
from torch import distributed as dist

from ddvi_fast import distributed
from ddvi_fast.engine import watchdog
from ddvi_fast.engine.watchdog import Watchdog

TIMEOUT = 1.0


@pytest.fixture
def pair(monkeypatch):
    """This process as rank 0 of two, and the words that both share."""
    shared = dist.HashStore()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(distributed, "store", lambda name: shared)
    monkeypatch.setattr(distributed, "wait_for_all", lambda: None)
    shared.set("name1", "rank 1 (process 7 on there)")
    shared.set("1", "0")
    return shared


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time, which goes on only where a test says so: on a busy machine nobody is silent because it had to wait for a processor."""
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def watch(pair, clock, seconds: float, say=None) -> list[str]:
    """What the watch has to say after so long, while the peer says `say(n)`."""
    ended = []
    with Watchdog(TIMEOUT, ended.append):
        until, number = clock[0] + seconds, 0
        while clock[0] < until and not ended:
            number += 1
            if say is not None:
                pair.set("1", say(number))
            time.sleep(0.02)
            clock[0] += 0.02
    return ended


def test_a_peer_that_speaks_is_left_alone(pair, clock):
    assert watch(pair, clock, 2.5 * TIMEOUT, say=str) == []


def test_a_silent_peer_is_named(pair, clock):
    (message,) = watch(pair, clock, 3000 * TIMEOUT)
    assert message.startswith("rank 1 (process 7 on there) sent no heartbeat for 0.6 s")


def test_a_peer_that_has_ended_is_quoted(pair, clock):
    (message,) = watch(pair, clock, 3000 * TIMEOUT, say=lambda number: "gone: no such file")
    assert message == "rank 1 (process 7 on there) ended with an error: no such file"


def test_a_failure_is_told_to_the_others(pair):
    with pytest.raises(KeyError), Watchdog(TIMEOUT, lambda message: None):
        raise KeyError("shelf")
    assert pair.get("0") == b"gone: 'shelf'"


def test_a_failure_waits_until_the_others_have_read_it(pair, monkeypatch):
    monkeypatch.setattr(watchdog, "_BEATS_TO_READ", 10_000)  # a busy machine may be slow to read
    read = []

    def peer():
        while not pair.get("0").startswith(b"gone: "):
            time.sleep(0.01)
        time.sleep(3 * TIMEOUT / 5)  # three heartbeats
        read.append(pair.get("0"))
        pair.set("left1", "")

    thread = threading.Thread(target=peer)
    thread.start()
    with pytest.raises(KeyError), Watchdog(TIMEOUT, lambda message: None):
        raise KeyError("shelf")
    assert read == [b"gone: 'shelf'"]
    thread.join()


def test_a_process_that_was_held_up_itself_blames_nobody(pair, clock):
    """The clock leaps by ten time-outs, as it does for a process that was stopped and goes on."""
    ended: list[str] = []
    with Watchdog(TIMEOUT, ended.append):
        for number in range(100):
            pair.set("1", str(number))
            clock[0] += 10 * TIMEOUT if number == 50 else 0.02
            time.sleep(0.02)
    assert ended == []
