"""One decoded memory access: addresses -> segments and element keys, with every check on the way.

A key indexes a segment's typed view: a slice when the lanes' addresses step evenly (then whole rows move
without gathering), else an index array. Lanes whose access is out of bounds or misaligned are reported and
left out; their loads give zero, their stores are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tcomp.runtime.vgpu import flags, memory as mem, watch
from tcomp.runtime.vgpu.decoder import Decoder
from tcomp.runtime.vgpu.lanes import Array, Sel, compact, count, distinct, every, greatest, indices, least, some
from tcomp.runtime.vgpu.lifetime import Lifetimes
from tcomp.runtime.vgpu.memory import Segment
from tcomp.runtime.vgpu.profile import bank_conflicts, sectors
from tcomp.runtime.vgpu.ptx import Addr, Instr, Reg, Sym
from tcomp.runtime.vgpu.within_block import WithinBlocks

SPACES = ("global", "shared", "local", "const", "param")


class Part(NamedTuple):
    segment: Segment
    start: Array  # first byte of each lane's access
    where: Any  # positions among the lanes of the Sel, or None for all


class Access:
    def __init__(self, d: Decoder, i: Instr, o: Any, space: str, element: int, elements: int, strong: bool) -> None:
        if not isinstance(o, Addr):
            raise d.unknown(i, "expected an address")
        self.m, self.i = d.m, i
        self.element, self.elements, self.size = element, elements, element * elements
        self.shift = element.bit_length() - 1
        self.strong = strong
        self.space = space
        self.cluster_wide = space == "generic" or "shared::cluster" in i.parts
        self.within = WithinBlocks.of(d.m) if d.m.bulk_sums and d.m.options.checks else None
        self.offset = o.offset
        self.address = None
        if isinstance(o.base, Reg):
            wide = d.m.row(o.base.name).dtype.itemsize == 8
            self.address = d.source(o.base, "s64" if wide else "u32")
        elif isinstance(o.base, Sym):
            self.offset += d.address_of(o.base.name)
            v = d.m.program.variables[o.base.name]
            if v.space == "frame":
                self.address, self.space = d.m.frame.__getitem__, "local"
            else:
                self.space = {"kernel": "param", "param": "args"}.get(v.space, v.space if space == "generic" else space)

    def addresses(self, sel: Sel) -> Array:
        if self.address is None:
            return np.full(count(sel), self.offset, np.int64)
        a = self.address(sel)
        if a.dtype == np.uint32:  # 32-bit addresses wrap: LLVM folds constants into the offset whatever the base's sign
            wrapped: Array = (a + np.uint32(self.offset & 0xFFFFFFFF)).astype(np.int64)
            return wrapped
        if a.dtype != np.int64:
            a = a.astype(np.int64)
        moved: Array = a + self.offset if self.offset else a
        return moved

    # --- where the bytes are
    def parts(self, sel: Sel) -> Iterator[Part]:
        a = self.addresses(sel)
        yield from self.locate(self.space, a, sel, None)

    def locate(self, space: str, a: Array, sel: Sel, where: Any) -> Iterator[Part]:
        m = self.m
        lanes = sel if where is None else m.ids[sel][where]
        if space == "shared":
            yield from self.bounded(m.shared, a, m.shared_base[lanes], m.shared_size, lanes, where)
        elif space == "local":
            yield from self.bounded(m.local, a, m.local_base[lanes], m.local_limit, lanes, where)
        elif space == "args":
            yield from self.bounded(m.args, a - mem.ARGS_WINDOW, m.args_base[lanes], m.program.args_bytes, lanes, where)
        elif space == "param":
            if greatest(a) < 1 << 32:  # a 32-bit register keeps only the place among the parameters
                a = a + mem.PARAM_WINDOW
            if least(a) < mem.PARAM_WINDOW:
                yield from self.locate("args", a, sel, where)
            else:
                yield from self.bounded(m.param, a - mem.PARAM_WINDOW, 0, m.program.param_bytes, lanes, where)
        else:
            yield from self.anywhere(a, sel, where)

    def bounded(self, s: Segment, a: Array, base: Any, limit: int, lanes: Any, where: Any) -> Iterator[Part]:
        if least(a) < 0 or greatest(a) + self.size > limit:
            ok = (a >= 0) & (a + self.size <= limit)
            bad = ~ok
            if s is self.m.shared and some(a >= mem.CLUSTER_STEP):
                far = indices(a >= mem.CLUSTER_STEP)
                bad[far] = False
                yield from self.remote(a[far], self.m.ids[lanes][far], far if where is None else where[far])
            if some(bad):
                self.outside(s.space, a[bad], self.m.ids[lanes][bad], limit)
            at = indices(ok)
            if not len(at):
                return
            where = at if where is None else where[at]
            a, base = a[at], base if np.ndim(base) == 0 else base[at]
        yield from self.aligned(s, a + base, where, a)

    def remote(self, a: Array, lanes: Array, where: Array) -> Iterator[Part]:
        """Addresses of the shared memory of a block of the cluster, as mapa gives them."""
        m = self.m
        rank, offset = a // mem.CLUSTER_STEP - 1, a % mem.CLUSTER_STEP
        slot = m.team[lanes] * m.ranks + np.minimum(rank, m.ranks - 1)
        wrong = (rank >= m.ranks) | (offset + self.size > m.shared_size)
        if not self.cluster_wide:
            wrong |= slot != m.slot[lanes]
        if some(wrong):
            text = f"{self.size} bytes outside the shared memory of the cluster's {m.ranks} blocks"
            if not self.cluster_wide:
                text = "another block's shared memory: this instruction reaches only its own block's (shared::cta)"
            m.finding("out of bounds shared", self.i, lanes[wrong], text, int(a[wrong][0]))
        gone = ~wrong & ~m.running()[slot]
        if some(gone):
            m.finding("shared memory of an exited block", self.i, lanes[gone],
                      f"block rank {int(rank[gone][0])} of the cluster has ended", int(a[gone][0]))  # fmt: skip
        ok = indices(~wrong & ~gone)
        if len(ok):
            if m.options.checks:
                Lifetimes.of(m).reach(self.i, slot[ok], lanes[ok])
            yield from self.aligned(m.shared, slot[ok] * m.shared_stride + offset[ok], where[ok], a[ok])

    def anywhere(self, a: Array, sel: Sel, where: Any) -> Iterator[Part]:
        """Global addresses, or generic ones that may lie in a window."""
        m, low, high = self.m, least(a), greatest(a)
        if low >= mem.GLOBAL_BASE:
            s = m.memory.find(low)
            if s is not None and high + self.size <= s.end:
                yield from self.aligned(s, a - s.base, where, a)
                return
        windows = ((mem.SHARED_WINDOW, "shared"), (mem.LOCAL_WINDOW, "local"), (mem.ARGS_WINDOW, "args"),
                   (mem.PARAM_WINDOW, "param"))  # fmt: skip
        left = np.ones(len(a), bool)
        for window, space in windows if self.space == "generic" else ():
            inside = (a >= window) & (a < window + mem.WINDOW)
            if some(inside):
                at = indices(inside)
                left &= ~inside
                base = window if space in ("shared", "local") else 0
                yield from self.locate(space, a[at] - base, sel, at if where is None else where[at])
        if not some(left):
            return
        number = np.searchsorted(m.memory.base_array, a, "right") - 1
        ends = m.memory.end_array[np.maximum(number, 0)] if len(m.memory.end_array) else np.zeros_like(a)
        ok = left & (number >= 0) & (a + self.size <= ends)
        bad = left & ~ok
        if some(bad):
            lanes = m.ids[sel] if where is None else m.ids[sel][where]
            self.outside("global", a[bad], lanes[bad], None)
        for n in distinct(number[ok]):
            at = indices(ok & (number == n))
            s = m.memory.segments[int(n)]
            yield from self.aligned(s, a[at] - s.base, at if where is None else where[at], a[at])

    def outside(self, space: str, a: Array, lanes: Array, limit: int | None) -> None:
        text = f"{self.size} bytes outside every allocation"
        if limit is not None:
            text = f"{self.size} bytes outside the {limit} bytes of {space} memory"
        else:
            n = int(np.searchsorted(self.m.memory.base_array, int(a[0]), "right")) - 1
            if n >= 0:
                s = self.m.memory.segments[n]
                text += f"; {int(a[0]) - s.end} bytes past the end of the allocation of {s.size} bytes at {s.base:#x}"
        self.m.finding(f"out of bounds {space}", self.i, lanes, text, int(a[0]))

    def aligned(self, s: Segment, start: Array, where: Any, a: Array) -> Iterator[Part]:
        mask = self.size - 1
        if mask and some(start & mask):
            bad = indices(start & mask)
            lanes = self.sel_lanes(where)[bad]
            self.m.finding(
                "misaligned", self.i, lanes, f"a {self.size}-byte access to {s.space} memory", int(a[bad[0]])
            )
            at = indices(start & mask == 0)
            if not len(at):
                return
            where, start = at if where is None else where[at], start[at]
        yield Part(s, start, where)

    def sel_lanes(self, where: Any) -> Array:
        lanes = self.m.ids[self.current]
        chosen: Array = lanes if where is None else lanes[where]
        return chosen

    current: Any = slice(0, 0)

    # --- keys and checks
    def key(self, start: Array, shift: int) -> Any:
        e = start >> shift if shift else start
        n = len(e)
        if n < 8:
            return e
        step = int(e[1]) - int(e[0])
        if step < 0 or int(e[-1]) - int(e[0]) != step * (n - 1) or not every(e[1:] - e[:-1] == step):
            return e
        return int(e[0]) if step == 0 else slice(int(e[0]), int(e[-1]) + 1, step)

    def count_traffic(self, p: Part, lanes: Array, write: bool) -> None:
        m, n = self.m, len(p.start)
        t = m.traffic(p.segment.space)
        if write:
            t.bytes_written += n * self.size
        else:
            t.bytes_read += n * self.size
        if not m.options.profile or p.segment.space not in ("global", "shared"):
            return
        if p.segment.space == "global":
            requests, used = sectors(p.start, lanes >> 5)
            t.sectors += used
        else:
            requests, conflicts = bank_conflicts(p.start % max(m.shared_stride, 1), lanes, self.size)
            t.bank_conflicts += conflicts
            if conflicts > m.options.conflicts * requests:
                m.finding("bank conflict", self.i, lanes, f"{conflicts} passes more than {requests} warps need")
        t.requests += requests

    def check_read(self, p: Part, keys: list[Any], lanes: Array) -> None:
        s, m = p.segment, self.m
        if s.watch is not None and watch.check(self, p, lanes, False):
            return
        if not s.initialised and m.options.checks:
            init, full = s.init_view(self.element), sum(1 << 8 * n for n in range(self.element))
            for k in keys:
                bad = np.atleast_1d(init[k] != full)
                if some(bad):
                    at = indices(bad)
                    at = at if len(bad) > 1 or len(lanes) == 1 else np.arange(len(lanes))
                    m.finding(f"uninitialised read of {s.space} memory", self.i, lanes[at],
                              "nothing was written there before", s.base + int(p.start[at[0]]))  # fmt: skip
        if s.space == "global" and self.within is not None and not self.strong:
            self.within.reads(self.i, s, p.start, self.size, lanes)
        self.race(p, "atomic" if self.strong else "read", lanes)

    def check_write(self, p: Part, lanes: Array) -> None:
        if p.segment.read_only:
            self.m.finding("write to constant memory", self.i, lanes, "constant variables cannot be written")
        if p.segment.watch is not None and watch.check(self, p, lanes, True):
            return
        self.race(p, "atomic" if self.strong else "write", lanes)

    def reaches(self, start: int, lane: int) -> None:
        """A lane's atomic access to a place in the shared memory of its cluster."""
        self.race(Part(self.m.shared, np.array([start]), None), "atomic", np.array([lane]))

    def race(self, p: Part, what: str, lanes: Array) -> None:
        s, m = p.segment, self.m
        if s.space not in ("global", "shared") or not m.options.checks or s.read_only:
            return
        shadow = s.shadow()
        if min(self.size, 4) < shadow.granule:
            shadow.refine(self.size)
        g = shadow.granule
        key = self.key(p.start, g.bit_length() - 1)
        if isinstance(key, int) and what != "read":
            key = p.start >> (g.bit_length() - 1)
        if s.space == "shared" and self.strong:
            flags.meet(m, self.i, p.start, lanes)
        if s.space == "shared":
            writer, reader, floor, order = (
                m.lane_actor[lanes],
                m.order.readers(m.warp_of_lane[lanes], lanes) if what == "read" else m.warp_of_lane[lanes],
                m.shared_floor,
                m.shared_order(lanes, what == "inval"),
            )
        else:
            writer = reader = m.block_of_lane[lanes]
            floor, order = m.launch_start, m.global_order(lanes)
        if s.space == "global" and self.strong:
            for b in distinct(writer).tolist():
                m.strong[b] = m.now
        for n in range(max(1, self.size // g)):
            k = key if n == 0 else slice(key.start + n, key.stop + n, key.step) if isinstance(key, slice) else key + n
            bad = getattr(shadow, what)(k, writer, reader, m.now, floor, order)
            if bad is not None:
                bad = bad if bad.max() < len(lanes) else np.array([0])
                kind, who = ("shared memory race", "threads without a barrier between them")
                if s.space == "global":
                    kind, who = "global memory race", "blocks without an atomic or a fence between them"
                m.finding(kind, self.i, lanes[bad], f"this {what} meets an earlier access by other {who}",
                          s.base + int(p.start[bad[0]]) % (m.shared_stride if s.base == 0 else 1 << 62))  # fmt: skip
                return

    def sub(self, sel: Sel, where: Any) -> Sel:
        return sel if where is None else compact(self.m.ids[sel][where])
