"""Global memory that one warp of a block reads and another adds to through the copy engine.

Races in global memory are followed by block (`async_global.py`). Within a block this one is followed too, as kernels
that add in turns hand that to a warp of its own: who reads the sums must know that its additions are complete, and it
that those who read what was there before have done so. (Not of plain stores: next to what they write, threads read rows
past a tensor's end, which they drop, where its last row lies.)
"""

from __future__ import annotations

import numpy as np

from tcomp.runtime.vgpu.lanes import Array, distinct, some
from tcomp.runtime.vgpu.machine import Machine, WaveState
from tcomp.runtime.vgpu.memory import Segment
from tcomp.runtime.vgpu.ptx import Instr

KIND = "global memory race"


class _Last:
    """Of each word of a segment: block, place (within its cluster) and the clock's column of the warp or lane that last
    did so, and when."""

    def __init__(self, segment: Segment) -> None:
        n = len(segment.data) // 4 + 1
        self.block, self.place = np.full(n, -1, np.int32), np.zeros(n, np.int16)
        self.column, self.time = np.zeros(n, np.int32), np.zeros(n, np.int64)

    def note(self, words: Array, m: Machine, lanes: Array | int, column: Array | int) -> None:
        self.block[words], self.place[words] = m.block_of_lane[lanes], m.place[lanes]
        self.column[words], self.time[words] = column, m.now

    def unknown(self, m: Machine, words: Array, lanes: Array) -> Array:
        """Where another warp of the lane's block was the last, and the lane's warp does not know of it."""
        same = (self.block[words] == m.block_of_lane[lanes]) & (self.place[words] != m.place[lanes])
        found: Array = same & (self.time[words] > m.order.seen(lanes, self.column[words]))
        return found


class WithinBlocks(WaveState):
    def __init__(self, m: Machine) -> None:
        self.m = m
        self.read: dict[int, _Last] = {}
        self.written: dict[int, _Last] = {}
        m.parts.append(self)

    def start(self) -> None:
        self.read.clear()  # (blocks of other waves are others)
        self.written.clear()

    def reads(self, i: Instr, s: Segment, start: Array, size: int, lanes: Array) -> None:
        """Ordinary loads of `size` bytes at `start` by lanes."""
        if id(s) not in self.read:
            self.read[id(s)] = _Last(s)
        written, read = self.written.get(id(s)), self.read[id(s)]
        for n in range(max(1, size // 4)):
            words = (start >> 2) + n
            bad = written.unknown(self.m, words, lanes) if written is not None else np.zeros(0, bool)
            if some(bad):
                text = "reads what another warp of the block added to asynchronously, of whose end nothing told it"
                self.m.finding(KIND, i, lanes[bad], text, s.base + 4 * int(words[bad][0]))
            read.note(words, self.m, lanes, self.m.place[lanes])

    def begins(self, i: Instr, s: Segment, at: Array, lane: int) -> None:
        """A copy by that lane to these bytes begins."""
        read, words = self.read.get(id(s)), distinct(at >> 2)
        bad = read.unknown(self.m, words, np.full(len(words), lane)) if read is not None else np.zeros(0, bool)
        if some(bad):
            text = "this asynchronous addition meets an earlier read by another warp of the block, which nothing orders"
            self.m.finding(KIND, i, np.array([lane]), text, s.base + 4 * int(words[bad][0]))

    def ends(self, s: Segment, at: Array, lane: int) -> None:
        """A copy by that lane to these bytes is complete."""
        if id(s) not in self.written:
            self.written[id(s)] = _Last(s)
        m = self.m
        self.written[id(s)].note(at >> 2, m, lane, int(m.order.column[lane]))
