"""Writing a Compute's results: predicated where a point may lie outside, in groups of up to 128 bits where aligned.

Threads that hold equal results leave writing memory to the first of them; registers are written by all. Where two
points may name one element (a scatter) points run in order, each group read and written before the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from tcomp.codegen.llvm.expressions import Node
from tcomp.codegen.llvm.types import F32, F64, IrValue
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.results.accumulator_store import accumulator_store
from tcomp.codegen.nvptx.threads import formats
from tcomp.codegen.nvptx.threads.addressing import Place
from tcomp.codegen.nvptx.threads.domain import Point
from tcomp.codegen.nvptx.threads.evaluation import GpuEvaluator, value_kind
from tcomp.codegen.nvptx.threads.join import combine
from tcomp.codegen.nvptx.threads.plan import Sharing
from tcomp.dsl.ast import DType, accesses_in
from tcomp.ir.tile import Compute, Scope

_ATOMIC = {DType.F32: ("f32", "f"), DType.F64: ("f64", "d"), DType.I32: ("u32", "r")}
Points = Sequence[Point]


@dataclass(frozen=True)
class Group:
    """Points written by one access: numbers into the list of points, the first point, the axis along it."""

    members: tuple[int, ...]
    first: Point
    axis: str | None


class Writer:
    """Stores values at points of one domain. `padded`: the points are all of the target, a tile in shared memory, and
    those past an axis's end get zeros."""

    def __init__(
        self,
        evaluator: GpuEvaluator,
        node: Compute,
        target: Place,
        kind: str,
        reducer: str,
        sharing: Sharing,
        padded: bool = False,
    ) -> None:
        self.padded = padded
        self.evaluator, self.node, self.target, self.kind = evaluator, node, target, kind
        self.reducer, self.sharing = reducer, sharing
        self.em = evaluator.gpu
        self.domain = evaluator.domain
        self.accumulate = node.accumulate

    def map(self, points: Points, value: Node, guard: Node | None) -> None:
        """target = value at every point, all values computed before the first is written (by any thread of the
        block, where one may read a neighbour's element)."""
        if self._adds_products(value):
            self.write(points, [self._fused(value, p, guard) for p in points], guard, accumulate=False)
            return
        if self.node.distinct:
            before = None
            for part in self._parts(points, guard):
                values = [self._value(value, p, guard) for p in part]
                if self.reads_neighbours(points):
                    self.em.barrier()
                if before is not None:
                    self.write(*before, guard)
                before = part, values
            if before is not None:
                self.write(*before, guard)
            return
        for group in self._groups(points, guard):
            members = [points[i] for i in group.members]
            self.write(members, [self._value(value, p, guard) for p in members], guard)

    def _parts(self, points: Points, guard: Node | None) -> list[Points]:
        """The points in the order in which they are computed and written, a part while the next is computed. In an
        operand's place (`Buffer.inside`) a warp's squares, two that share their columns: what all of them read would
        take registers. Other points are all computed first."""
        store = None
        if self.target.buffer.inside and guard is None and not self.reads_neighbours(points):
            store = accumulator_store(self.domain, self.target, points)
        return [points] if store is None else store.parts(points)

    def reads_neighbours(self, points: Points) -> bool:
        """Does a thread read, in place of values that it does not have, shared elements that a neighbour writes?"""
        places = {self.target.buffer.name, self.target.buffer.inside}
        return (
            self.target.buffer.scope is Scope.SHARED
            and any(a.tensor in places for a in accesses_in(self.node.value))
            and any(self.domain.mask(p) is not None for p in points)
        )

    def _adds_products(self, value: Node) -> bool:
        """Are products added to sums in this thread's registers, which one instruction does?"""
        if not (self.accumulate and self.node.distinct and self.target.in_registers and self.reducer == "sum"):
            return False
        dtype = self.target.buffer.dtype
        return value.op == "mul" and self.kind == value_kind(dtype) != "int" and dtype.bytes >= 4

    def _fused(self, value: Node, point: Point, guard: Node | None) -> IrValue:
        x, y = (self.evaluator.value(f, point, guard) for f in value.args)
        old = self.old(point)
        return self.em.intrinsic("llvm.fma", old.type, [x, y, old], [old.type])

    def _value(self, value: Node, point: Point, guard: Node | None) -> IrValue:
        found = self.evaluator.value(value, point, guard)
        self.em.here()
        return found

    def write(
        self, points: Points, values: Sequence[IrValue], guard: Node | None, accumulate: bool | None = None
    ) -> None:
        """Store one value per point, joined with the old one where the target accumulates (or `accumulate` says)."""
        self.accumulate = self.node.accumulate if accumulate is None else accumulate
        if self.target.in_registers:
            for p, v in zip(points, values, strict=True):
                self._register(p, v, guard)
            return
        conditions = [None if guard is None else self.evaluator.value(guard, p) for p in points]
        first = self.em.first_along(self.sharing.unused)
        if guard is None and first is None and self._whole_accumulator(points, values):
            return
        body = partial(self._memory, points, values, conditions, guard)
        if first is None:
            body()
        else:
            self.em.here()
            self.em.when(first, body)

    def _whole_accumulator(self, points: Points, values: Sequence[IrValue]) -> bool:
        """Store to a tile for the copy engine, or 16-bit values to one for matrix instructions, in whole squares, if
        that fits. What lies past the tensor's end may be there where it is not delivered."""
        name, plain = self.target.buffer.name, self.node.distinct and not self.node.atomic and not self.accumulate
        block = self.domain.block
        operand = name in block.zeroed and self.target.buffer.dtype.bytes == 2
        if not plain or not (name in block.delivered or operand):
            return False
        if name not in block.delivered:
            if not self.padded and any(self.domain.mask(p) is not None for p in points):
                return False
            values = [self._or_zero(p, v) for p, v in zip(points, values, strict=True)]
        found = accumulator_store(self.domain, self.target, points)
        if found is not None:
            found.store(points, [self._stored(v) for v in values])
        return found is not None

    def old(self, point: Point) -> IrValue:
        """The present element of a target in registers."""
        slot = self.evaluator.element(self.target, point)
        return self.em.here().load(slot, typ=slot.allocated_type)

    def _register(self, point: Point, value: IrValue, guard: Node | None) -> None:
        slot = self.evaluator.element(self.target, point)
        dtype = self.target.buffer.dtype
        block, name = self.domain.block, self.target.buffer.name
        zeroed = self.domain.mask(point) if name in block.zeroed else None
        mask = None if name in block.bounded or zeroed is not None else self.domain.mask(point)
        condition = None if guard is None else self.evaluator.value(guard, point)
        b = self.em.here()
        if mask is not None:
            condition = mask if condition is None else b.and_(mask, condition)
        old = b.load(slot, typ=slot.allocated_type) if self.accumulate or condition is not None else None
        if self.accumulate:
            assert old is not None
            value = combine(self.em, self.reducer, self.kind, self._in_kind(old), value)
        value = self._stored(value)
        if dtype in (DType.BF16, DType.F16, DType.E4M3, DType.E5M2):
            value = formats.round_to(self.em, value, dtype)
        if condition is not None:
            value = b.select(condition, value, old)
        if zeroed is not None:
            value = b.select(zeroed, value, ir.Constant(value.type, 0))
        b.store(value, slot)

    # ------------------------------------------------------------------------------------------ memory

    def _memory(
        self, points: Points, values: Sequence[IrValue], conditions: Sequence[IrValue | None], guard: Node | None
    ) -> None:
        groups = self._groups(points, guard)
        if self.padded:
            for g in groups:
                self._store(g, [self._or_zero(points[i], values[i]) for i in g.members])
            return
        plain = (
            []
            if self.node.atomic
            else [g for g in groups if conditions[g.members[0]] is None and self._mask(g) is None]
        )
        if self.accumulate and self.node.distinct and len(plain) == len(groups):
            old = [self._read(g) for g in groups]
            for g, o in zip(groups, old, strict=True):
                self._store(g, [self._joined(o[j], values[i]) for j, i in enumerate(g.members)])
            return
        for g in groups:
            condition = conditions[g.members[0]]
            mask = self._mask(g)
            b = self.em.here()
            if mask is not None:
                condition = mask if condition is None else b.and_(mask, condition)
            update = partial(self._update, g, [values[i] for i in g.members])
            if condition is None:
                update()
            else:
                self.em.when(condition, update)

    def _or_zero(self, point: Point, value: IrValue) -> IrValue:
        inside = self.domain.mask(point)
        return value if inside is None else self.em.here().select(inside, value, ir.Constant(value.type, 0))

    def _mask(self, group: Group) -> IrValue | None:
        return self.domain.mask(group.first)

    def _update(self, group: Group, values: Sequence[IrValue]) -> None:
        if self.node.atomic:
            self._add(group, values)
            return
        if self.accumulate:
            values = [self._joined(o, v) for o, v in zip(self._read(group), values, strict=True)]
        self._store(group, values)

    def _joined(self, old: IrValue, value: IrValue) -> IrValue:
        self.em.here()
        return combine(self.em, self.reducer, self.kind, old, value)

    def _read(self, group: Group) -> list[IrValue]:
        found = self.evaluator.read(self.target, group.first, group.axis, len(group.members), self.em.depth)
        return [self._in_kind(x) for x in found]

    def _in_kind(self, old: IrValue) -> IrValue:
        if self.kind == "f64" and value_kind(self.target.buffer.dtype) == "f32":
            return self.em.here().fpext(old, F64)
        return old

    def _stored(self, value: IrValue) -> IrValue:
        if self.kind == "f64" and value_kind(self.target.buffer.dtype) == "f32":
            return self.em.here().fptrunc(value, F32)
        return value

    def _store(self, group: Group, values: Sequence[IrValue]) -> None:
        n = len(values)
        pointer = self.evaluator.addressing.pointer(self.target, group.first, group.axis, n)
        stored = [self._stored(v) for v in values]
        self.em.here()
        formats.store(self.em, pointer, self.target.buffer.dtype, stored)

    def _add(self, group: Group, values: Sequence[IrValue]) -> None:
        """Add to memory that other blocks add to at the same time."""
        dtype = self.target.buffer.dtype
        if dtype not in _ATOMIC or self.reducer != "sum" or self.target.buffer.scope is Scope.SHARED:
            raise Unsupported(f"blocks cannot add to '{self.target.buffer.name}' ({dtype}) at once", self.node.span,
                              "combine by partials, or let the target be f32, f64 or i32")  # fmt: skip
        kind, register = _ATOMIC[dtype]
        pointer = self.evaluator.addressing.pointer(self.target, group.first, group.axis, len(values))
        for i, v in enumerate(values):
            self.em.here()
            text = f"red.global.add.{kind} [$0+{i * dtype.bytes}], $1;"
            self.em.effect(text, "l" + register, [pointer, self._stored(v)])

    def _groups(self, points: Points, guard: Node | None) -> list[Group]:
        """The points as accesses: the widest groups whose members are all there and share one condition."""
        place = self.target
        if place.in_registers:
            return [Group((i,), p, None) for i, p in enumerate(points)]
        number = {tuple(sorted(p.items())): i for i, p in enumerate(points)}
        done: set[int] = set()
        out: list[Group] = []
        for i, p in enumerate(points):
            if i in done:
                continue
            group = Group((i,), p, None)
            for axis, first, n in self.evaluator.groups(place, p):
                if guard is not None and axis in guard.deps:
                    continue
                members = [number.get(tuple(sorted({**p, axis: first + j}.items()))) for j in range(n)]
                found = [m for m in members if m is not None and m not in done]
                if len(found) == n:
                    group = Group(tuple(found), points[found[0]], axis)
                    break
            done.update(group.members)
            out.append(group)
        return out
