"""Whether another rank lives, when nothing but its signs in the launcher's store says so."""

from __future__ import annotations

import time

import pytest

from tcomp.runtime.distributed.pulse import Pulse
from tcomp.runtime.peers import PeerFailed


class Store:
    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        return self.values[key]


def watched(pulse: Pulse, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pulse.look()
        time.sleep(0.005)


def test_a_rank_that_is_silent_is_gone_and_one_that_fails_at_once() -> None:
    store, failed = Store(), []
    ranks = [Pulse(store, r, 3, lambda: bool(failed), every=0.02, silent=0.25) for r in range(3)]
    watched(ranks[0], 0.4)
    ranks[1].close()
    time.sleep(0.3)
    watched(ranks[2], 0.05)  # it looks at rank 0
    with pytest.raises(PeerFailed, match="rank 0 has lost another rank: rank 1 has been silent"):
        watched(ranks[0], 5)
    failed.append(1)
    with pytest.raises(PeerFailed, match="it has failed"):
        watched(ranks[2], 5)
    for pulse in ranks:
        pulse.close()


def test_time_in_which_nobody_looked_does_not_count() -> None:
    store = Store()
    pulse = Pulse(store, 0, 2, lambda: False, every=0.02, silent=0.2)
    pulse.look()  # the other has not begun yet
    store.set("alive/1", "0")
    time.sleep(0.03)
    pulse.look()
    time.sleep(0.3)
    pulse.look()  # the sign is the same: it may come a moment later
    pulse.close()


def test_nobody_waits_for_ever_for_one_that_lives() -> None:
    store = Store()
    ranks = [Pulse(store, r, 2, lambda: False, patience=0.3, every=0.02) for r in range(2)]
    watched(ranks[0], 0.2)
    time.sleep(0.2)
    watched(ranks[0], 0.2)  # another wait
    with pytest.raises(PeerFailed, match="has not answered for 0 minutes"):
        watched(ranks[0], 5)
    for pulse in ranks:
        pulse.close()


def test_a_launcher_that_is_gone_ends_the_wait() -> None:
    store = Store()
    store.set("alive/1", "0")
    pulse = Pulse(store, 0, 2, lambda: False, every=0.01)

    def gone(key: str) -> bytes:
        raise RuntimeError("Connection reset by peer")

    store.get = gone  # type: ignore[method-assign]
    with pytest.raises(PeerFailed, match="has lost the launcher"):
        watched(pulse, 5)
    pulse.close()
