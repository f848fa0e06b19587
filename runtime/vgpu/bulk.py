"""Bulk copies in flight: loads that report to an mbarrier, and stores and reductions in per-thread bulk groups.

A store reads its source when its `.read` wait is executed and writes its destination when its full wait is, or at
the end of the kernel: the latest moments that PTX ISA 9.7.9.25.4 and .27 allow. A thread that ends before its
stores have read their source is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tcomp.runtime.vgpu import proxy
from tcomp.runtime.vgpu.async_global import Piece
from tcomp.runtime.vgpu.lanes import Array, Sel, changes, distinct, ids
from tcomp.runtime.vgpu.machine import Machine, WaveState
from tcomp.runtime.vgpu.mbarrier import Flight, Mbarriers
from tcomp.runtime.vgpu.ptx import Instr

Combine = Callable[[Array, Array], Array]  # (destination bytes, source bytes) -> new destination bytes


@dataclass
class Store:
    """A copy from shared memory to global memory. `source`: byte places in the shared segment, in order."""

    instr: Instr
    lane: int
    group: int
    source: Array
    held: proxy.InFlight
    to: Piece
    combine: Combine | None
    data: Array = field(default_factory=lambda: np.zeros(0, np.uint8))
    taken: bool = False


class BulkStores(WaveState):
    def __init__(self, m: Machine) -> None:
        self.m = m
        self.stores: list[Store] = []
        self.committed: Array = np.zeros(m.lanes, np.int64)
        m.parts.append(self)
        m.on_exit.append(self.leaving)

    def start(self) -> None:
        self.stores.clear()
        self.committed[:] = 0

    def begin(self, i: Instr, lane: int, source: Array, to: Piece, combine: Combine | None) -> None:
        """`source`: places of the bytes in the shared segment; the words that hold them are read."""
        words = source >> 2
        words = distinct(words[changes(words)]) << 2  # (the bytes of a word lie together, mostly)
        held = proxy.async_read(self.m, i, lane, words, 4)
        to.begin_write(combine is not None)
        self.stores.append(Store(i, lane, int(self.committed[lane]), source, held, to, combine))

    def commit(self, sel: Sel) -> None:
        self.committed[sel] += 1

    def wait(self, sel: Sel, newest: int, read: bool) -> None:
        lanes = set(ids(sel).tolist())
        left = []
        for s in self.stores:
            if s.lane in lanes and s.group < self.committed[s.lane] - newest:
                self.take(s)
                if not read:
                    self.put(s)
                    continue
            left.append(s)
        self.stores = left
        self.m.now += 1

    def take(self, s: Store) -> None:
        if not s.taken:
            s.data, s.taken = self.m.shared.data[s.source], True
            proxy.finish_read(self.m, s.held)

    def put(self, s: Store) -> None:
        data = s.data
        if s.combine is not None:
            data = s.combine(s.to.held(), data)
        s.to.write(data, s.combine is not None)

    def leaving(self, i: Instr, lanes: Array) -> None:
        """Threads end: what they store must have been read by now, because their shared memory may go."""
        if not self.stores:
            return
        gone = set(lanes.tolist())
        for s in self.stores:
            if s.lane in gone and not s.taken:
                self.m.finding("missing bulk wait", s.instr, np.array([s.lane]),
                               "the thread ends before a cp.async.bulk.wait_group (at least .read) covers this copy; "
                               "only committed copies are waited for")  # fmt: skip
                self.take(s)

    def finish(self) -> None:
        for s in self.stores:
            self.take(s)
            self.put(s)
        self.stores.clear()


def load(
    m: Machine, i: Instr, lane: int, source: Piece | None, place: Array, targets: list[tuple[Array, int]],
    bytes_: int, arrange: Callable[[Array], Array] | None = None,
) -> None:  # fmt: skip
    """A copy from global memory into shared memory, for each of `targets`: (places of its 16-byte pieces, mbarrier).

    `place` says which byte of a target each byte of `source` is; the others are what `arrange` fills in: it is
    given the target's bytes (zero where there is no source) and gives them as they are to be stored."""
    before = source.begin_read() if source is not None else None
    traffic = m.traffic("global async")
    traffic.bytes_read += len(place)
    traffic.sectors += -(-len(place) // 32)
    for starts, barrier in targets:
        landing = proxy.async_write(m, i, lane, starts, 16)
        m.traffic("shared async").bytes_written += bytes_

        def land(starts: Array = starts, landing: proxy.InFlight = landing) -> None:
            data = np.zeros(bytes_, np.uint8)
            if source is not None:
                data[place] = source.read(before)
            if arrange is not None:
                data = arrange(data)
            m.shared.data[starts[:, None] + np.arange(16)] = data.reshape(-1, 16)
            proxy.finish_write(m, landing)

        if barrier >= 0:
            Mbarriers.of(m).report_later(barrier, Flight(i, np.array([lane]), bytes_, 0, land))
