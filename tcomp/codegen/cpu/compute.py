"""One `Compute` as machine loops: register tiles of the parallel axes, reductions around them, tails.

    for each tile of the parallel axes (outermost axis first):      full tiles, then what remains
        accumulators = identity                                     one register per point of the tile
        for each step of the reduced axes:                          accumulators are SSA values around it
            accumulators = reduce(accumulators, value at each point)
        target = accumulators (+ old target)                        masked where a vector runs past the end

Maps, reductions, contractions and scatters are this one generator; they differ in their axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product

from tcomp.codegen.cpu.addressing import Addressing, Place
from tcomp.codegen.cpu.beside import Beside, LoopBody, loop_beside
from tcomp.codegen.cpu.counted_prefetch import CountedPrefetcher, reduction_prefetchers
from tcomp.codegen.cpu.dot import dot
from tcomp.codegen.cpu.epilogue import Epilogue
from tcomp.codegen.cpu.evaluation import Evaluator
from tcomp.codegen.cpu.interleave import by_parity, in_pairs, interleavable
from tcomp.codegen.cpu.prefetch import WIDE, MapPrefetcher, Prefetcher, TilePrefetcher, touch_registers
from tcomp.codegen.cpu.reducer import Reducer
from tcomp.codegen.cpu.results import Results
from tcomp.codegen.cpu.rounded import as_stored
from tcomp.codegen.cpu.rows import results_of_rows, side_by_side
from tcomp.codegen.cpu.segments import Segment, can_narrow, conditions_of, segments, singles_of
from tcomp.codegen.cpu.steps import separate_steps, unrolled
from tcomp.codegen.llvm.conditions import remaining, without
from tcomp.codegen.llvm.domain import Domain, Point, Scope
from tcomp.codegen.llvm.emitter import Emitter, Int
from tcomp.codegen.llvm.expressions import Graph, Node
from tcomp.codegen.llvm.tiles import Span, Variant, cut, span_of, surely_empty, tile_state, when_some
from tcomp.codegen.llvm.types import IrValue, kind_of
from tcomp.dsl.ast import Expr
from tcomp.ir.tile import Axis, Compute, Scope as Where

LONG_SUM = 128
"""Steps of a reduction behind which memory that was asked for at its beginning has come."""
Accumulators = list[IrValue]


class ComputeGenerator:
    """Writes one Compute at the emitter's current place."""

    def __init__(self, em: Emitter, scope: Scope, node: Compute, beside: Beside | None = None) -> None:
        self.em, self.scope, self.compute, self.beside = em, scope, node, beside
        self.parallel = [a for a in node.axes if a.name not in node.reduced]
        self.reduced = [a for a in node.axes if a.name in node.reduced]
        wide = [a for a in node.axes if a.lanes > 1]
        if len(wide) > 1:
            raise ValueError(f"more than one vector axis: {', '.join(a.name for a in wide)}")
        self.vector = wide[0].name if wide else None
        self.lanes = wide[0].lanes if wide else 1
        self.spans: dict[str, Span] = {}
        self._split: dict[str, list[Variant]] = {}
        self.reducer_name = node.reducer or ("sum" if node.accumulate or node.reduced else None)

    def generate(self) -> None:
        """Emit the whole Compute; nothing happens when an axis is empty (a reduction still writes)."""
        em = self.em
        if any(surely_empty(a, self.scope) for a in self.parallel):
            return
        with em.frame():
            em.here()
            self.spans = {a.name: span_of(em, a, self.scope) for a in self.compute.axes}
            unsure = [self.spans[a.name].length for a in self.parallel if (self.spans[a.name].known.lo or 0) <= 0]
            when_some(em, unsure, self._tiles)

    # ------------------------------------------------------------------------------------------- tiles

    def _tiles(self) -> None:
        node = self.compute
        self.domain = Domain(self.em, self.scope, self.em.depth, self.vector, self.lanes)
        for a in node.axes:
            self.domain.declare(a, self.spans[a.name].start)
        addressing = Addressing(self.domain)
        self.graph = Graph(frozenset(self.domain.axes), addressing)
        self.evaluator = Evaluator(self.domain, self.graph, addressing)
        self.target: Place = addressing.place(node.target, self.graph)
        value = self.graph.build(node.value)
        kind = kind_of(self.target.buffer.dtype)
        self.kind = "f64" if "f64" in (kind, value.kind) and kind != "int" else kind
        self.reducer = Reducer(self.em, self.reducer_name or "sum", self.kind)
        self.results = Results(node, self.domain, self.evaluator, self.target, self.reducer)
        self.known: dict[Expr, bool] = {}
        self.value, self.guard = self._built()
        self.run = 0  # results of a register tile side by side, where one vector has all of them
        if self.kind == "f32" and self._across:
            self.parallel, self.reduced, self.run = side_by_side(
                node, self.parallel, self.reduced, self.target, self.scope.registers
            )
        self.conditions = conditions_of(node, self.domain, [*self.parallel, *self.reduced])
        self.narrows = can_narrow(node, self.parallel, self.conditions)
        if self.narrows:
            # Vectors inside: then the condition cuts their loop, whose last tile has only those that are needed.
            self.parallel.sort(key=lambda a: a.lanes > 1)
            self.conditions = conditions_of(node, self.domain, [*self.parallel, *self.reduced])
        found = ((x, self.graph.cast(self.graph.build(x.value), "int")) for x in singles_of(node))
        # What may read outside of a tensor is read under its guard only, not ahead of the loops.
        self.singles = [(x, self.evaluator.value(n, {})) for x, n in found if not n.unsafe]
        self.reduced = unrolled(self.reduced, self.parallel, self.scope.registers, self.value.cost, self.spans)
        self._interleave()
        self.prefetchers: list[Prefetcher | CountedPrefetcher] = []
        if self.reduced:
            cut = frozenset(c.axis for c in self.conditions if c.skips and c.bends)
            self.prefetchers = reduction_prefetchers(self.em, self.scope, node, self.parallel, self.reduced, cut)
        maps = [] if self.reduced else [MapPrefetcher(self.em, self.scope, p) for p in node.prefetch]
        self.map_prefetchers = [p for p in maps if p.possible]
        self.epilogue = Epilogue(node, self.domain, self.graph, self.evaluator)
        self.last = None if node.last is None else self.evaluator.value(self.graph.build(node.last), {})
        self._parallel(0)

    def _built(self) -> tuple[Node, Node | None]:
        """The value and the guard, where the conditions that are known hold or fail."""
        held, failed = ([e for e, h in self.known.items() if h is which] for which in (True, False))
        chosen = without(self.compute.value, held, failed)
        if not self.reduced:
            chosen = as_stored(chosen, self.target.buffer.dtype)
        value = self.graph.cast(self.graph.build(chosen), self.kind)
        left = remaining(self.compute.guard, held)
        guard = None if left is None else self.graph.cast(self.graph.build(left), "bool")
        return value, None if guard is not None and guard.is_literal and guard.data else guard

    @contextmanager
    def _knowing(self, segment: Segment) -> Iterator[None]:
        """In a segment's loop, conditions are known."""
        before = self.known, self.value, self.guard
        if segment.known:
            self.known = {**self.known, **segment.known}
            self.value, self.guard = self._built()
        yield
        self.known, self.value, self.guard = before

    def _interleave(self) -> None:
        """Let registers of the vector axis hold even and odd elements, where that is allowed."""
        wide = next((a for a in self.compute.axes if a.name == self.vector), None)
        self.interleaved = wide is not None and interleavable(self.compute, wide, self.value, self.target)
        if self.interleaved:
            self.parallel, self.reduced = (
                [in_pairs(a) if a.name == self.vector else a for a in axes] for axes in (self.parallel, self.reduced)
            )

    def _parallel(self, i: int) -> None:
        """The loops of the parallel axes from the i-th inward."""
        if i == len(self.parallel):
            self._tile()
            return
        axis = self.parallel[i]
        for s in self._segments(axis):

            def body(base: Int, _: Sequence[IrValue], s: Segment = s) -> Sequence[IrValue]:
                with self._knowing(s):
                    self._enter(axis, s.variant, base)
                    self._parallel(i + 1)
                return []

            v = s.variant
            self.em.loop(v.start, v.stop, v.unroll * axis.lanes, [], body, v.nonempty)

    def _variants(self, axis: Axis) -> list[Variant]:
        """Full tiles, and what remains: one tile of known size, or single registers."""
        found = self._split.get(axis.name)
        if found is None:
            self.em.at(self.domain.level)
            found = self._split[axis.name] = cut(self.em, axis, self.spans[axis.name])
        return found

    def _segments(self, axis: Axis) -> list[Segment]:
        """The axis's loops, cut where conditions begin to hold or end to; their bounds are emitted in this frame."""
        variants = self._variants(axis)
        found = self.conditions, self.singles, self.narrows and axis.lanes > 1
        return [s for v in variants for s in segments(self.em, self.domain, axis, v, *found)]

    def _enter(self, axis: Axis, v: Variant, base: Int) -> None:
        """Set the axis's state for a tile at `base`."""
        state = tile_state(self.em, axis, self.spans[axis.name], v, base)
        paired = self.interleaved and axis.name == self.vector
        self.domain.states[axis.name] = by_parity(state, v, self.value) if paired else state

    def _points(self, axes: Sequence[Axis]) -> list[dict[str, int]]:
        """The registers of the tile over these axes, the vector axis fastest: an operand broadcast along it is
        then needed for a few registers in a row and not kept for the whole tile."""
        axes = sorted(axes, key=lambda a: a.lanes > 1)
        ranges = [range(self.domain.states[a.name].unroll) for a in axes]
        names = [a.name for a in axes]
        return [dict(zip(names, p, strict=True)) for p in product(*ranges)]

    # -------------------------------------------------------------------------------- one register tile

    def _tile(self) -> None:
        points = self._points(self.parallel)
        if not self.reduced:
            self._map(points)
            return
        lanes = self.lanes if self.vector is not None else 0
        separate = [] if self.run else separate_steps(self.reduced, len(points), self.scope.registers)
        count = math.prod(a.unroll for a in separate)
        accumulators = [self.reducer.identity(lanes)] * (len(points) * count)
        onward = self._goes_on()
        if onward:
            accumulators[::count] = [self.results.read(p) for p in points]
        self._ask_ahead(points, old=self._adds() and not onward)
        for prefetcher in self.prefetchers:
            prefetcher.enter_tile(self.domain.states)
        accumulators = self._reduce(0, points, separate, accumulators)
        results = []
        if self.run and len(points) == self.lanes:
            self.results.write_runs(points[:: self.run], results_of_rows(self.reducer, accumulators))
            return
        for p in range(len(points)):
            parts = accumulators[p * count : (p + 1) * count]
            merged = self.reducer.merge(parts)
            results.append(self.reducer.across_lanes(merged, self.lanes) if self._across else merged)
        if not self.compute.epilogue:
            self._write_sums(points, results, onward)
            return
        self._where(self.last, partial(self._end, points, results, onward))
        if self.last is not None:
            more = self.em.here().not_(self.last)
            self.em.when(more, partial(self._write_sums, points, results, onward))

    def _ask_ahead(self, points: list[dict[str, int]], old: bool) -> None:
        """Prefetch what is read and written behind a long sum: the `old` sums, what maps read and write. On wide
        vectors, whose sums are short in time, maps' lines are asked for along the sum, and so are the sum's own where
        the schedule asks for them."""
        axis = self.reduced[-1]
        self.ahead = TilePrefetcher(self.domain, self.addressing, points, axis)
        if not self._is_long:
            return
        along = self.scope.lanes_f32 >= WIDE and axis.block >= LONG_SUM and axis.lanes == 1 and len(self.reduced) == 1
        wanted = along and any(p.written for p in self.compute.prefetch)
        if wanted:
            self.ahead.add(self.target, True, None)
        elif old:
            touch_registers(self.domain, self.addressing, self.target, points, written=True)
        if not along:
            self._where(self.last, partial(self.epilogue.touch, points))
            return
        for place, written in self.epilogue.far:
            self.ahead.add(place, written, self.last)

    def _where(self, condition: IrValue | None, body: Callable[[], None]) -> None:
        if condition is None:
            body()
        else:
            self.em.when(condition, body)

    def _write_sums(self, points: list[dict[str, int]], results: list[IrValue], onward: bool) -> None:
        """A reduction's results to its target; they are the target's new values already if it goes on with the old."""
        if not onward:
            self.results.write(points, results, None)
            return
        self.results.store_all(points, results)

    def _end(self, points: list[dict[str, int]], results: list[IrValue], onward: bool) -> None:
        """The epilogue, on a reduction's final values."""
        if self.compute.accumulate and not onward:
            old = [self.results.read(p) for p in points]
            self.em.here()
            results = [self.reducer.combine(o, r) for o, r in zip(old, results, strict=True)]
        self.epilogue.emit(self.target, points, [self.results.in_target(r) for r in results])

    @property
    def _is_long(self) -> bool:
        return math.prod(a.block for a in self.reduced) >= LONG_SUM

    def _goes_on(self) -> bool:
        """Whether a reduction takes up its target's old value as its first: then nothing waits for it at the end. In a
        tensor that value may be far away; behind a long sum it is added at the end, and asked for at the beginning."""
        same = self.kind == kind_of(self.target.buffer.dtype)
        far = self.target.buffer.scope is Where.OPERAND and self._is_long
        return self._adds() and same and not far

    def _adds(self) -> bool:
        """Whether a reduction's result is added to one old value per point of the register tile."""
        node = self.compute
        return node.accumulate and node.distinct and not self._across

    @property
    def _across(self) -> bool:
        """Whether the vector axis is summed over."""
        return self.vector is not None and self.vector in self.compute.reduced

    def _reduce(self, i: int, points: list[dict[str, int]], separate: list[Axis], acc: Accumulators) -> Accumulators:
        """The loops of the reduced axes from the i-th inward; gives the accumulators after them."""
        if i == len(self.reduced):
            return self._accumulate(points, separate, acc)
        axis = self.reduced[i]
        for s in self._segments(axis):

            def body(base: Int, carried: Sequence[IrValue], s: Segment = s) -> Sequence[IrValue]:
                with self._knowing(s):
                    self._enter(axis, s.variant, base)
                    return self._reduce(i + 1, points, separate, list(carried))

            v = s.variant
            ahead = self.prefetchers if axis is self.reduced[-1] else []
            for p in ahead:
                p.enter(v.start)
            acc = self._summed(v, axis, acc, body)
            for p in ahead:
                p.leave(v.start, v.stop)
        return acc

    def _summed(self, v: Variant, axis: Axis, acc: Accumulators, body: LoopBody) -> Accumulators:
        """A loop of the reduction; around whole register tiles of the innermost with other work beside it."""
        step = v.unroll * axis.lanes
        turns = axis.block // step
        if self.beside is None or axis is not self.reduced[-1] or turns < 2 or v.unroll < axis.unroll:
            return self.em.loop(v.start, v.stop, step, acc, body, v.nonempty)
        return loop_beside(self.em, self.beside, v, step, turns, acc, body)

    def _accumulate(self, points: list[dict[str, int]], separate: list[Axis], acc: Accumulators) -> Accumulators:
        """One step of the reduction at every point of the register tile."""
        acc = list(acc)
        count = len(acc) // len(points)
        innermost = self.reduced[-1].name
        prefetchers = [*self.prefetchers, self.ahead]
        for step in self._points(self.reduced):
            for prefetcher in prefetchers:
                prefetcher.touch(self.domain.states[innermost], step[innermost])
            slot = 0
            for a in separate:
                slot = slot * a.unroll + step[a.name]
            for p, point in enumerate(points):
                k = p * count + slot
                acc[k] = self._step(acc[k], {**point, **step})
        return acc

    def _step(self, acc: IrValue, point: Point) -> IrValue:
        ev, em = self.evaluator, self.em
        condition = self._condition(point)
        factors = self.value.args if self.value.op == "mul" else None
        if self.value.op == "dot":
            x, y = (ev.vector(f, point, self.guard) for f in self.value.args)
            em.here()
            new = dot(em, str(self.value.data), acc, x, y, self.scope)
        elif self.reducer.name == "sum" and factors and self.kind != "int" and self.scope.fma:
            guard = self.guard if self.value.unsafe else None
            x, y = (ev.vector(f, point, guard) for f in factors)
            em.here()
            new = em.intrinsic("llvm.fma", acc.type, [x, y, acc], [acc.type])
        else:
            value = ev.vector(self.value, point, self.guard)
            em.here()
            new = self.reducer.combine(acc, value)
        return new if condition is None else em.builder.select(condition, new, acc)

    def _condition(self, point: Point) -> IrValue | None:
        """Where this register takes part: the guard, and the lanes inside a reduced vector axis."""
        ev = self.evaluator
        mask = self.domain.mask(point) if self.vector in self.compute.reduced else None
        if self.guard is None:
            return mask
        wanted = ev.vector(self.guard, point) if mask is not None else ev.value(self.guard, point)
        if mask is None:
            return wanted
        return self.em.here().and_(mask, wanted)

    def _map(self, points: list[dict[str, int]]) -> None:
        for prefetcher in self.map_prefetchers:
            prefetcher.touch(self.domain.states, points)
        if not self.compute.distinct:
            for point in points:
                self.results.write([point], [self._target_value(point)], self.guard)
            return
        values = [self._target_value(p) for p in points]
        self.results.write(points, values, self.guard)
        if self.compute.epilogue:
            self.epilogue.emit(self.target, points, values)

    def _target_value(self, point: Point) -> IrValue:
        """The value in the shape that the target is written in."""
        ev = self.evaluator
        value = (
            ev.vector(self.value, point, self.guard) if self.results.wide else ev.value(self.value, point, self.guard)
        )
        self.em.here()
        return value

    @property
    def addressing(self) -> Addressing:
        return self.evaluator.memory.addressing
