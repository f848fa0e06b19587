"""Values of a register tile, to where a Compute writes them: old values read, masks, lanes that may collide."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llvmlite import ir

from tcomp.codegen.cpu.addressing import Place
from tcomp.codegen.cpu.evaluation import Evaluator
from tcomp.codegen.cpu.reducer import Reducer
from tcomp.codegen.cpu.transpose import lanes_of
from tcomp.codegen.llvm.domain import Domain, Point
from tcomp.codegen.llvm.expressions import Node
from tcomp.codegen.llvm.types import I64, IrValue, kind_of, kind_type
from tcomp.ir.tile import Compute


class Results:
    """The target of one Compute, in its domain; `wide` says that the vector axis walks it."""

    def __init__(self, node: Compute, domain: Domain, evaluator: Evaluator, target: Place, reducer: Reducer) -> None:
        self.node, self.domain, self.target, self.reducer = node, domain, target, reducer
        self.em, self.evaluator, self.memory = domain.emitter, evaluator, evaluator.memory
        self.wide = domain.vector is not None and domain.vector not in node.reduced

    def write(self, points: list[dict[str, int]], values: list[IrValue], guard: Node | None) -> None:
        """Store one value per point; old values are read first, or in turn where points may collide."""
        if self.node.accumulate and self.node.distinct and guard is None:
            old = [self.read(p) for p in points]
            self.em.here()
            values = [self.reducer.combine(o, v) for o, v in zip(old, values, strict=True)]
        if guard is None and (self.node.distinct or not self.node.accumulate):
            self.store_all(points, values)
            return
        conditions = [None if guard is None else self.evaluator.value(guard, p) for p in points]
        for p, v, condition in zip(points, values, conditions, strict=True):
            if condition is not None and not isinstance(condition.type, ir.VectorType):
                self.em.when(condition, partial(self._update, p, v, None))
            else:
                self._update(p, v, condition)

    def write_runs(self, firsts: Sequence[Point], value: IrValue) -> None:
        """Store the f32 results in a register's lanes: runs of elements side by side, each from one of these points."""
        lanes, align = value.type.count // len(firsts), self.target.buffer.dtype.bytes
        for i, first in enumerate(firsts):
            pointer = self.memory.addressing.pointer(self.target, first)
            b = self.em.here()
            run = value if len(firsts) == 1 else lanes_of(b, value, range(i * lanes, (i + 1) * lanes))
            if self.node.accumulate:
                run = self.reducer.combine(b.load(pointer, typ=run.type, align=align), run)
            b.store(run, pointer, align=align)

    def _update(self, point: Point, value: IrValue, condition: IrValue | None) -> None:
        """One point's store, with its read before it where the target accumulates."""
        if self.node.accumulate and self.wide and not self._lanes_distinct(point):
            self._update_lanes(point, value, condition)
            return
        if self.node.accumulate:
            old = self.read(point)
            self.em.here()
            value = self.reducer.combine(old, value)
        self._store(point, value, condition)

    def _lanes_distinct(self, point: Point) -> bool:
        """Lanes surely name different elements (or the whole Compute says that points do)."""
        return self.node.distinct or self.memory.addressing.lane_stride(self.target, point) == 1

    def _update_lanes(self, point: Point, value: IrValue, condition: IrValue | None) -> None:
        """target += value lane after lane, since two lanes may name one element."""
        memory, em = self.memory, self.em
        pointers = memory.lanes(self.target, point)
        mask = self.domain.mask(point)
        if condition is not None:
            mask = condition if mask is None else em.here().and_(mask, condition)
        for lane, pointer in enumerate(pointers):

            def update(lane: int = lane, pointer: IrValue = pointer) -> None:
                b = em.here()
                old = memory.read(pointer, self.target.buffer.dtype)
                new = b.extract_element(value, em.i64(lane))
                new = b.sext(new, I64) if self.reducer.kind == "int" else new
                memory.write(self.reducer.combine(self._in_kind(old), new), pointer, self.target.buffer.dtype)

            if mask is None:
                update()
            else:
                em.when(em.here().extract_element(mask, em.i64(lane)), update)

    def read(self, point: Point) -> IrValue:
        """The target's old value in the accumulators' kind."""
        memory = self.memory
        if self.wide:
            old = memory.load_vector(self.target, point, self.domain.mask(point), self.em.depth)
        else:
            old = memory.load_scalar(self.target, point, None, self.em.depth)
        return self._in_kind(old)

    def _in_kind(self, old: IrValue) -> IrValue:
        if self.reducer.kind == "f64" and kind_of(self.target.buffer.dtype) == "f32":
            return self.em.builder.fpext(old, kind_type("f64", self.domain.lanes if self.wide else 0))
        return old

    def store_all(self, points: list[dict[str, int]], values: list[IrValue]) -> None:
        """One value per point, without conditions."""
        if not (self.wide and self.domain.interleaved):
            for point, value in zip(points, values, strict=True):
                self._store(point, value, None)
            return
        pairs = zip(points[::2], values[::2], values[1::2], strict=True)
        for point, even, odd in pairs:  # the vector axis is the fastest of the points
            even, odd = self.in_target(even), self.in_target(odd)
            self.memory.store_halves(self.target, point, even, odd)

    def _store(self, point: Point, value: IrValue, condition: IrValue | None) -> None:
        memory = self.memory
        value = self.in_target(value)
        if not self.wide:
            memory.store_scalar(self.target, point, value)
            return
        mask = self.domain.mask(point)
        if condition is not None:
            mask = condition if mask is None else self.em.builder.and_(mask, condition)
        memory.store_vector(self.target, point, value, mask)

    def in_target(self, value: IrValue) -> IrValue:
        """The value in the target's kind."""
        b = self.em.here()
        if self.reducer.kind == "f64" and kind_of(self.target.buffer.dtype) == "f32":
            lanes = self.domain.lanes if isinstance(value.type, ir.VectorType) else 0
            return b.fptrunc(value, kind_type("f32", lanes))
        return value
