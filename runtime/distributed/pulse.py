"""Whether other ranks live, told through the launcher's store: for waits in which nothing else would say so.

A message to a rank that is gone fails at once. NCCL's work on a GPU waits for it, and so would the host. So each rank
says every second that it is there, and who waits looks at the next one: when that one is silent, or any has failed, the
wait ends. The others then hear of this rank's end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tcomp.runtime.peers import PeerFailed

EVERY = 1.0
"""Seconds between signs of life, and between looks"""
SILENT = 10.0
"""Seconds without a sign after which a rank is gone: well within the 30 that torchrun gives others to end"""


class Pulse:
    """This rank's signs of life, until `close`; `failed` says whether some rank has said that it fails. A wait of more
    than `patience` seconds ends, too, whoever lives."""

    def __init__(
        self, store: Any, rank: int, size: int, failed: Callable[[], bool], patience: float = 1800.0,
        every: float = EVERY, silent: float = SILENT,
    ) -> None:  # fmt: skip
        self._store, self._rank, self._next, self._failed = store, rank, (rank + 1) % size, failed
        self._every, self._silent, self._patience = every, silent, patience
        self._seen, self._since, self._looked, self._begun = b"", 0.0, 0.0, 0.0
        self._end = threading.Event()
        self._beat(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def look(self) -> None:
        """PeerFailed where a rank has failed, the next one has been silent for long while we looked, or we have looked
        for longer than all have patience."""
        now = time.monotonic()
        if now < self._looked + self._every:
            return
        if now > self._looked + 3 * self._every:  # a new wait: what was before it says nothing
            self._since = self._begun = now
        self._looked = now
        try:
            key = f"alive/{self._next}"  # (to ask for what is not there would be a wait)
            failed, sign = self._failed(), self._store.get(key) if self._store.check([key]) else b""
        except (RuntimeError, ValueError) as e:
            raise PeerFailed(f"rank {self._rank} has lost the launcher", "look for its message") from e
        if sign != self._seen:
            self._seen, self._since = sign, now
        why = ""
        if failed:
            why = "it has failed"
        elif now > self._since + self._silent:
            why = f"rank {self._next} has been silent for {self._silent:.0f} seconds"
        elif now > self._begun + self._patience:
            why = f"it has not answered for {self._patience / 60:.0f} minutes"
        if why:
            raise PeerFailed(
                f"rank {self._rank} has lost another rank: {why}",
                "look for that one's message, or for a process that was killed (out of memory?)",
            )

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        count = 0
        with suppress(RuntimeError, ValueError):  # the launcher is gone: who waits finds that out
            while not self._end.wait(self._every):
                count += 1
                self._beat(count)

    def _beat(self, count: int) -> None:
        self._store.set(f"alive/{self._rank}", str(count))
