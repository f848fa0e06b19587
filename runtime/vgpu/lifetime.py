"""Has all that other blocks of a cluster do in a block's shared memory happened before the block ends?

A block's shared memory is there until its last thread has left. What a peer does in it, or to an mbarrier in it, must
come before that by some synchronisation of which a thread of the block knows: an mbarrier that it waited for, or a
barrier of the cluster. (Copies in flight are mbarriers' to tell: `copy in flight at exit`.)
"""

from __future__ import annotations

import numpy as np

from tcomp.runtime.vgpu.cluster import ClusterBarrier
from tcomp.runtime.vgpu.lanes import Array, distinct
from tcomp.runtime.vgpu.machine import Machine, WaveState
from tcomp.runtime.vgpu.ptx import Instr

KIND = "shared memory of an exited block"


class Lifetimes(WaveState):
    """Made for kernels of clusters of several blocks that reach into each other."""

    def __init__(self, m: Machine) -> None:
        self.m = m
        self.start()
        m.parts.append(self)
        m.on_exit.append(self.leaving)

    def start(self) -> None:
        m = self.m
        self.each = 32 * m.order.warps_of_team
        self.touched: Array = np.zeros((m.slots, self.each), np.int64)
        """when a lane of the cluster last did something in a block's shared memory"""
        self.by: dict[tuple[int, int], tuple[Instr, int]] = {}  # with what, and which lane

    def reach(self, i: Instr, slots: Array, lanes: Array) -> None:
        """These lanes do something in the shared memory of the blocks in those slots."""
        m = self.m
        away = slots != m.slot[lanes]
        where, who = slots[away], lanes[away]
        self.touched[where, who % self.each] = m.now
        for slot, lane in zip(where.tolist(), who.tolist(), strict=True):
            self.by[slot, lane % self.each] = i, lane

    def leaving(self, i: Instr, lanes: Array) -> None:
        """These lanes have ended: a block of which they are the last is gone."""
        m = self.m
        running = m.running()
        for slot in distinct(m.slot[lanes]).tolist():
            if running[slot] or not self.touched[slot].any():
                continue
            team, rank = divmod(slot, m.ranks)
            own = slice(rank * m.warps, (rank + 1) * m.warps)
            known = m.order.clock[team, own].max(axis=0)
            for rows in (r for lane, r in m.order.apart.items() if m.slot[lane] == slot):
                known = np.maximum(known, rows[0])
            known = known[m.order.column[: self.each]]
            for barrier in (p for p in m.parts if isinstance(p, ClusterBarrier)):  # (also relaxed: no memory is read)
                known = np.maximum(known, np.repeat(barrier.known[slot], 32))
            for one in np.flatnonzero(self.touched[slot] > known).tolist():
                by, lane = self.by[slot, one]
                m.finding(KIND, by, np.array([lane]), f"block rank {rank} of the cluster may have ended by then: "
                          "nothing that it waits for comes after this (a barrier of the cluster would)")  # fmt: skip
            self.touched[slot] = 0
