"""Global memory as asynchronous copies see it: pieces of one allocation that are read or written later.

A piece is a set of bytes; it is checked at issue (bounds were checked before) and moved at completion. Proxies and
races are followed by block: a block's ordinary writes need a fence.proxy.async by it, or by the issuing block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.lanes import Array, changes, distinct, greatest, least, some
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.memory import Segment
from tcomp.runtime.vgpu.ptx import Instr
from tcomp.runtime.vgpu.within_block import WithinBlocks

NOTHING = np.zeros(0, np.int64)


@dataclass
class Piece:
    m: Machine
    instr: Instr
    lane: int
    segment: Segment
    at: Array  # byte indices in the segment, each once
    _of_granule: tuple[int, Array] = (0, NOTHING)  # the race shadow's granules of these bytes, by their size

    def _granules(self) -> Array:
        g = self.segment.shadow().granule
        if self._of_granule[0] != g:
            keys = self.at >> (g.bit_length() - 1)
            self._of_granule = g, keys[changes(keys)]
        return self._of_granule[1]

    def _find(self, kind: str, text: str, bad: Array) -> None:
        self.m.finding(kind, self.instr, np.array([self.lane]), text, self.segment.base + int(self.at[bad][0]))

    def _race(self, what: str) -> None:
        m, s = self.m, self.segment
        if s.read_only or not len(self.at):
            return
        shadow, keys = s.shadow(), self._granules()
        block = np.full(len(keys), m.block_of_lane[self.lane], np.int32)
        order = m.global_order(np.full(len(keys), self.lane))
        bad = getattr(shadow, what)(keys, block, block, m.now, m.launch_start, order)
        if bad is not None:
            self.m.finding("global memory race", self.instr, np.array([self.lane]),
                           f"this asynchronous {what} meets an earlier access by other blocks without an atomic or a "
                           "fence between them", s.base + int(keys[bad[0]]) * shadow.granule)  # fmt: skip

    def _fenced(self, verb: str) -> None:
        m, s = self.m, self.segment
        if s.race is None or s.race.latest_write <= m.launch_start:
            return
        keys, own = self._granules(), int(m.block_of_lane[self.lane])
        when, writer = s.race.write_time[keys], s.race.write_actor[keys]
        generic = when != s.race.asynchronous()[keys]
        other = (when > m.launch_start) & (generic | (writer != own))
        if not some(other):
            return
        mine = m.proxy_fences.get(own, 0)
        for block in distinct(writer[other]).tolist():
            newest = int(when[other & (writer == block)].max())
            if max(m.proxy_fences.get(block, 0), mine) < newest:
                stores = "ordinary stores of this kernel" if some(generic & (writer == block)) else "another block"
                self.m.finding("missing proxy fence", self.instr, np.array([self.lane]),
                               f"{verb} through the async proxy global memory that {stores} wrote, with no "
                               "fence.proxy.async since", s.base + int(self.at[0]))  # fmt: skip
                return

    # --- reading
    def begin_read(self) -> Array:
        """Checks; gives the bytes as they are now, for `read` to compare with."""
        m, s = self.m, self.segment
        if m.options.checks and len(self.at):
            if s.watch is not None and s.watch.landing_count and s.watch.landing is not None:
                bad = s.watch.landing[self.at] > 0
                if some(bad):
                    self._find("read before completion", "reads what an asynchronous copy has yet to write", bad)
            if not s.initialised:
                bad = s.init[self.at] == 0
                if some(bad):
                    self._find("uninitialised read of global memory", "nothing was written there before", bad)
            self._fenced("reads")
            self._race("read")
        now: Array = s.data[self.at]
        return now

    def read(self, before: Array | None) -> Array:
        """The bytes at completion; reports a source that has changed since the copy began."""
        data: Array = self.segment.data[self.at]
        if before is not None and self.m.options.checks:
            bad = data != before
            if some(bad):
                self._find("write before completion", "the source of this asynchronous copy was overwritten before the "
                           "copy was complete", bad)  # fmt: skip
        return data

    # --- writing
    def begin_write(self, atomic: bool) -> None:
        m, s = self.m, self.segment
        if s.read_only:
            m.finding("write to constant memory", self.instr, np.array([self.lane]), "constant variables cannot be "
                      "written")  # fmt: skip
        if m.options.checks and len(self.at):
            self._fenced("writes")
            if atomic:
                WithinBlocks.of(m).begins(self.instr, s, self.at, self.lane)
            self._race("atomic" if atomic else "write")
            if not atomic and not s.read_only:
                s.shadow().asynchronous()[self._granules()] = m.now
        s.watched().begin(self.at, writes=True)

    def held(self) -> Array:
        """The bytes as they are when something is added to them."""
        s = self.segment
        if self.m.options.checks and not s.initialised:
            bad = s.init[self.at] == 0
            if some(bad):
                self._find("uninitialised read of global memory", "adds to what nothing was written to before", bad)
        now: Array = s.data[self.at]
        return now

    def write(self, data: Any, atomic: bool) -> None:
        m, s = self.m, self.segment
        s.watched().end(self.at, writes=True)
        s.data[self.at] = data
        if not s.initialised:
            s.init[self.at] = 1
        if m.options.checks and len(self.at):
            if atomic:
                WithinBlocks.of(m).ends(s, self.at, self.lane)
            shadow, keys = s.shadow(), self._granules()
            if atomic:
                if shadow.atomic_time is not None:
                    shadow.atomic_time[keys] = m.now
                return
            shadow.write_time[keys] = m.now
            shadow.asynchronous()[keys] = m.now
            shadow.latest_write = m.now


def piece(m: Machine, i: Instr, lane: int, address: int, offsets: Array) -> Piece | None:
    """The bytes at `address + offsets`; None, and a finding, where they are not all in one allocation."""
    if not len(offsets):
        return Piece(m, i, lane, m.param, offsets)
    low, high = address + least(offsets), address + greatest(offsets)
    s = m.memory.find(low)
    if s is None or high >= s.end:
        where = "of no allocation" if s is None else f"beyond the allocation of {s.size} bytes at {s.base:#x}"
        m.finding("out of bounds global", i, np.array([lane]), f"an asynchronous copy touches bytes {where}",
                  low if s is None else high)  # fmt: skip
        return None
    return Piece(m, i, lane, s, offsets + (address - s.base))
