"""mbarrier objects of a wave: phases, arrivals, transaction bytes, and the copies that will report to them.

A phase completes when no arrival and no byte is outstanding (PTX ISA 9.7.13.15). Copies land as late as they may:
only when nothing else in the wave can run and some lane waits for the phase that they complete. A wait on a
phase that is not complete first gives false, as it may on hardware, and suspends the lane the second time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tcomp.runtime.vgpu.lanes import Array, distinct, indices, some
from tcomp.runtime.vgpu.machine import Machine, WaveState
from tcomp.runtime.vgpu.ptx import Instr

MOST = (1 << 20) - 1
KIND = "mbarrier misuse"
PATIENCE = 32  # waits that time out one after another, with no change anywhere, before it is a deadlock
_TAG = 0x2A5 << 53


@dataclass
class Flight:
    """A copy, or the arrival that ends one, that has yet to report to an mbarrier."""

    instr: Instr
    lanes: Array
    tx: int
    arrivals: int
    land: Callable[[], None]
    over: Callable[[], bool] = lambda: False
    """is what it reports known to be complete, though nobody waited for it here?"""


class Mbarriers(WaveState):
    def __init__(self, m: Machine) -> None:
        self.m = m
        self.waiting: Array = np.full(m.lanes, -1, np.int64)  # the object that a suspended lane waits for
        self.tried: Array = np.full(m.lanes, -1, np.int64)  # object and phase of a lane's last failed wait
        self.wanted: Array = np.zeros(m.lanes, np.int64)  # the parity it waits for
        self.start()
        m.parts.append(self)

    def start(self) -> None:
        self.number = 0
        self._allocate(64)
        self.flights: dict[int, list[Flight]] = {}
        self.waiting[:] = -1
        self.tried[:] = -1
        self.timeouts, self.last_progress = 0, -1

    def _allocate(self, n: int) -> None:
        def grown(name: str, *shape: int) -> Array:
            new = np.zeros((*shape[:-2], n, *shape[-1:]) if len(shape) > 1 else n, np.int64)
            if self.number:
                old = getattr(self, name)
                if len(shape) > 1:
                    new[:, : self.number] = old[:, : self.number]
                else:
                    new[: self.number] = old[: self.number]
            return new

        width = self.m.order.width
        self.place: Array = grown("place", 0)  # byte in the shared segment
        self.phase: Array = grown("phase", 0)
        self.count: Array = grown("count", 0)  # arrivals expected in each phase
        self.pending: Array = grown("pending", 0)
        self.tx: Array = grown("tx", 0)
        self.observed: Array = grown("observed", 0)  # the newest phase known to have begun by a wait
        self.collected: Array = grown("collected", 2, 0, width)  # clock rows released in this phase
        self.joined: Array = grown("joined", 2, 0, width)  # and in the one before

    def table(self) -> Array:
        watch = self.m.shared.watched()
        if watch.barriers is None:
            watch.barriers = np.zeros(len(self.m.shared.data) // 8 + 1, np.int32)
        return watch.barriers

    # --- life
    def init(self, i: Instr, lanes: Array, starts: Array, counts: Array) -> None:
        m, table = self.m, self.table()
        wrong = (counts < 1) | (counts > MOST)
        if some(wrong):
            m.finding(KIND, i, lanes[wrong], f"a count of {int(counts[wrong][0])}: it must be 1 to {MOST}")
        live = table[starts >> 3] > 0
        if some(live):
            m.finding(KIND, i, lanes[live], "initialises a live mbarrier: mbarrier.inval it first",
                      self._offset(starts[live]))  # fmt: skip
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            if self.number == len(self.phase):
                self._allocate(2 * self.number)
            n = self.number
            self.number += 1
            table[start >> 3] = n + 1
            self.place[n], self.phase[n], self.count[n], self.pending[n] = start, 0, count, count
            self.tx[n] = self.observed[n] = 0
            self.collected[:, n] = self.joined[:, n] = 0
        m.shared.init.view(np.uint64)[starts >> 3] = 0x0101010101010101
        m.progress += 1

    def invalidate(self, i: Instr, lanes: Array, objects: Array) -> None:
        table = self.table()
        for n in distinct(objects).tolist():
            if self.flights.pop(n, None):
                self.m.finding(KIND, i, lanes[objects == n], "mbarrier.inval while copies that report to it are in "
                               "flight", self._offset(self.place[n : n + 1]))  # fmt: skip
            if some(self.waiting == n):
                self.m.finding(KIND, i, lanes[objects == n], "mbarrier.inval while threads wait on it")
            table[int(self.place[n]) >> 3] = 0

    def find(self, i: Instr, lanes: Array, starts: Array) -> tuple[Array, Array]:
        """(positions that have a live mbarrier, its number); reports the others."""
        found = self.table()[starts >> 3] - 1
        dead = found < 0
        if some(dead):
            self.m.finding(KIND, i, lanes[dead], "there is no initialised mbarrier here", self._offset(starts[dead]))
        at = indices(~dead)
        return at, found[at]

    def _offset(self, starts: Array) -> int:
        return int(starts[0]) % max(self.m.shared_stride, 1)

    # --- arrivals and bytes
    def expect(self, i: Instr, lanes: Array, objects: Array, tx: Array) -> None:
        np.add.at(self.tx, objects, tx)
        over = np.abs(self.tx[objects]) > MOST
        if some(over):
            text = f"a transaction count of {int(self.tx[objects][over][0])} bytes: the limit is {MOST}"
            self.m.finding(KIND, i, lanes[over], text)
        self.m.progress += 1

    def complete_tx(self, i: Instr, lanes: Array, objects: Array, tx: Array) -> None:
        self.expect(i, lanes, objects, -tx)
        self.turn(i, lanes, distinct(objects))

    def arrive(
        self, i: Instr, lanes: Array, objects: Array, counts: Array, relaxed: bool = False, drop: bool = False,
        complete: bool = True,
    ) -> Array:  # fmt: skip
        """Arrivals of `lanes`; gives each one's state: the phase and the arrivals outstanding before it."""
        m = self.m
        bad = (counts < 1) | (counts > MOST)
        if some(bad):
            m.finding(KIND, i, lanes[bad], f"an arrival count of {int(counts[bad][0])}: it must be 1 to {MOST}")
        self._release(lanes, objects, relaxed)
        states = np.zeros(len(lanes), np.uint64)
        unique, inverse = np.unique(objects, return_inverse=True)
        total = np.bincount(inverse, counts).astype(np.int64)
        fits = total <= self.pending[unique]
        simple = fits[inverse]
        if some(simple):
            at = indices(simple)
            those = unique[fits]
            self._check_observed(i, lanes, objects, those)
            before = self.pending[objects[at]]
            states[at] = (_TAG | before << 32 | self.phase[objects[at]]).astype(np.uint64)
            self.pending[those] -= total[fits]
            if drop:
                self.count[those] -= total[fits]
            self._check_complete(i, lanes, objects, those, complete)
            self.turn(i, lanes, those)
        for k in indices(~simple).tolist():
            states[k] = self._arrive_one(i, lanes[k : k + 1], int(objects[k]), int(counts[k]), drop, complete)
        m.progress += 1
        return states

    def _arrive_one(self, i: Instr, lane: Array, n: int, count: int, drop: bool, complete: bool) -> int:
        one = np.array([n])
        self._check_observed(i, lane, one, one)
        state = _TAG | int(self.pending[n]) << 32 | int(self.phase[n])
        if count > self.pending[n]:
            self.m.finding(KIND, i, lane, f"arrives {count} times in a phase that has {int(self.pending[n])} arrivals "
                           f"outstanding of {int(self.count[n])}", self._offset(self.place[one]))  # fmt: skip
            count = int(self.pending[n])
        self.pending[n] -= count
        if drop:
            self.count[n] -= count
        self._check_complete(i, lane, one, one, complete)
        self.turn(i, lane, one)
        return state

    def _check_observed(self, i: Instr, lanes: Array, objects: Array, those: Array) -> None:
        new = those[(self.pending[those] == self.count[those]) & (self.observed[those] < self.phase[those])]
        if len(new):
            n = int(new[0])
            self.m.finding(KIND, i, lanes[np.isin(objects, new)], f"arrives in phase {int(self.phase[n])} although no "
                           "thread has waited for the phase before it", self._offset(self.place[new]))  # fmt: skip
            self.observed[new] = self.phase[new]

    def _check_complete(self, i: Instr, lanes: Array, objects: Array, those: Array, complete: bool) -> None:
        if complete:
            return
        done = those[self.pending[those] == 0]
        if len(done):
            self.m.finding(KIND, i, lanes[np.isin(objects, done)],
                           "an arrival with .noComplete completes the phase")  # fmt: skip

    def _release(self, lanes: Array, objects: Array, relaxed: bool) -> None:
        m = self.m
        pairs, pair = np.unique(lanes >> 5 << 32 | objects, return_inverse=True)
        first, of = pairs >> 32 << 5, pairs & 0xFFFFFFFF
        rows = m.order.rows(m.team[first], m.place[first], m.now, relaxed, (pair, lanes))
        m.order.collect(self.collected, of, rows)
        if m.ranks > 1 and not relaxed:
            for b in distinct(m.block_of_lane[first]).tolist():
                m.fences.setdefault(b, []).append(m.now)
        m.now += 1

    def turn(self, i: Instr, lanes: Array, those: Array) -> None:
        """Begins the next phase of those objects that have nothing outstanding."""
        done = those[(self.pending[those] == 0) & (self.tx[those] == 0)]
        for n in done.tolist():
            if self.flights.get(n):
                text = (f"phase {int(self.phase[n])} completes although copies that report to it are in flight: "
                        "mbarrier.expect_tx does not count their bytes")  # fmt: skip
                self.m.finding(KIND, i, lanes[:1], text, self._offset(self.place[n : n + 1]))
        self._advance(done)

    def _advance(self, done: Array) -> None:
        if not len(done):
            return
        self.phase[done] += 1
        self.pending[done] = self.count[done]
        self.joined[:, done] = self.collected[:, done]
        self.collected[:, done] = 0
        self.m.progress += 1

    # --- copies
    def report_later(self, n: int, flight: Flight) -> None:
        self.flights.setdefault(n, []).append(flight)
        self.m.progress += 1

    def settle(self) -> None:
        """Nothing can run: the copies land whose end completes a phase that someone waits for."""
        for n in distinct(self.waiting[self.waiting >= 0]).tolist():
            flights = self.flights.get(n, [])
            later: list[Flight] = []
            while len(flights) > 1 and sum(f.arrivals for f in flights) > self.pending[n]:
                later.insert(0, flights[-1])  # belongs to a later phase
                flights = flights[:-1]
            tx, arrivals = sum(f.tx for f in flights), sum(f.arrivals for f in flights)
            if not flights or self.pending[n] != arrivals or self.tx[n] > tx:
                continue
            if self.tx[n] < tx:
                f = flights[-1]
                self.m.finding(KIND, f.instr, f.lanes, f"copies bring {tx} bytes to a phase that expects "
                               f"{int(self.tx[n])}", self._offset(self.place[n : n + 1]))  # fmt: skip
            self.flights[n] = later
            m = self.m
            for f in flights:
                f.land()
                self.collected[0, n, m.order.column[f.lanes]] = m.now
            m.now += 1
            self.tx[n] = 0
            self._advance(np.array([n]))

    # --- waits
    def wait(self, i: Instr, lanes: Array, objects: Array, parity: Array, relaxed: bool) -> tuple[Array, Array]:
        """(positions that go on, whether the phase is complete for each of those); the others are suspended."""
        done = (self.phase[objects] & 1) != parity
        key = objects << 32 | self.phase[objects]
        again = self.tried[lanes] == key
        stays = ~done & again
        self.waiting[lanes] = np.where(stays, objects, -1)
        self.wanted[lanes] = parity
        self.tried[lanes] = np.where(done, -1, key)
        if some(done):
            self._acquire(lanes[done], objects[done], relaxed)
        go = indices(~stays)
        return go, done[go]

    def _acquire(self, lanes: Array, objects: Array, relaxed: bool) -> None:
        m = self.m
        np.maximum.at(self.observed, objects, self.phase[objects])
        pairs, pair, counts = np.unique(lanes >> 5 << 32 | objects, return_inverse=True, return_counts=True)
        left = m.alive.reshape(-1, 32)[pairs >> 32].sum(axis=1)
        apart = counts < left
        if relaxed:
            apart[:] = False
        for k in indices(apart[pair]).tolist():
            m.order.acquire_apart(int(lanes[k]), self.joined[:, objects[k]])
        pairs = pairs[~apart]
        if m.ranks > 1:
            for b in distinct(m.block_of_lane[lanes]).tolist():
                m.strong[b] = m.now
        while len(pairs):
            first, of = pairs >> 32 << 5, pairs & 0xFFFFFFFF
            new = np.append(True, first[1:] != first[:-1])
            those = first[new]
            m.order.acquire(m.team[those], m.place[those], self.joined[:, of[new]], relaxed)
            pairs = pairs[~new]
        m.shared_floor = m.order.floor()
        m.now += 1

    def time_out(self) -> bool:
        """Nothing can run and nothing changed: suspended waits give false, unless that has led nowhere before."""
        if self.m.progress != self.last_progress:
            self.timeouts, self.last_progress = 0, self.m.progress
        self.timeouts += 1
        if self.timeouts > PATIENCE or not some(self.waiting >= 0):
            return False
        self.tried[self.waiting >= 0] = -1
        return True

    def describe(self, lane: int) -> str:
        """What a suspended lane waits for."""
        n = int(self.waiting[lane])
        if n < 0:
            return "waits on an mbarrier"
        offset, phase = self._offset(self.place[n : n + 1]), int(self.phase[n])
        text = (f"waits on the mbarrier at shared address {offset:#x}, parity {int(self.wanted[lane])}: its phase "
                f"{phase} lacks {int(self.pending[n])} of {int(self.count[n])} arrivals")  # fmt: skip
        flying = sum(f.tx for f in self.flights.get(n, []))
        if self.tx[n] or flying:
            text += f" and {int(self.tx[n])} bytes, of which {flying} are in flight"
        return text

    def finish(self) -> None:
        if self.m.stopped:
            return
        for flights in self.flights.values():
            for f in flights:
                if f.over():
                    continue
                self.m.finding("copy in flight at exit", f.instr, f.lanes,
                               "the block ended although nobody waited for this copy on its mbarrier")  # fmt: skip


def phase_of(states: Array) -> tuple[Array, Array, Array]:
    """(phase, arrivals outstanding, is it a state at all) of mbarrier states."""
    raw = states.astype(np.int64)
    return raw & 0xFFFFFFFF, raw >> 32 & MOST, raw >> 53 == 0x2A5
