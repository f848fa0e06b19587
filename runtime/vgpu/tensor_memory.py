"""Tensor memory of a wave's blocks (PTX ISA 9.7.16.1): 128 lanes x 512 columns of 32 bits each, and who uses it.

Columns are allocated; lanes 32 w .. 32 w + 31 belong to warp w of a warpgroup. Operations on it (tcgen05.mma, ld, st)
are asynchronous: of each cell (16 lanes of a column) the last write and the last reads are remembered as `Operation`s,
which are in flight until a commit's mbarrier phase or a tcgen05.wait ends them. Whoever touches a cell after that must
have synchronised with the operation's warp, and fenced (9.7.16.6):

    tcgen05.wait::ld / ::st, tcgen05.fence::before_thread_sync, arrive  ->  wait, tcgen05.fence::after_thread_sync
    tcgen05.commit                                                       ->  wait, tcgen05.fence::after_thread_sync
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.lanes import Array, distinct, every, some
from tcomp.runtime.vgpu.machine import Machine, WaveState
from tcomp.runtime.vgpu.ptx import Instr
from tcomp.runtime.vgpu.tensor_allocation import COLUMNS, Allocations

LANES = 128
CELL = 16  # lanes of a cell
POISON = np.uint32(0x7FFF7FFF)  # a NaN as f32 and as f16


@dataclass(frozen=True)
class Region:
    """Part of a block's tensor memory: the cells (of 16 lanes) `cells` in the columns `columns`."""

    slot: int
    cells: slice
    columns: slice

    @property
    def at(self) -> tuple[int, slice, slice]:
        return self.slot, self.cells, self.columns


@dataclass(eq=False)
class Operation:
    """One asynchronous operation by `lane`. `shape` says which accumulator a product has, and how large. `done`: when
    its end was noticed, -1 in flight."""

    number: int
    instr: Instr
    kind: str  # mma, ld, st
    lane: int
    issued: int
    shape: tuple[int, int, int] | None = None
    done: int = -1


class TensorMemory(WaveState):
    def __init__(self, m: Machine) -> None:
        self.m = m
        self.data: Array = np.zeros((m.slots, LANES, COLUMNS), np.uint32)
        cells = (m.slots, LANES // CELL, COLUMNS)
        self.written: Array = np.zeros(cells, bool)
        self.writer: Array = np.zeros(cells, np.int32)  # the operation that wrote last, 0 none
        self.reader: Array = np.zeros(cells, np.int32)  # that read last
        self.other: Array = np.zeros(cells, np.int32)  # and the last one of another warp than the reader's
        self.allocations = Allocations(m)
        self.fenced: Array = np.zeros_like(m.order.clock)  # what each warp knew at its last fence::after_thread_sync
        self.products: Any = None  # op_tcgen05_mma.Products, once the kernel has a product
        self.start()
        m.parts.append(self)

    def start(self) -> None:
        for cells in (self.written, self.writer, self.reader, self.other):
            cells[:] = 0
        self.allocations.start()
        self.fenced[:] = self.m.now
        self.before: dict[int, list[int]] = {}  # of each warp, when it executed fence::before_thread_sync
        self.operations: list[Operation | None] = [None]
        self.open: dict[int, list[Operation]] = {}  # by lane: products in flight, oldest first
        if self.products is not None:
            self.products.reads.clear()
        self.moves: dict[tuple[int, str], list[Operation]] = {}  # by warp and kind: ld and st in flight

    # --- operations
    def begin(self, i: Instr, kind: str, lane: int, shape: tuple[int, int, int] | None = None) -> Operation:
        op = Operation(len(self.operations), i, kind, lane, self.m.now, shape)
        self.operations.append(op)
        if kind == "mma":
            self.open.setdefault(lane, []).append(op)
        else:
            self.moves.setdefault((lane >> 5, kind), []).append(op)
        return op

    def allocated(self, i: Instr, lane: int, r: Region) -> bool:
        """Do all of its columns belong to an allocation? Reported where not."""
        c = r.columns
        if c.start >= 0 and c.stop <= COLUMNS and every(self.allocations.owner[r.slot, c]):
            return True
        free = [n for n in range(c.start, c.stop) if n >= COLUMNS or n < 0 or not self.allocations.owner[r.slot, n]]
        self.m.finding("out of bounds tensor", i, np.array([lane]),
                       f"columns {c.start} to {c.stop - 1} of tensor memory, of which {len(free)} are not allocated",
                       free[0])  # fmt: skip
        return False

    def read(self, op: Operation, r: Region) -> Array:
        """Notes and checks a read. Which cells have nothing to give yet (cells, columns), or had nothing ever."""
        flying: Array = np.zeros(self.writer[r.at].shape, bool)
        if not self.m.options.checks:
            return flying
        self._check(op, r, False)
        self.check_defined(op, r)
        writers, reader, other = self.writer[r.at], self.reader[r.at], self.other[r.at]
        for n in distinct(writers).tolist():
            p = self.operations[n]
            if p is not None and p.done < 0 and not (op.kind == "mma" == p.kind):
                flying |= writers == n
        for n in distinct(reader).tolist():
            p = self.operations[n]
            if p is not None and p.lane >> 5 != op.lane >> 5:
                other[reader == n] = n
        reader[:] = op.number
        return flying

    def check_defined(self, op: Operation, r: Region) -> None:
        empty = ~self.written[r.at]
        if some(empty) and self.m.options.checks:
            self.m.finding("uninitialised read of tensor memory", op.instr, np.array([op.lane]),
                           "nothing was written there since it was allocated", self._column(r, empty))  # fmt: skip
            self.written[r.at] = True

    def write(self, op: Operation, r: Region) -> None:
        """Notes and checks a write."""
        if self.m.options.checks:
            self._check(op, r, True)
            self.writer[r.at] = op.number
            self.reader[r.at] = self.other[r.at] = 0
            self.written[r.at] = True

    def released(self, op: Operation, r: Region) -> None:
        """The columns are given back: all that was done to them must be over."""
        if self.m.options.checks:
            self._check(op, r, True, fences=False)
        for cells in (self.written, self.writer, self.reader, self.other):
            cells[r.at] = 0

    def finish_move(self, kind: str, warps: Array) -> None:
        """tcgen05.wait::ld or ::st by these warps."""
        for w in warps.tolist():
            for op in self.moves.pop((w, kind), ()):
                op.done = self.m.now

    def take(self, lane: int) -> list[Operation]:
        """The products that a tcgen05.commit of this lane follows."""
        return list(self.open.get(lane, ()))

    def finish_products(self, lane: int, ended: list[Operation]) -> None:
        for op in ended:
            op.done = self.m.now if op.done < 0 else op.done
        self.open[lane] = [op for op in self.open.get(lane, ()) if op.done < 0]

    # --- fences
    def fence(self, lanes: Array, after: bool) -> None:
        """tcgen05.fence; by some lanes it counts for their warp."""
        order = self.m.order
        for w in distinct(lanes >> 5).tolist():
            at = int(self.m.team[w << 5]), int(self.m.place[w << 5])
            if not after:
                self.before.setdefault(w, []).append(self.m.now)
                continue
            known = order.clock[at]
            if order.deferred is not None:  # a relaxed wait is enough for these fences
                known = np.maximum(known, order.deferred[0][at])
            for lane in lanes[order.is_apart[lanes] & (lanes >> 5 == w)].tolist() if order.apart else ():
                known = np.maximum(known, order.apart[lane][0])
            self.fenced[at] = known
        self.m.now += 1

    # --- checks
    def _column(self, r: Region, wrong: Array) -> int:
        return int(r.columns.start) + int(np.flatnonzero(wrong.any(axis=0))[0])

    def _check(self, op: Operation, r: Region, writes: bool, fences: bool = True) -> None:
        for cells in (self.writer, *((self.reader, self.other) if writes else ())):
            numbers = cells[r.at]
            for n in distinct(numbers).tolist():
                earlier = self.operations[n]
                if earlier is None or earlier is op:
                    continue
                found = self._fault(earlier, op, fences)
                if found is not None:
                    kind, text = found
                    self.m.finding(kind, op.instr, np.array([op.lane]), text, self._column(r, numbers == n))

    def _fault(self, p: Operation, op: Operation, fences: bool) -> tuple[str, str] | None:
        """What is wrong with `op` after the earlier operation `p` on the same cells; None where it is in order."""
        what = f"the tcgen05.{p.kind} of line {p.instr.line}"
        if p.kind == op.kind == "mma" and p.shape == op.shape:  # these keep their order, without waiting
            if p.lane == op.lane or (p.done >= 0 and self._unordered(p, op, p.issued, True, what, fences) is None):
                return None
            if p.done < 0:
                return self._unordered(p, op, p.issued, True, what, fences)
        if p.done < 0:
            if p.kind != "mma":
                return "missing tcgen05.wait", f"meets {what}, which no tcgen05.wait::{p.kind} has ended"
            why = "tcgen05.commit it to an mbarrier and wait for the phase"
            if op.kind == "mma":
                why = "only products with the same accumulator and shape are in order"
            return "tensor memory before completion", f"meets {what}, which is in flight: {why}"
        if p.kind != "mma" and p.lane >> 5 == op.lane >> 5:
            return None
        return self._unordered(p, op, p.done, p.kind != "mma", what, fences)

    def _unordered(
        self, p: Operation, op: Operation, when: int, released: bool, what: str, fences: bool
    ) -> tuple[str, str] | None:
        """Does the warp of `op` not know, through fences, what was at `when`? `released`: a fence of p's warp, too."""
        m = self.m
        mine = int(m.team[op.lane]), int(m.place[op.lane])
        column = int(m.order.column[p.lane] if p.kind == "mma" else m.place[p.lane])
        known = int(self.fenced[mine][column])
        seen = max(int(m.order.seen(np.array([op.lane]), np.array([column]))[0]), known)
        if when > seen:
            return "tensor memory race", f"meets {what} by another thread, with no synchronisation between them"
        if not fences:
            return None
        if when > known:
            return "missing tcgen05.fence", (
                f"comes after {what} by synchronisation alone: tcgen05.fence::after_thread_sync belongs after the wait"
            )
        times = self.before.get(p.lane >> 5, [])
        k = bisect_left(times, when)
        if released and (k == len(times) or times[k] > seen):
            return "missing tcgen05.fence", (
                f"comes after {what} by another warp, which executed no tcgen05.fence::before_thread_sync before it "
                "synchronised"
            )
        return None

    def finish(self) -> None:
        if not self.m.stopped:
            self.allocations.finish()
