"""What the warpgroups of a wave have in flight: accumulators, groups, fences, and shared operands being read.

A result is computed when its mma_async is issued, but kept here, out of the registers, until a wait_group
retires it; meanwhile the registers hold a NaN pattern, so that a kernel that looks too early also computes
wrong values. Registers are known by fragment: the tuple of names that an mma_async was given.

Time is counted in fences: a register touched at epoch e needs a wgmma.fence later than e before an mma_async
may have it (PTX ISA 9.7.15.7.1). Shared operands are held, through proxy.py, until the same wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tcomp.runtime.vgpu import formats
from tcomp.runtime.vgpu.lanes import Array, Sel, compact, every, some
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.matrix_numbers import canonical
from tcomp.runtime.vgpu.proxy import InFlight, finish_read
from tcomp.runtime.vgpu.ptx import Instr
from tcomp.runtime.vgpu.wgmma_registers import fragments, is_multiply

POISON = np.uint32(0x7FFF7FFF)  # a NaN as f32 and as two f16
IN_FLIGHT = "wgmma register in flight"


@dataclass(eq=False)
class Fragment:
    """The registers of one accumulator or A operand. Per lane: `touched` the epoch of the last access by another
    instruction, `group` the group of the last mma_async that has them (-1 none), `used` the epoch of that."""

    names: tuple[str, ...]
    rows: Array
    tracked: list[str]
    touched: Array
    group: Array
    used: Array
    shape: str = ""
    kind: str = ""  # element type of an accumulator: f32, f16, s32
    values: Array | None = None  # (warpgroups, 64, N): accumulators in flight
    overlapping: list[Fragment] = field(default_factory=list)
    pending: bool = False  # may some lane be in flight


@dataclass
class Held:
    """Shared memory that one mma_async reads: row n of the flight's words belongs to warpgroup `groups[n]`."""

    groups: Array
    group: Array  # the commit group of each
    flight: InFlight

    def split(self, which: Array) -> Held:
        f, n = self.flight, len(self.groups)
        words, lanes = (x.reshape(n, -1)[which].reshape(-1) for x in (f.words, f.lanes))
        return Held(self.groups[which], self.group[which], InFlight(f.instr, words, lanes, f.writes))


class Warpgroups:
    def __init__(self, m: Machine) -> None:
        self.m = m
        self.per_block = -(-m.warps // 4)
        self.number: Array = m.slot * self.per_block + m.warp // 4
        block, k = np.divmod(np.arange(m.slots * self.per_block), self.per_block)
        self.first_lane: Array = block * m.stride + k * 128
        self.fragments: dict[tuple[str, ...], Fragment] = {}
        self.of_register: dict[str, list[Fragment]] = {}
        for i in m.program.code:
            if is_multiply(i):
                for names in fragments(i):
                    self._add(names)
        for f in self.fragments.values():
            f.overlapping = [g for g in self.fragments.values() if g is not f and set(g.names) & set(f.names)]
        self.fenced: Array = np.zeros(m.lanes, np.int64)
        self.committed: Array = np.zeros(m.lanes, np.int64)
        self.reads: list[Held] = []
        self.start()

    def _add(self, names: tuple[str, ...]) -> None:
        if not names or names in self.fragments:
            return
        m, n = self.m, self.m.lanes
        rows = np.array([m.flow.row[r] for r in names if r in m.flow.row])
        f = Fragment(names, rows, [r for r in names if r in m.flow.tracked], np.zeros(n, np.int64),
                     np.full(n, -1), np.full(n, -1))  # fmt: skip
        self.fragments[names] = f
        for r in names:
            self.of_register.setdefault(r, []).append(f)

    def start(self) -> None:
        """A new wave of blocks: nothing in flight, nothing fenced."""
        self.epoch = 1
        self.fenced[:] = 0
        self.committed[:] = 0
        self.reads.clear()
        for f in self.fragments.values():
            f.touched[:] = 0
            f.group[:] = -1
            f.used[:] = -1
            f.pending = False

    # --- ordinary instructions
    def touch(self, i: Instr, touched: list[Fragment], sel: Sel) -> None:
        """An ordinary instruction reads or writes registers of these fragments."""
        for f in touched:
            if f.pending:
                busy = f.group[sel] >= 0
                if some(busy):
                    self.m.finding(IN_FLIGHT, i, self.m.ids[sel][busy],
                                   "touches accumulators or A registers of an mma_async that no wgmma.wait_group has "
                                   "retired")  # fmt: skip
            f.touched[sel] = self.epoch

    def fence(self, sel: Sel) -> None:
        self.epoch += 1
        self.fenced[sel] = self.epoch

    def commit(self, sel: Sel) -> None:
        self.committed[sel] += 1

    # --- what an mma_async needs
    def check_fence(self, i: Instr, f: Fragment, sel: Sel, shape: str) -> None:
        m, fenced = self.m, self.fenced[sel]
        bad = fenced == 0
        why = "no wgmma.fence came before this mma_async"
        if not some(bad):
            bad = f.touched[sel] >= fenced
            why = "its registers were touched by other instructions after the last wgmma.fence"
            if not some(bad) and f.shape not in ("", shape):
                bad = f.used[sel] >= fenced
                why = "an mma_async of another shape had these registers after the last wgmma.fence"
        if some(bad):
            m.finding("missing wgmma.fence", i, m.ids[sel][bad], why)
        for g in f.overlapping:
            busy = g.group[sel] >= 0
            if g.pending and some(busy):
                m.finding(IN_FLIGHT, i, m.ids[sel][busy], "some registers belong to another mma_async in flight")
            g.touched[sel] = self.epoch

    def hold(self, f: Fragment, sel: Sel, shape: str) -> None:
        f.group[sel] = self.committed[sel]
        f.used[sel] = self.epoch
        f.shape, f.pending = shape, True

    # --- accumulators: registers (N/2, lanes) <-> (warpgroups, 64, N); element i = (j, h, e), thread = (w, g, t)
    def gather(self, f: Fragment, sel: Sel) -> Array:
        raw = self.registers(f, sel)
        if f.kind == "f16":
            halves = formats.from16(np.ascontiguousarray(raw)[..., None].view(np.uint16), "f16")
            r = halves.reshape(-1, 2, raw.shape[1], 2).transpose(0, 1, 3, 2)
        else:
            r = raw.view(np.float32 if f.kind == "f32" else np.int32).reshape(-1, 2, 2, raw.shape[1])
        j = r.shape[0]
        r = r.reshape(j, 2, 2, -1, 4, 8, 4)
        return np.ascontiguousarray(r.transpose(3, 4, 1, 5, 0, 6, 2)).reshape(-1, 64, 8 * j)

    def scatter(self, f: Fragment, groups: Array) -> None:
        assert f.values is not None
        n = f.values.shape[2]
        values = f.values[groups]
        if f.kind == "f32":
            values = canonical(values)
        r = values.reshape(-1, 4, 2, 8, n // 8, 4, 2).transpose(4, 2, 6, 0, 1, 3, 5)
        if f.kind == "f16":
            bits = formats.to16(np.moveaxis(r, 2, -1), "f16")
            raw = np.ascontiguousarray(bits).view(np.uint32)[..., 0]
        else:
            raw = np.ascontiguousarray(r).view(np.uint32)
        self._write(f, self.lanes_of(groups), raw.reshape(len(f.names), -1))

    def check_defined(self, i: Instr, f: Fragment, sel: Sel) -> None:
        for r in f.tracked:
            undefined = ~self.m.defined[r][sel]
            if some(undefined):
                self.m.finding("uninitialised register", i, self.m.ids[sel][undefined],
                               f"`{r}` is accumulated into before anything is written to it")  # fmt: skip
                self.m.defined[r][sel] = True

    def poison(self, f: Fragment, sel: Sel) -> None:
        self._write(f, sel, POISON)

    def registers(self, f: Fragment, sel: Sel) -> Array:
        file = self.m.files[32]
        found: Array = file[f.rows, sel] if sel.__class__ is slice else file[f.rows[:, None], sel]
        return found

    def _write(self, f: Fragment, sel: Sel, raw: Any) -> None:
        file = self.m.files[32]
        if sel.__class__ is slice:
            file[f.rows, sel] = raw
        else:
            file[f.rows[:, None], sel] = raw
        for r in f.tracked:
            self.m.defined[r][sel] = True

    def lanes_of(self, groups: Array) -> Sel:
        lanes = (self.first_lane[groups][:, None] + np.arange(128)).reshape(-1)
        return compact(lanes)

    # --- waiting
    def wait(self, sel: Sel, groups: Array, newest: int) -> None:
        """Retires all but the `newest` committed groups of these warpgroups."""
        limit = self.committed[self.first_lane[groups]] - newest
        for f in self.fragments.values():
            if not f.pending:
                continue
            group = f.group[self.first_lane[groups]]
            done = groups[(group >= 0) & (group < limit)]
            if not len(done):
                continue
            if f.values is not None:
                self.scatter(f, done)
            f.group[self.lanes_of(done)] = -1
            f.pending = some(f.group >= 0)
        if self.reads:
            self._stop_reading(groups, limit)

    def _stop_reading(self, groups: Array, limit: Array) -> None:
        limits = np.full(len(self.first_lane), -1)
        limits[groups] = limit
        left = []
        for held in self.reads:
            done = held.group < limits[held.groups]
            if every(done):
                finish_read(self.m, held.flight)
            elif some(done):
                finish_read(self.m, held.split(done).flight)
                left.append(held.split(~done))
            else:
                left.append(held)
        self.reads = left


def warpgroups(m: Machine) -> Warpgroups:
    """The machine's warpgroup state, made when first asked for."""
    found = m.warpgroups
    if found is None:
        found = m.warpgroups = Warpgroups(m)
    assert isinstance(found, Warpgroups)
    return found
