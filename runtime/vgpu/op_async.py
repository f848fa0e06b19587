"""cp.async and its groups (PTX ISA 9.7.9.25.3). The bytes arrive only when their thread waits for them.

Until then a read of the destination is a finding, and sees the old bytes, as it may on hardware.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tcomp.runtime.vgpu.access import Access
from tcomp.runtime.vgpu.decoder import Decoder, Run, Source, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel, distinct, every, some
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.ptx import Addr, Imm, Instr, Not, Operand, Reg


@dataclass
class Copy:
    lanes: Array
    group: Array  # the commit group of each lane's copy
    start: Array  # destination bytes in the shared segment
    data: Array  # (lanes, size) uint8
    serial: int  # of the instruction that began it


@instruction("cp")
def copy_async(d: Decoder, i: Instr) -> Run:
    m, parts = d.m, i.parts
    if parts[1:2] != ["async"]:
        raise d.unknown(i)
    if "commit_group" in parts:
        return lambda sel: commit(m, sel)
    if "wait_all" in parts:
        return lambda sel: wait(m, sel, -1)
    if "wait_group" in parts:
        keep = i.operands[0]
        assert isinstance(keep, Imm)
        newest = int(keep.value)
        return lambda sel: wait(m, sel, newest)
    to, source, size = i.operands[:3]
    assert isinstance(to, Addr) and isinstance(source, Addr) and isinstance(size, Imm)
    n = int(size.value)
    writes = Access(d, i, to, "shared", n, 1, False)
    reads = Access(d, i, source, "global", n, 1, False)
    rest = i.operands[3:-1] if "L2::cache_hint" in parts else i.operands[3:]
    valid = source_size(d, rest[0], n) if rest else None

    def run(sel: Sel) -> None:
        lanes = m.ids[sel]
        data = np.zeros((m.lanes, n), np.uint8)
        size_of = np.full(m.lanes, n)
        if valid is not None:
            size_of[lanes] = np.minimum(valid(sel), n)
        from_ = lanes[size_of[lanes] > 0]
        if len(from_):
            reads.current = from_
            for p in reads.parts(from_):
                who = from_ if p.where is None else from_[p.where]
                reads.race(p, "read", who)
                reads.count_traffic(p, who, False)
                inside = np.minimum(p.start[:, None] + np.arange(n), len(p.segment.data) - 1)
                data[who] = p.segment.data[inside]
            data[np.arange(n)[None, :] >= size_of[:, None]] = 0
        writes.current = sel
        for p in writes.parts(sel):
            who = lanes if p.where is None else lanes[p.where]
            writes.race(p, "write", who)
            writes.count_traffic(p, who, True)
            pending = m.shared.watched().pending
            if pending is None:
                pending = m.shared.watched().pending = np.zeros(len(m.shared.data), np.uint8)
            pending[p.start[:, None] + np.arange(n)] = 1
            m.copies.append(Copy(who, m.committed[who].copy(), p.start, data[who], m.copy_serial))
        m.copy_serial += 1

    return run


def source_size(d: Decoder, o: Operand, size: int) -> Source:
    """Bytes to read: an operand, or none where the predicate `ignore-src` holds. The rest is filled with zeros."""
    name = o.item.name if isinstance(o, Not) and isinstance(o.item, Reg) else o.name if isinstance(o, Reg) else ""
    if d.m.program.registers.get(name) == "pred":
        ignore = d.source(o, "pred")
        return lambda sel: np.where(ignore(sel), 0, size)
    return d.source(o, "u32")


def commit(m: Machine, sel: Sel) -> None:
    m.committed[sel] += 1


def wait(m: Machine, sel: Sel, newest: int) -> None:
    """Completes the copies of these lanes but for the `newest` groups; -1 completes all, committed or not."""
    taking = np.zeros(m.lanes, bool)
    taking[sel] = True

    def over(c: Copy) -> Array:
        done = taking[c.lanes]
        return done & (c.group < m.committed[c.lanes] - newest) if newest >= 0 else done

    land(m, over)


def arrive_on_copies(m: Machine, lanes: Array) -> Callable[[], None]:
    """What completes the copies that these lanes have begun so far (cp.async.mbarrier.arrive)."""
    before = m.copy_serial
    taking = np.zeros(m.lanes, bool)
    taking[lanes] = True
    return lambda: land(m, lambda c: taking[c.lanes] & (c.serial < before))


def land(m: Machine, over: Callable[[Copy], Array]) -> None:
    """The copies of those lanes of which `over` holds put their bytes into shared memory."""
    left = []
    for c in m.copies:
        done = over(c)
        if some(done):
            at = c.start[done][:, None] + np.arange(c.data.shape[1])
            m.shared.data[at] = c.data[done]
            m.shared.init[at] = 1
            pending = m.shared.watched().pending
            assert pending is not None
            pending[at] = 0
            if m.shared.race is not None:  # the bytes arrive now: later readers need a barrier after this
                g = m.shared.race.granule
                m.shared.race.write_time[distinct(at[:, ::g] >> (g.bit_length() - 1))] = m.now
                m.shared.race.latest_write = m.now
        if not every(done):
            keep = ~done
            left.append(Copy(c.lanes[keep], c.group[keep], c.start[keep], c.data[keep], c.serial))
    m.copies = left
    if not left and m.shared.watch is not None:
        m.shared.watch.pending = None
