"""tcgen05 but its products (PTX ISA 9.7.16.7 to .11): alloc, dealloc, ld, st, wait and fence of tensor memory.

ld and st move 32-bit cells between tensor memory and a warp's registers, for 32 or 16 of the lanes that are the warp's
own. They are done at once here, but before a tcgen05.wait has ended them, registers that a ld gave may not be
overwritten, nor cells that either used be touched. Whoever reads such a register waits for it (9.7.16.6.4.5), which
orders nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.access import Access
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction, watcher
from tcomp.runtime.vgpu.flow import registers_in, uses_and_definitions
from tcomp.runtime.vgpu.lanes import Array, Sel, compact, distinct, ids, one_each, some
from tcomp.runtime.vgpu.machine import Machine, WaveState
from tcomp.runtime.vgpu.op_matrix import everyone, items, whole_warps
from tcomp.runtime.vgpu.op_warp import complete
from tcomp.runtime.vgpu.ptx import Addr, Imm, Instr, Operand
from tcomp.runtime.vgpu.tensor_allocation import KIND
from tcomp.runtime.vgpu.tensor_memory import CELL, POISON, Region, TensorMemory

WAIT = "missing tcgen05.wait"


def group_of(d: Decoder, i: Instr) -> int:
    """How many blocks an instruction is of: with .cta_group::2 a pair, whose ranks differ in the last bit."""
    found = {n for n in (1, 2) if f"cta_group::{n}" in i.parts}
    if len(found) != 1:
        raise d.unknown(i, "expected .cta_group::1 or .cta_group::2")
    every = {
        p for x in d.m.program.code if x.opcode.startswith("tcgen05.") for p in x.parts if p.startswith("cta_group")
    }
    if len(every) > 1:
        raise d.unknown(i, "all tcgen05 instructions of a kernel must have the same .cta_group")
    if 2 in found and d.m.ranks % 2:
        raise d.unknown(i, f".cta_group::2 needs pairs of blocks, and the cluster has {d.m.ranks}")
    return found.pop()


def warp_value(m: Machine, i: Instr, values: Any, sel: Sel, what: str) -> Array:
    """One integer for each warp of `sel`; a finding where its lanes do not agree."""
    by_warp = one_each(values, len(ids(sel))).astype(np.int64).reshape(-1, 32)
    differs = by_warp != by_warp[:, :1]
    if some(differs):
        m.finding(KIND, i, m.ids[sel][differs.reshape(-1)], f"the lanes of a warp give different values of {what}")
    return by_warp[:, 0]


def of_pairs(d: Decoder, i: Instr, act: Callable[[Sel], None]) -> Run:
    """Runs `act` for whole warps; with .cta_group::2 when one of the pair's other block has come as well."""
    m, t, run = d.m, TensorMemory.of(d.m), whole_warps(d, i, act)
    if group_of(d, i) == 1:
        return run
    m.explain[i.line, i.opcode] = lambda lane: f"waits in `{i.opcode}` for the other block of its pair"

    def both(sel: Sel) -> Any:
        lanes, _ = complete(m, i, sel, everyone)
        warps = [w for w in distinct(lanes >> 5).tolist() if t.allocations.met(32 * w)]
        go = lanes[np.isin(lanes >> 5, warps)]
        if (those := compact(go)) is not None:
            run(those)
        for w in warps:
            t.allocations.past(32 * w)
        return None if len(go) == len(ids(sel)) else go

    return both


# --- allocation
@instruction("tcgen05.alloc")
def allocate(d: Decoder, i: Instr) -> Run:
    m, t, paired = d.m, TensorMemory.of(d.m), group_of(d, i) == 2
    space = "shared" if any(p.startswith("shared") for p in i.parts) else "generic"
    access, columns = Access(d, i, i.operands[0], space, 4, 1, False), d.source(i.operands[1], "u32")
    m.explain[i.line, i.opcode] = t.allocations.room

    def run(sel: Sel) -> Any:
        """Warps for which there is no room wait."""
        lanes, _ = complete(m, i, sel, everyone)
        if not len(lanes):
            return lanes
        wanted = warp_value(m, i, columns(lanes), lanes, "the number of columns")
        first, found = lanes[::32], []
        for lane, n in zip(first.tolist(), wanted.tolist(), strict=True):
            together = not paired or t.allocations.met(lane)
            found.append(t.allocations.allocate(i, lane, n, paired) if together else None)
            if paired and found[-1] is not None:
                t.allocations.past(lane)
        ready = np.array([f is not None for f in found])
        if some(ready):
            who = first[ready]
            access.current = who
            given = np.array([f for f in found if f is not None], np.uint32)
            for p in access.parts(who):
                at = np.arange(len(who)) if p.where is None else p.where
                access.check_write(p, who[at])
                p.segment.view(np.uint32)[p.start >> 2] = given[at]
                p.segment.init[p.start[:, None] + np.arange(4)] = 1
                if m.options.checks and p.segment is m.shared:  # in order with copies to this place (9.7.16.6.1)
                    shadow = m.shared.shadow()
                    shadow.asynchronous()[p.start // shadow.granule] = m.now
        go = lanes[np.repeat(ready, 32)]
        return None if len(go) == len(ids(sel)) else go

    return run


@instruction("tcgen05.dealloc")
def free(d: Decoder, i: Instr) -> Run:
    m, t = d.m, TensorMemory.of(d.m)
    address, columns = d.source(i.operands[0], "u32"), d.source(i.operands[1], "u32")

    def act(sel: Sel) -> None:
        first = warp_value(m, i, address(sel), sel, "the address")
        counts = warp_value(m, i, columns(sel), sel, "the number of columns")
        for lane, a, n in zip(ids(sel)[::32].tolist(), first.tolist(), counts.tolist(), strict=True):
            if t.allocations.free(i, lane, a, n):
                whole = Region(int(m.slot[lane]), slice(0, 8), slice(a, a + n))
                t.released(t.begin(i, "dealloc", lane), whole)
        m.progress += 1

    return of_pairs(d, i, act)


@instruction("tcgen05.relinquish_alloc_permit")
def relinquish(d: Decoder, i: Instr) -> Run:
    m, t = d.m, TensorMemory.of(d.m)

    def act(sel: Sel) -> None:
        t.allocations.relinquished.update(distinct(m.slot[sel]).tolist())

    return of_pairs(d, i, act)


# --- registers
@dataclass(frozen=True)
class Move:
    """The cells of one ld or st: `lane` and `column` (registers, 32 threads) from the address on; `span` the number of
    lanes (16 or 32), `columns` those that are touched."""

    lane: Array
    column: Array
    span: int
    columns: tuple[slice, ...]


def move_of(d: Decoder, i: Instr, offset: int) -> Move:
    """The shape of a tcgen05.ld or st. `offset`: of the second half of .16x32bx2."""
    shape = next((p for p in i.parts if p.startswith(("32x", "16x"))), "")
    times = next((int(p[1:]) for p in i.parts if p[0] == "x" and p[1:].isdigit()), 0)
    if not times or i.parts[2:4] != ["sync", "aligned"] or {"pack::16b", "unpack::16b", "red"} & set(i.parts):
        raise d.unknown(i, "of tcgen05.ld and st, packing and reductions are not executed")
    thread = np.arange(32)[None, :]
    if shape in ("32x32b", "16x32bx2"):
        r = np.arange(times)[:, None]
        if shape == "32x32b":
            return Move(thread + 0 * r, r + 0 * thread, 32, (slice(0, times),))
        halves = slice(0, times), slice(offset, offset + times)
        return Move(thread % 16 + 0 * r, r + thread // 16 * offset, 16, halves)
    per = {"16x128b": 1, "16x256b": 2}.get(shape)
    if per is None:
        raise d.unknown(i, f"the shape .{shape} is not executed: .32x32b, .16x32bx2, .16x128b and .16x256b are")
    r = np.arange(2 * per * times)[:, None]  # as an accumulator of mma.m16n8: pairs of columns, then 8 rows below
    lane = thread // 4 + r // per % 2 * 8
    column = thread % 4 * per + r % per + r // (2 * per) * 4 * per
    return Move(lane, column, 16, (slice(0, 4 * per * times),))


WarpAccess = tuple[slice, int, list[Region], tuple[Array, Array]]
"""one warp's: its threads among those that run, the first of them, what it touches, and (lane, column) of each register
of each thread"""


def mover(d: Decoder, i: Instr, o: Operand, registers: Operand, move: Move) -> Callable[[Sel], Iterator[WarpAccess]]:
    """What each warp accesses; a finding, and no access, where that is not its own or not allocated."""
    m, t = d.m, TensorMemory.of(d.m)
    if not isinstance(o, Addr) or o.base is None:
        raise d.unknown(i, "expected an address in a register")
    if len(items(registers)) != len(move.lane):
        raise d.unknown(i, f"{len(items(registers))} registers are given, this form takes {len(move.lane)}")
    base, offset = d.source(o.base, "u32"), o.offset

    def addresses(sel: Sel) -> Array:
        return warp_value(m, i, base(sel), sel, "the address") + offset

    def regions(lane: int, address: int) -> list[Region] | None:
        row, column = address >> 16, address & 0xFFFF
        own = int(m.warp[lane]) % 4 * 32
        if row not in ((own,) if move.span == 32 else (own, own + 16)):
            m.finding("tensor memory of another warp", i, np.array([lane]),
                      f"lanes from {row} on: this warp has lanes {own} to {own + 31}", address)  # fmt: skip
            return None
        cells = slice(row // CELL, (row + move.span) // CELL)
        found = [Region(int(m.slot[lane]), cells, slice(column + c.start, column + c.stop)) for c in move.columns]
        return found if all(t.allocated(i, lane, r) for r in found) else None

    def accesses(sel: Sel) -> Iterator[WarpAccess]:
        lanes = ids(sel)
        for w, address in enumerate(addresses(sel).tolist()):
            found = regions(int(lanes[32 * w]), address)
            if found is not None:
                place = (address >> 16) + move.lane, (address & 0xFFFF) + move.column
                yield slice(32 * w, 32 * w + 32), int(lanes[32 * w]), found, place

    return accesses


def half_offset(d: Decoder, i: Instr, operands: list[Operand]) -> int:
    """Takes the immediate of .16x32bx2 off the operands."""
    if "16x32bx2" not in i.parts:
        return 0
    o = operands.pop(next(n for n, o in enumerate(operands) if isinstance(o, Imm)))
    assert isinstance(o, Imm)
    return int(o.value)


@instruction("tcgen05.ld")
def load(d: Decoder, i: Instr) -> Run:
    m, t, operands = d.m, TensorMemory.of(d.m), list(i.operands)
    move = move_of(d, i, half_offset(d, i, operands))
    to, o = operands
    accesses = mover(d, i, o, to, move)
    puts = [d.put(r, "b32") for r in items(to)]
    loads = Loads.of(m)

    def act(sel: Sel) -> None:
        out = np.zeros((len(puts), len(ids(sel))), np.uint32)
        for warp, lane, found, place in accesses(sel):
            op, data = t.begin(i, "ld", lane), t.data[found[0].slot].copy() if m.options.checks else None
            for r in found:
                flying = t.read(op, r)
                if data is not None and some(flying):
                    part = data[r.cells.start * CELL : r.cells.stop * CELL, r.columns]
                    part[np.repeat(flying, CELL, axis=0)] = POISON
            source = t.data[found[0].slot] if data is None else data
            out[:, warp] = source[place]
        for put, row in zip(puts, out, strict=True):
            put(sel, row)
        loads.begin(i, sel)
        m.traffic("tensor").bytes_read += out.nbytes

    return whole_warps(d, i, act)


@instruction("tcgen05.st")
def store(d: Decoder, i: Instr) -> Run:
    m, t, operands = d.m, TensorMemory.of(d.m), list(i.operands)
    move = move_of(d, i, half_offset(d, i, operands))
    o, given = operands
    accesses = mover(d, i, o, given, move)
    sources = [d.source(r, "b32") for r in items(given)]

    def act(sel: Sel) -> None:
        raw = np.stack([one_each(s(sel), len(ids(sel))) for s in sources])
        for warp, lane, found, place in accesses(sel):
            op = t.begin(i, "st", lane)
            for r in found:
                t.write(op, r)
            t.data[found[0].slot][place] = raw[:, warp]
        m.traffic("tensor").bytes_written += raw.nbytes

    return whole_warps(d, i, act)


@instruction("tcgen05.wait::ld", "tcgen05.wait::st")
def wait(d: Decoder, i: Instr) -> Run:
    m, t, loads = d.m, TensorMemory.of(d.m), Loads.of(d.m)
    kind = i.parts[1].removeprefix("wait::")
    if i.parts[2:] != ["sync", "aligned"]:
        raise d.unknown(i, "expected .sync.aligned")

    def act(sel: Sel) -> None:
        t.finish_move(kind, distinct(ids(sel) >> 5))
        if kind == "ld":
            loads.end(sel)
        m.now += 1

    return whole_warps(d, i, act)


@instruction("tcgen05.fence::before_thread_sync", "tcgen05.fence::after_thread_sync")
def fence(d: Decoder, i: Instr) -> Run:
    t, after = TensorMemory.of(d.m), i.parts[1] == "fence::after_thread_sync"
    return lambda sel: t.fence(ids(sel), after)


@instruction("tcgen05")
def unknown(d: Decoder, i: Instr) -> Run:
    raise d.unknown(i)


# --- registers that a ld has yet to fill
class Loads(WaveState):
    """Which lanes have a tcgen05.ld in flight, for each such instruction of the program."""

    def __init__(self, m: Machine) -> None:
        self.m = m
        self.lanes: dict[int, Array] = {}
        self.of_register: dict[str, list[int]] = {}
        for i in m.program.code:
            if i.opcode.startswith("tcgen05.ld"):
                self.lanes[id(i)] = np.zeros(m.lanes, bool)
                for r in registers_in(i.operands[0]):
                    self.of_register.setdefault(r, []).append(id(i))
        self.busy: set[int] = set()
        m.parts.append(self)

    def start(self) -> None:
        for n in self.busy:
            self.lanes[n][:] = False
        self.busy.clear()

    def begin(self, i: Instr, sel: Sel) -> None:
        self.lanes[id(i)][sel] = True
        self.busy.add(id(i))

    def end(self, sel: Sel) -> None:
        for n in list(self.busy):
            self.end_one(n, sel)

    def end_one(self, n: int, sel: Sel) -> None:
        if n in self.busy:
            self.lanes[n][sel] = False
            if not some(self.lanes[n]):
                self.busy.discard(n)


@watcher
def watch_registers(d: Decoder, i: Instr, run: Run) -> Run:
    """Wraps instructions that touch registers that some tcgen05.ld gives: those that read one wait for the load."""
    m = d.m
    if not m.options.checks or not m.program.uses_tensor_loads:
        return run
    loads = Loads.of(m)
    used, defined = m.flow.facts.get(id(i)) or uses_and_definitions(i, m.program.registers)
    awaited, lost = (
        list(dict.fromkeys(n for r in names for n in loads.of_register.get(r, ()) if n != id(i)))
        for names in (used, defined)
    )
    if not awaited and not lost:
        return run

    def watched(sel: Sel) -> Any:
        for n in awaited:
            loads.end_one(n, sel)
        for n in lost:
            if n in loads.busy:
                early = loads.lanes[n][sel]
                if some(early):
                    m.finding(WAIT, i, m.ids[sel][early],
                              "overwrites registers that a tcgen05.ld gives before a tcgen05.wait::ld")  # fmt: skip
        return run(sel)

    return watched
