"""A fixed team of threads that runs launch lists natively.

Thread 0 is the caller's; the others are Python threads that sleep between programs and spend a program in one
native call (ctypes releases the GIL). Starting a program is idempotent up to each thread's own ticket, which
native code writes when it has finished: so an interrupt at any moment leaves no thread alone in a barrier.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from tcomp.runtime.cpu.interpreter import CONTROL_BYTES, SPINS, SPINS_CROWDED, NativeLaunch, RunFunction
from tcomp.runtime.cpu.places import Places


@dataclass(frozen=True)
class NativeProgram:
    """A launch list in memory that native code reads. `keep` holds what the list points to."""

    launches: ctypes.Array[NativeLaunch]
    keep: tuple[object, ...]

    @property
    def count(self) -> int:
        return len(self.launches)


def native_program(launches: Sequence[tuple[int, Sequence[int]]]) -> NativeProgram:
    """Launches given as (function address, operand byte offsets)."""
    offsets = [(ctypes.c_int64 * max(1, len(o)))(*o) for _, o in launches]
    array = (NativeLaunch * len(launches))()
    for entry, (address, _), at in zip(array, launches, offsets, strict=True):
        entry.function = address
        entry.offsets = ctypes.addressof(at)
    return NativeProgram(array, tuple(offsets))


@dataclass(frozen=True)
class _Command:
    ticket: int
    program: NativeProgram
    times: int


class Team:
    """`threads` threads with their memory: arena, scratch (one address per thread), team region."""

    def __init__(
        self, run_address: int, rest_address: int, threads: int, arena: int, scratch: Sequence[int], team: int
    ) -> None:
        self.threads = threads
        self._run = RunFunction(run_address)
        self._arena, self._scratch, self._region = arena, list(scratch), team
        self._control_memory = ctypes.create_string_buffer(CONTROL_BYTES + 64)
        self._control = -(-ctypes.addressof(self._control_memory) // 64) * 64
        # One cache line per thread, so that finishing threads do not share one.
        self._done = (ctypes.c_int64 * (8 * threads))()
        self._rest = rest_address
        self._command: _Command | None = None
        self._closed = False
        self._wake = [threading.Lock() for _ in range(threads)]
        for lock in self._wake:
            lock.acquire()
        self._workers = [
            threading.Thread(target=self._work, args=(tid,), name=f"tcomp-{tid}", daemon=True)
            for tid in range(1, threads)
        ]
        self._places = Places(threads)
        self._spins = SPINS if self._places.enough else SPINS_CROWDED
        for worker in self._workers:
            worker.start()

    def run(self, program: NativeProgram, times: int = 0) -> None:
        """Run a program on all threads; returns when every launch has finished.

        `times` is the address of count + 1 cycle counts to fill, or 0. A KeyboardInterrupt during the program
        is raised after it, with the team ready for the next one.
        """
        if self._closed:
            raise RuntimeError("the team is closed")
        command = _Command(int(self._done[0]) + 1, program, times)
        interrupt: KeyboardInterrupt | None = None
        while int(self._done[0]) != command.ticket:
            try:
                self._command = command
                self._places.spread(self._workers)
                for tid in range(1, self.threads):
                    self._rouse(tid)
                self._enter(0, command)
            except KeyboardInterrupt as e:
                interrupt = e
        if interrupt is not None:
            raise interrupt

    def close(self) -> None:
        """Let the threads end; the memory may be freed afterwards."""
        if self._closed:
            return
        self._closed = True
        for tid in range(1, self.threads):
            self._rouse(tid)
        for worker in self._workers:
            worker.join()

    def _rouse(self, tid: int) -> None:
        with suppress(RuntimeError):  # already roused
            self._wake[tid].release()

    def _work(self, tid: int) -> None:
        while True:
            self._wake[tid].acquire()
            if self._closed:
                return
            command = self._command
            if command is not None and int(self._done[8 * tid]) != command.ticket:
                self._enter(tid, command)
                self._places.note(tid)

    def _enter(self, tid: int, command: _Command) -> None:
        if int(self._done[8 * tid]) == command.ticket:
            return
        done = ctypes.addressof(self._done) + 64 * tid
        self._run(
            ctypes.addressof(command.program.launches),
            command.program.count,
            self._arena,
            self._scratch[tid],
            self._region,
            tid,
            self.threads,
            self._control,
            self._rest,
            self._spins,
            command.times,
            done,
            command.ticket,
        )
