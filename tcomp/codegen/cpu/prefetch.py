"""Prefetching beside a reduction, without a branch: each step touches one byte of the region.

The region is cut into runs of consecutive cache lines, one for each register tile of the Compute in order; along its
reduction a tile walks over its run. So the lines come in evenly over the whole Compute. Most touches fall on a line
that is there already and cost an issue slot, no memory traffic; bursts of distinct lines, measured, cost as much as
they gained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from llvmlite import ir

from tcomp.codegen.cpu.addressing import Addressing
from tcomp.codegen.cpu.domain import AxisState, Domain, Scope
from tcomp.codegen.cpu.emitter import Emitter, Int
from tcomp.codegen.cpu.evaluation import Evaluator
from tcomp.codegen.cpu.expressions import Graph
from tcomp.codegen.cpu.tiles import span_of
from tcomp.codegen.cpu.types import I8, I32, I64, POINTER, VOID, IrValue
from tcomp.ir.tile import Axis, Prefetch

LINE = 64
"""Bytes of a cache line."""
FIRST_LEVEL = 3
"""LLVM's locality for a line that shall come into the first-level cache: the later touches then find it there."""


class Prefetcher:
    """The prefetches of one `Prefetch` inside a Compute with these parallel axes and this innermost reduced one."""

    def __init__(self, em: Emitter, scope: Scope, node: Prefetch, parallel: Sequence[Axis], reduced: Axis) -> None:
        self.em, self.parallel, self.reduced = em, parallel, reduced
        domain = Domain(em, scope, em.depth, None, 1)
        em.here()
        for a in node.axes:
            domain.declare(a, span_of(em, a, scope).start)
            domain.states[a.name] = AxisState(em.depth, 0, 1, 1, 0, (None,))
        addressing = Addressing(domain)
        graph = Graph(frozenset(domain.axes), addressing)
        Evaluator(domain, graph, addressing)
        place = addressing.place(node.source, graph)
        size = place.buffer.dtype.bytes
        # (how many, bytes from one to the next) along each dimension of the region, lines along the contiguous one.
        dims = [(domain.axes[a].block, stride * size) for a, stride in sorted(place.counters, key=lambda c: -c[1])]
        self.possible = bool(dims) and dims[-1][1] == size and place.panel is None and not place.gathered
        if self.possible:
            lines = -(-dims[-1][0] * size // LINE) + 1  # a row may begin within a line
            rows = math.prod(n for n, _ in dims[:-1])
            self.tiles = math.prod(math.ceil(a.block / (a.unroll * a.lanes)) for a in parallel)
            parts = max(1, min(lines, self.tiles // rows))
            run = -(-lines // parts) * LINE
            self.dims = [*dims[:-1], (parts, run)]
            self.stride = max(1, -(-run // reduced.block))
            self.base = addressing.pointer(place, dict.fromkeys(domain.axes, 0))

    def enter_tile(self, states: Mapping[str, AxisState]) -> None:
        """Choose the run of the register tile at these places."""
        b = self.em.here()
        rest = self._number(states)
        offset: Int = 0
        for n, step in reversed(self.dims[1:]):
            offset = self.em.add(offset, self.em.mul(_rest(b, rest, n), step))
            rest = _quotient(b, rest, n)
        offset = self.em.add(offset, self.em.mul(rest, self.dims[0][1]))
        self.run: IrValue = b.gep(self.base, [self.em.i64(offset)], source_etype=I8)

    def touch(self, state: AxisState, step: int) -> None:
        """One prefetch for this step of the reduction, unless an earlier one of this turn is on the same line."""
        if step and self.stride * state.unroll * state.lanes < LINE:
            return
        em = self.em
        b = em.here()
        offset = em.add(em.mul(state.base, self.stride), step * state.lanes * self.stride)
        pointer = b.gep(self.run, [em.i64(offset)], source_etype=I8)
        hints = [ir.Constant(I32, 0), ir.Constant(I32, FIRST_LEVEL), ir.Constant(I32, 1)]
        em.intrinsic("llvm.prefetch", VOID, [pointer, *hints], [POINTER])

    def _number(self, states: Mapping[str, AxisState]) -> Int:
        """Of all the Compute's register tiles in order, which one this is."""
        number: Int = 0
        tiles = 1
        for a in reversed(self.parallel):
            size = a.unroll * a.lanes
            index = _quotient(self.em.builder, states[a.name].base, size)
            number = self.em.add(number, self.em.mul(index, tiles))
            tiles *= math.ceil(a.block / size)
        return number


def _quotient(b: ir.IRBuilder, x: Int, n: int) -> Int:
    return x // n if isinstance(x, int) else b.udiv(x, ir.Constant(I64, n))


def _rest(b: ir.IRBuilder, x: Int, n: int) -> Int:
    return x % n if isinstance(x, int) else b.urem(x, ir.Constant(I64, n))
