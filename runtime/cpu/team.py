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

import numpy as np
from numpy.typing import NDArray

from tcomp.machine.cpu import helpers_of
from tcomp.runtime.cpu.interpreter import JOIN, SPINS, SPINS_CROWDED, NativeLaunch, RunFunction, control_bytes
from tcomp.runtime.cpu.places import Places

Rows = NDArray[np.int64]
FIELDS = tuple(field[0] for field in NativeLaunch._fields_)


@dataclass(frozen=True)
class Native:
    """A launch as native code takes it (`NativeLaunch` says what the numbers mean)."""

    function: int
    offsets: Sequence[int]
    team: int = 0
    parts: int = 0
    first: int = 0
    last: int = 0
    needs: int = 0


@dataclass(frozen=True)
class NativeProgram:
    """A launch list in memory that native code reads: a row for each, whose columns are a `NativeLaunch`'s fields. At
    launch `fork` some threads turn to the list `side`, if it has anything. `keep` holds what the lists point to."""

    launches: Rows
    side: Rows
    fork: int
    keep: tuple[object, ...]

    @property
    def count(self) -> int:
        return len(self.launches)


def native_program(launches: Sequence[Native], side: Sequence[Native] = (), fork: int = 0) -> NativeProgram:
    """The lists, as native code reads them."""
    kept: dict[tuple[int, ...], ctypes.Array[ctypes.c_int64]] = {}

    def row(x: Native) -> tuple[int, ...]:
        at = tuple(x.offsets)
        if at not in kept:
            kept[at] = (ctypes.c_int64 * max(1, len(at)))(*at)
        return x.function, ctypes.addressof(kept[at]), x.team, 0, x.parts, x.first, x.last, x.needs

    first, second = (
        np.array([row(x) for x in entries], np.int64).reshape(-1, len(FIELDS)) for entries in (launches, side)
    )
    return NativeProgram(first, second, fork, tuple(kept.values()))


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
        self.helpers = helpers_of(threads)
        """Threads that turn to a second list."""
        self._run = RunFunction(run_address)
        self._arena, self._scratch, self._region = arena, list(scratch), team
        self._control_memory = ctypes.create_string_buffer(control_bytes(self.helpers) + 64)
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
        self.spread = self._places.enough
        """each thread may have a core to itself"""
        self._spins = SPINS if self.spread else SPINS_CROWDED
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
        ctypes.memset(self._control + JOIN, 0, control_bytes(self.helpers) - JOIN)
        ctypes.c_int64.from_address(self._control + JOIN).value = -1
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

    @property
    def finished(self) -> int:
        """How many programs have run to their end."""
        return int(self._done[0])

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
        done, program = ctypes.addressof(self._done) + 64 * tid, command.program
        self._run(
            program.launches.ctypes.data,
            program.count,
            self._arena,
            self._scratch[tid],
            self._region,
            tid,
            self.threads,
            self._control,
            self._rest,
            self._spins,
            program.side.ctypes.data,
            len(program.side),
            program.fork if len(program.side) else -1,
            self.helpers if len(program.side) else 0,
            command.times,
            done,
            command.ticket,
        )
