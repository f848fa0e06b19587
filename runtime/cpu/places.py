"""Which CPU each thread of a team was last on, so that no two start a program on the same one.

Linux wakes a thread where it slept, and may leave two on one CPU beside an idle one for half a second, in which short
programs take twice their time. A thread that would wake beside another is sent elsewhere for that program, and is free
to go anywhere again behind it.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Sequence

_LIBC = ctypes.CDLL(None)


class Places:
    """Of `threads` threads, of which number 0 is the caller's. Nothing is done where CPUs are too few, or where the
    system is not Linux."""

    def __init__(self, threads: int) -> None:
        self.allowed: set[int] = os.sched_getaffinity(0) if sys.platform == "linux" else set()
        self.last: list[int | None] = [None] * threads
        self.enough = len(self.allowed) >= threads
        """each thread may have a CPU to itself (False where that is not known)"""
        self._active = self.enough and threads > 1
        self._sent = [False] * threads

    def spread(self, workers: Sequence[threading.Thread]) -> None:
        """Before the sleeping workers (threads 1 and on) are roused by thread 0."""
        if not self._active:
            return
        taken = {_LIBC.sched_getcpu()}
        for tid, worker in enumerate(workers, 1):
            at = self.last[tid]
            if at is None or at in taken:
                at = min(self.allowed - taken, default=None)
                if at is None:  # (thread 0 has been sent away from the CPUs that were allowed)
                    return
                self._sent[tid] = _move(worker.native_id, {at})
            taken.add(at)

    def note(self, tid: int) -> None:
        """A worker has finished a program; to be called by itself."""
        if self._active:
            self.last[tid] = int(_LIBC.sched_getcpu())
            if self._sent[tid]:
                self._sent[tid] = not _move(0, self.allowed)


def _move(thread: int | None, cpus: set[int]) -> bool:
    """Let a thread (0: this one) run on these CPUs only, if the system allows that."""
    try:
        os.sched_setaffinity(thread or 0, cpus)
    except OSError:
        return False
    return True
