"""Partial results of several threads joined into one that all of them hold, always in the same order.

Lanes exchange by butterfly shuffles: each step joins two equal pairs, so every lane ends with the same bits. Warps
write to shared memory and, after a barrier, every thread adds the warps' parts in their order; where that is many, each
result is joined by a few threads (`dealing.py`).
"""

from __future__ import annotations

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.types import F32, F64, I8, I32, I64, IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter, dimension_size
from tcomp.codegen.nvptx.threads.dealing import LANES, VECTOR, Dealing, dealing
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.codegen.nvptx.threads.plan import Plan, Sharing, exchange_lanes, joins_warps
from tcomp.ir.tile import Compute


def combine(em: GpuEmitter, reducer: str, kind: str, a: IrValue, x: IrValue) -> IrValue:
    """The reducer on two values, emitted where the builder stands; max and min pass over NaN."""
    b = em.builder
    if reducer == "sum":
        return b.add(a, x) if kind == "int" else b.fadd(a, x)
    if kind == "int":
        return b.select(b.icmp_signed(">" if reducer == "max" else "<", x, a), x, a)
    return em.intrinsic("llvm.maxnum" if reducer == "max" else "llvm.minnum", a.type, [a, x], [a.type])


class Joiner:
    """Joins the results of one Compute's threads."""

    def __init__(
        self, em: GpuEmitter, scope: GpuScope, node: Compute, sharing: Sharing, reducer: str, plan: Plan
    ) -> None:
        self.em, self.scope, self.node, self.sharing = em, scope, node, sharing
        self.reducer, self.whole = reducer, plan.whole
        self.dealing = dealing(plan.points, sharing, em.threads) if joins_warps(sharing) else None

    def join(self, values: list[IrValue]) -> list[IrValue]:
        """Each value joined over all threads along the reduced axes' dimensions."""
        for value in values[:1]:
            self.kind = "int" if value.type == I32 else "f64" if value.type == F64 else "f32"
        self.em.here()
        shape = self.em.threads
        if self.dealing is not None and len(values) == self.dealing.each and values[0].type != F64:
            return self._dealt(values, self.dealing)
        for d, first in (("lane.x", 1), ("lane.y", shape.lanes_x)):
            if d in self.sharing.reduced:
                step = first * dimension_size(shape, d) // 2
                while step >= first:
                    values = [combine(self.em, self.reducer, self.kind, v, self._from_lane(v, step)) for v in values]
                    step //= 2
        return self._across_warps(values) if joins_warps(self.sharing) else values

    def _from_lane(self, value: IrValue, distance: int) -> IrValue:
        """The value of the lane whose number differs in one bit."""
        em = self.em
        b = em.builder
        text = f"shfl.sync.bfly.b32 $0, $1, {distance}, 31, -1;"
        if value.type == F64:
            bits = b.bitcast(value, I64)
            parts = [b.trunc(bits, I32), b.trunc(b.lshr(bits, ir.Constant(I64, 32)), I32)]
            low, high = (b.zext(self._shuffle(text, p), I64) for p in parts)
            return b.bitcast(b.or_(low, b.shl(high, ir.Constant(I64, 32))), F64)
        if value.type == F32:
            return b.bitcast(self._shuffle(text, b.bitcast(value, I32)), F32)
        return self._shuffle(text, value)

    def _shuffle(self, text: str, value: IrValue) -> IrValue:
        name = "llvm.nvvm.shfl.sync.bfly.i32"
        em = self.em
        function = em.module.globals.get(name)
        if function is None:
            function = ir.Function(em.module, ir.FunctionType(I32, [I32] * 4), name=name)
        distance = int(text.split(",")[2])
        return em.builder.call(function, [em.i64(-1), value, em.i64(distance), em.i64(31)])

    def _across_warps(self, values: list[IrValue]) -> list[IrValue]:
        """Through shared memory, laid out [value][warp][lane that holds its own result]."""
        em, shape = self.em, self.em.threads
        base = self.scope.exchange[id(self.node)]
        t = values[0].type
        size = 8 if t == F64 else 4
        lanes = exchange_lanes(self.sharing, shape)
        if not self.whole:
            em.barrier()
        warp = self._sum([(em.coordinate("warp.x"), 1), (em.coordinate("warp.y"), shape.warps_x)])
        lane = self._lane()
        slot = self._sum([(warp, lanes), (lane, 1)])
        b = em.here()
        pointer = b.gep(base, [em.i64(slot)], source_etype=t)
        stride = shape.warps * lanes * size

        def write() -> None:
            b = em.here()
            for i, v in enumerate(values):
                b.store(v, b.gep(pointer, [ir.Constant(I64, i * stride)], source_etype=I8), align=size)

        idle = [d for d in ("lane.x", "lane.y") if d not in self.sharing.parallel]
        first = em.first_along(frozenset(idle))
        if first is None:
            write()
        else:
            em.when(first, write)
        em.barrier()
        reduced = [d for d in ("warp.x", "warp.y") if d in self.sharing.reduced]
        own = self._sum([
            (0 if "warp.x" in reduced else em.coordinate("warp.x"), lanes),
            (0 if "warp.y" in reduced else em.coordinate("warp.y"), shape.warps_x * lanes),
            (lane, 1),
        ])  # fmt: skip
        b = em.here()
        start = b.gep(base, [em.i64(own)], source_etype=t)
        xs = range(shape.warps_x if "warp.x" in reduced else 1)
        ys = range(shape.warps_y if "warp.y" in reduced else 1)
        out = []
        for i in range(len(values)):
            total: IrValue | None = None
            for offset in ((y * shape.warps_x + x) * lanes * size for y in ys for x in xs):
                part = b.load(b.gep(start, [ir.Constant(I64, i * stride + offset)], source_etype=I8), typ=t, align=size)
                total = part if total is None else combine(em, self.reducer, self.kind, total, part)
            out.append(total)
        return out

    def _dealt(self, values: list[IrValue], how: Dealing) -> list[IrValue]:
        """Through shared memory, laid out [part][four points of each lane, the next four ..]."""
        em, t = self.em, values[0].type
        base = self.scope.exchange[id(self.node)]
        vector = ir.VectorType(t, VECTOR)
        if not self.whole:
            em.barrier()

        def at(parts: list[tuple[Int, int]]) -> IrValue:
            place = self._sum(parts)
            return em.here().gep(base, [em.i64(place)], source_etype=t)

        def behind(pointer: IrValue, elements: int) -> IrValue:
            return em.here().gep(pointer, [ir.Constant(I64, elements)], source_etype=t)

        warp = self._sum([(em.coordinate("warp.x"), 1), (em.coordinate("warp.y"), em.threads.warps_x)])
        own = self._lane()
        part = self._sum([(warp, LANES // how.own), (self._lane(parallel=False), 1)])
        mine, results = at([(part, how.pitch), (own, VECTOR)]), at([(own, VECTOR)])
        for i in range(0, how.each, VECTOR):
            four: IrValue = ir.Constant(vector, ir.Undefined)
            for j in range(VECTOR):
                four = em.here().insert_element(four, values[i + j], em.i64(j))
            em.here().store(four, behind(mine, i * how.own), align=4 * VECTOR)
        em.barrier()
        lane = em.lane()
        b = em.here()
        helper, neighbour = b.udiv(lane, em.i64(how.neighbours)), b.urem(lane, em.i64(how.neighbours))

        def joined(point: Int) -> None:
            start = at([(point, 1), (helper, how.pitch)])
            total: IrValue | None = None
            for p in range(0, how.parts, how.helpers):
                x = em.here().load(behind(start, p * how.pitch), typ=t, align=4)
                total = x if total is None else combine(em, self.reducer, self.kind, total, x)
            assert total is not None
            step = how.helpers // 2
            while step:
                em.here()
                total = combine(em, self.reducer, self.kind, total, self._from_lane(total, step * how.neighbours))
                step //= 2
            em.here().store(total, at([(point, 1)]), align=4)

        first = self._sum([(warp, how.neighbours), (neighbour, 1)])
        em.repeat(first, how.points, em.threads.threads // how.helpers, joined)
        em.barrier()
        out = []
        for i in range(0, how.each, VECTOR):
            four = em.here().load(behind(results, i * how.own), typ=vector, align=4 * VECTOR)
            out += [em.here().extract_element(four, em.i64(j)) for j in range(VECTOR)]
        return out

    def _lane(self, parallel: bool = True) -> Int:
        """The number of this lane among those with results of their own; else among those that have the same."""
        em, shape = self.em, self.em.threads
        x, y = (parallel == (d in self.sharing.parallel) for d in ("lane.x", "lane.y"))
        parts = [(em.coordinate("lane.x"), 1)] if x else []
        return self._sum(parts + ([(em.coordinate("lane.y"), shape.lanes_x if x else 1)] if y else []))

    def _sum(self, parts: list[tuple[Int, int]]) -> Int:
        em = self.em
        em.here()
        total: Int = 0
        for value, factor in parts:
            total = em.add(total, em.mul(value, factor))
        return total


def exchange_bytes(points: int, scope_threads: tuple[int, int], f64: bool) -> int:
    """Bytes of shared memory for the exchange between warps: (warps, lanes with own results) in `scope_threads`."""
    warps, lanes = scope_threads
    return points * warps * lanes * (8 if f64 else 4)
