"""One `Compute` as a thread's code: its tiles of the parallel axes, reductions around them, guarded ends.

    tile of the parallel axes:                                  positions, or turns in a loop
        accumulators = identity                                 one SSA value per point of the tile
        for each step of the reduced axes:
            accumulators = reduce(accumulators, value at each point)
        join accumulators of lanes and warps                    where a reduced axis is divided among threads
        target = accumulators (+ old target)                    by the first of the threads that hold the result

Where the axes' ends are not known to fit the block, or points count only under a condition, one uniform test picks
between code without any check and code whose values are clamped and masked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from llvmlite import ir

from tcomp.codegen.llvm.conditions import conditions, remaining, without
from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.expressions import Node
from tcomp.codegen.llvm.integers import Known
from tcomp.codegen.llvm.tiles import Span, span_of, surely_empty, when_some
from tcomp.codegen.llvm.types import I1, I32, IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.phase_facts import pads
from tcomp.codegen.nvptx.threads import guards
from tcomp.codegen.nvptx.threads.addressing import Addressing, Place, has_room
from tcomp.codegen.nvptx.threads.domain import GpuDomain, GpuScope, Point
from tcomp.codegen.nvptx.threads.evaluation import GpuEvaluator, GpuGraph, scalar_type, value_kind
from tcomp.codegen.nvptx.threads.join import Joiner, combine
from tcomp.codegen.nvptx.threads.plan import plan_of, sharing_of
from tcomp.codegen.nvptx.threads.rounded import NARROW, for_narrow, in_casts
from tcomp.codegen.nvptx.threads.scan import can_scan, scan
from tcomp.codegen.nvptx.threads.turns import Walker, turns_of
from tcomp.codegen.nvptx.threads.writing import Writer
from tcomp.dsl.ast import Access, Expr
from tcomp.ir.reducers import identity
from tcomp.ir.tile import Axis, Buffer, Compute, Scope
from tcomp.ir.walk import accesses_of

Parts = list[IrValue | None]
"""Accumulators; None: one that nothing has come to"""
_SEPARATE = 4
"""accumulators per thread below which several are kept for one point, to hide latency"""


class ComputeGenerator:
    """Writes one Compute at the emitter's current place."""

    def __init__(self, em: GpuEmitter, scope: GpuScope, node: Compute, joins: bool = True) -> None:
        """Without `joins` threads keep parts of a sum in registers, which are joined later."""
        self.em, self.scope, self.compute, self.joins = em, scope, node, joins
        self.plan = plan_of(node, scope.buffers)
        self.sharing = sharing_of(node, em.threads)
        self.parallel, self.reduced = self.plan.parallel, self.plan.reduced
        self.reducer = node.reducer or "sum"
        self.spans: dict[str, Span] = {}

    def generate(self, whole: bool | None = None) -> None:
        """Emit the whole Compute; nothing happens when a parallel axis is empty (a reduction still writes). `whole`
        says which of the two pieces of code is wanted that `whole()` tells apart; None: both, and the test."""
        em = self.em
        if any(surely_empty(a, self.scope) for a in self.parallel):
            return
        with em.frame():
            unsure = self._enter()
            when_some(em, [s.length for s in unsure], lambda: self._checked(whole))

    def whole(self) -> IrValue | None:
        """Is the tile whole, and do its conditions hold all over what the warp has of it? None where that is no
        question. (Only where the code has no barriers of the block, since each warp goes its own way.)"""
        if any(surely_empty(a, self.scope) for a in self.parallel):
            return None
        self._enter()
        unsure, held = self._tested()
        return self._whole(unsure, held, True)[0] if unsure or held else None

    def none(self, condition: Expr) -> IrValue:
        """Does the condition hold nowhere in what the warp has of the tile?"""
        self._enter()
        return guards.fails(self.em, self.scope, condition, guards.of_warp(self.em, self.compute.axes, self.spans))

    def _enter(self) -> list[Span]:
        """Find the axes' spans; gives those of parallel axes that may be empty."""
        em = self.em
        em.here()
        self.spans = {a.name: span_of(em, a, self.scope) for a in self.compute.axes}
        unsure = [self.spans[a.name] for a in self.parallel if (self.spans[a.name].known.lo or 0) <= 0]
        if self._surplus():
            self.spans = {
                n: replace(s, length=a.block, known=Known.exact(a.block))
                for a in self.compute.axes
                for n, s in [(a.name, self.spans[a.name])]
            }
        return unsure

    def _surplus(self) -> bool:
        """May points past the axes' ends be computed as well: all that they read is there, and the copy engine leaves
        out their results?"""
        node, scope = self.compute, self.scope
        if node.target.tensor not in scope.delivered or node.accumulate or node.atomic or node.reduced or node.guard:
            return False
        axes = {a.name: a for a in node.axes}

        def there(a: Access) -> bool:
            buffer = scope.buffers[a.tensor]
            known = a is node.target or a.tensor in scope.filled
            return buffer.scope is Scope.REGISTERS or (known and has_room(a, buffer, axes))

        return all(there(a) for a in accesses_of(node))

    def _tested(self) -> tuple[list[Axis], list[Expr]]:
        """The axes of which it is asked whether they fill the block, and the conditions, whether they hold all over."""
        node = self.compute
        unsure = [a for a in node.axes if not isinstance(self.spans[a.name].length, int)
                  and self.spans[a.name].known.hi == a.block and self._worth_testing(a)]  # fmt: skip
        held = [e for e in conditions(node) if any(self.plan.unrolled(a.name) for a in node.axes)]
        return unsure, held

    def _whole(self, unsure: list[Axis], held: list[Expr], own: bool) -> tuple[IrValue, dict[str, Span]]:
        """The answer (`own`: for the warp), and the spans where it is yes."""
        em = self.em
        b = em.here()
        whole: IrValue = ir.Constant(I1, 1)
        spans = dict(self.spans)
        for a in unsure:
            span = self.spans[a.name]
            whole = b.and_(whole, b.icmp_signed("==", em.i64(span.length), em.i64(a.block)))
            spans[a.name] = replace(span, length=a.block, known=Known.exact(a.block))
        asked = guards.of_warp(em, self.compute.axes, self.spans) if held and own else self.spans
        for e in held:
            here = guards.holds(em, self.scope, e, asked)
            whole = em.here().and_(whole, here)
        return whole, spans

    def _checked(self, decided: bool | None) -> None:
        """One copy of the code where all is known, else one for whole blocks and one for cut ones."""
        node = self.compute
        unsure, held = self._tested()
        if not unsure and not held:
            self._tiles(self.spans, node.value, node.guard)
            return
        whole, spans = self._whole(unsure, held, False)
        value, guard = without(node.value, held), remaining(node.guard, held)

        def clean() -> None:
            self._tiles(spans, value, guard)

        def cut() -> None:
            self._tiles(self.spans, node.value, node.guard)

        if decided is None:
            self.em.either(whole, clean, cut)
        else:
            (clean if decided else cut)()

    def _worth_testing(self, axis: Axis) -> bool:
        """Loops of turns check their own ends; positions need the test."""
        return self.plan.unrolled(axis.name) and axis.block > 1

    # ------------------------------------------------------------------------------------------- tiles

    def _tiles(self, spans: dict[str, Span], of: Expr, where: Expr | None) -> None:
        """The thread's tiles of the value `of`, at the points where `where` holds."""
        node, em = self.compute, self.em
        self.domain = GpuDomain(em, self.scope, em.depth, None, 1, spans=spans)
        for a in node.axes:
            self.domain.declare(a, spans[a.name].start)
        addressing = Addressing(self.domain)
        graph = GpuGraph(frozenset(self.domain.axes), addressing)
        self.evaluator = GpuEvaluator(self.domain, graph, addressing)
        self.walker = Walker(self.domain)
        self.target: Place = addressing.place(node.target, graph)
        narrow = self.scope.buffers[node.target.tensor].dtype in NARROW
        value = graph.build((for_narrow if narrow else in_casts)(of))
        kind = value_kind(self.target.buffer.dtype)
        self.kind = "f64" if "f64" in (kind, value.kind) and kind != "int" else kind
        self.value, self.scale = self._unscaled(graph.cast(value, self.kind))
        self.guard: Node | None = None
        if where is not None:
            guard = graph.cast(graph.build(where), "bool") if value.unsafe else graph.condition(where)
            if not (guard.is_literal and guard.data):
                self.guard = guard
        self.padded = False
        if self._must_clear(spans):
            self.padded = self.guard is None and pads(node, self.plan, self.scope.buffers)
            if self.padded:
                self.target = replace(self.target, roomy=True)
            else:
                clear(em, self.scope, self.target.buffer)
        self.joiner = Joiner(em, self.scope, node, self.sharing, self.reducer, self.plan)
        self.writer = Writer(self.evaluator, node, self.target, self.kind, self.reducer, self.sharing, self.padded)
        self._over(0)

    def _unscaled(self, value: Node) -> tuple[Node, float | None]:
        """`max i: x[i] * c` --> `(max i: x[i]) * c` for a positive number c: rounding is monotone, so the same bits."""
        if self.reduced and self.reducer != "sum" and value.op == "mul" and self.kind != "int":
            for x, c in (value.args, value.args[::-1]):
                if c.is_literal and isinstance(c.data, float) and 0 < c.data < math.inf:
                    return x, c.data
        return value, None

    def _must_clear(self, spans: dict[str, Span]) -> bool:
        """Is the target a shared tile that is read whole, of which this writes only a part?"""
        buffer, whole = self.target.buffer, self.scope.zeroed | self.scope.filled
        if buffer.scope is not Scope.SHARED or buffer.name not in whole or self.compute.accumulate:
            return False
        return any(spans[a.name].length != a.block for a in self.parallel)

    def _over(self, i: int) -> None:
        """The loops of the parallel axes from the i-th inward; unrolled ones are entered on the way."""
        if i == len(self.parallel):
            self._tile()
            return
        axis = self.parallel[i]
        if self.plan.unrolled(axis.name):
            self.walker.unrolled(axis, self.padded)
            self._over(i + 1)
            return

        if self.guard is not None and self._scanned(axis):
            guard, self.guard = self.guard, None
            scan(self.domain, self.evaluator, guard, axis, lambda: self._over(i + 1))
            self.guard = guard
            return

        def body(_: list[IrValue]) -> list[IrValue]:
            self._over(i + 1)
            return []

        self.walker.looped(axis, self.plan.turns[axis.name], [], body)

    def _scanned(self, axis: Axis) -> bool:
        """Is it a scatter's walk, of which data says what counts?"""
        axes = {a.name: a for a in self.compute.axes}
        assert self.guard is not None
        return not self.compute.distinct and not self.reduced and can_scan(self.domain, self.guard, axis, axes)

    def _points(self, axes: Sequence[Axis]) -> list[dict[str, int]]:
        """Positions of the tile over these axes, the last axis fastest."""
        ranges = [range(len(self.domain.places[a.name].offsets)) for a in axes]
        return [dict(zip([a.name for a in axes], p, strict=True)) for p in product(*ranges)]

    def _tile(self) -> None:
        points = self._points(self.parallel)
        if not self.reduced:
            self.writer.map(points, self.value, self.guard)
            if not self.plan.whole and self.writer.reads_neighbours(points):
                self.em.barrier()  # before the next turn's reads
            return
        count = self._separate(len(points))
        first = ir.Constant(scalar_type(self.kind), identity(self.reducer, self.kind == "int"))
        # (Where all steps are written out each accumulator begins as the first value that comes to it.)
        written_out = all(self.plan.unrolled(a.name) for a in self.reduced)
        start: Parts = [None if written_out else first] * (len(points) * count)
        kept = self._kept() and self.scale is None
        if kept:
            start[::count] = [self.writer.old(p) for p in points]
        accumulators = self._reduce(0, points, count, start)
        self.em.here()
        parts = [accumulators[p * count : (p + 1) * count] for p in range(len(points))]
        results = [self._merge([x for x in own if x is not None] or [first]) for own in parts]
        if self.joins:
            results = self.joiner.join(results)
        if self.scale is not None:
            b = self.em.here()
            results = [b.fmul(r, ir.Constant(r.type, self.scale)) for r in results]
        self.writer.write(points, results, None, accumulate=self.compute.accumulate and not kept)

    def _kept(self) -> bool:
        """Can the accumulators begin as the old target: it is in this thread's registers, in their own type, and
        its part of the reduction is nobody else's."""
        plain = value_kind(self.target.buffer.dtype) == self.kind and self.target.buffer.dtype.bytes >= 4
        alone = not self.sharing.reduced or not self.joins
        return self.compute.accumulate and self.target.in_registers and plain and alone

    # -------------------------------------------------------------------------------------- reductions

    def _separate(self, points: int) -> int:
        """Accumulators per point."""
        steps = math.prod(self.plan.turns[a.name] or turns_of(a).values for a in self.reduced)
        return max(1, min(_SEPARATE // points, steps)) if points < _SEPARATE else 1

    def _reduce(self, i: int, points: list[dict[str, int]], count: int, acc: Parts) -> Parts:
        """The loops of the reduced axes from the i-th inward; gives the accumulators after them."""
        if i == len(self.reduced):
            return self._accumulate(points, count, acc)
        axis = self.reduced[i]
        if surely_empty(axis, self.scope):
            return acc
        if self.plan.unrolled(axis.name):
            self.walker.unrolled(axis)
            return self._reduce(i + 1, points, count, acc)

        def body(carried: list[IrValue]) -> list[IrValue]:
            return _all_there(self._reduce(i + 1, points, count, list(carried)))

        return list(self.walker.looped(axis, self.plan.turns[axis.name], _all_there(acc), body))

    def _accumulate(self, points: list[dict[str, int]], count: int, acc: Parts) -> Parts:
        """One step of the reduction at every point of the tile."""
        acc = list(acc)
        for s, step in enumerate(self._points(self.reduced)):
            for p, point in enumerate(points):
                k = p * count + s % count
                acc[k] = self._step(acc[k], {**point, **step})
        return acc

    def _step(self, acc: IrValue | None, point: Point) -> IrValue:
        """The accumulator with the value at a point; None: it has none yet."""
        ev, em = self.evaluator, self.em
        condition = self.domain.mask(point, frozenset(a.name for a in self.reduced))
        if self.guard is not None:
            wanted = ev.value(self.guard, point)
            condition = wanted if condition is None else em.here().and_(condition, wanted)
        factors = self.value.args if self.value.op == "mul" else None
        guard = self.guard if self.value.unsafe else None
        if self.reducer == "sum" and factors and self.kind != "int" and acc is not None:
            x, y = (ev.value(f, point, guard) for f in factors)
            em.here()
            new = em.intrinsic("llvm.fma", acc.type, [x, y, acc], [acc.type])
        else:
            value = ev.value(self.value, point, guard)
            em.here()
            new = value if acc is None else combine(em, self.reducer, self.kind, acc, value)
        if condition is None:
            return new
        if acc is None:
            acc = ir.Constant(new.type, identity(self.reducer, self.kind == "int"))
        return em.builder.select(condition, new, acc)

    def _merge(self, parts: list[IrValue]) -> IrValue:
        """Accumulators of one point as one, pairwise."""
        while len(parts) > 1:
            pairs = [combine(self.em, self.reducer, self.kind, parts[i], parts[i + 1])
                     for i in range(0, len(parts) - 1, 2)]  # fmt: skip
            parts = pairs + parts[len(pairs) * 2 :]
        return parts[0]


def _all_there(parts: Parts) -> list[IrValue]:
    """The accumulators that a loop carries, which have begun before it."""
    found = [p for p in parts if p is not None]
    assert len(found) == len(parts)
    return found


def clear(em: GpuEmitter, scope: GpuScope, buffer: Buffer) -> None:
    """All threads of the block set a shared tile to 0, and wait for each other."""
    em.here()
    root = scope.roots[buffer.name]

    def body(at: Int) -> None:
        b = em.here()
        vector = ir.VectorType(I32, 4)
        b.store(ir.Constant(vector, None), b.gep(root, [em.i64(at)], source_etype=vector), align=16)

    em.repeat(em.thread(), -(-buffer.bytes // 16), em.threads.threads, body)
    em.barrier()
