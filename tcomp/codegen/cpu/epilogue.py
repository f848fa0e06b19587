"""The maps of a Compute's epilogue on one register tile, its results still in registers.

Each register goes through all maps before the next one does, so few are held at a time; what a map writes, the ones
behind it take as it was rounded, and not from memory. The memory that maps read and write is asked for before a long
sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tcomp.codegen.cpu.addressing import Place
from tcomp.codegen.cpu.evaluation import Evaluator
from tcomp.codegen.cpu.prefetch import touch_registers
from tcomp.codegen.cpu.rounded import as_stored
from tcomp.codegen.llvm.domain import Domain
from tcomp.codegen.llvm.expressions import Graph, Node
from tcomp.codegen.llvm.types import IrValue, kind_of
from tcomp.dsl.ast import accesses_in
from tcomp.ir.tile import Compute, Scope


@dataclass(frozen=True)
class _Map:
    target: Place
    value: Node


class Epilogue:
    """The maps behind one Compute, in its domain."""

    def __init__(self, node: Compute, domain: Domain, graph: Graph, evaluator: Evaluator) -> None:
        self.em, self.domain, self.evaluator = domain.emitter, domain, evaluator
        self.names = frozenset(a.name for a in node.axes if a.name not in node.reduced)
        place = evaluator.memory.addressing.place
        self.maps: list[_Map] = []
        self.far: list[tuple[Place, bool]] = []
        written = {node.target.tensor}
        for m in node.epilogue:
            target = place(m.target, graph)
            dtype = target.buffer.dtype
            self.maps.append(_Map(target, graph.cast(graph.build(as_stored(m.value, dtype)), kind_of(dtype))))
            reads = [place(a, graph) for a in accesses_in(m.value) if a.tensor not in written]
            written.add(m.target.tensor)
            self.far += [(p, False) for p in reads if p.deps == self.names] + [(target, True)]
        # (An index from memory that may only be read under a condition is not read for a prefetch.)
        told = [(p, w) for p, w in self.far if not any(node.unsafe for node, _ in p.gathered)]
        self.far = [(p, w) for p, w in told if p.buffer.scope is Scope.OPERAND]

    def touch(self, points: Sequence[dict[str, int]]) -> None:
        """Prefetch the lines that the maps will read and write under this register tile."""
        for place, written in self.far:
            touch_registers(self.domain, self.evaluator.memory.addressing, place, points, written)

    def emit(self, sums: Place, points: Sequence[dict[str, int]], results: Sequence[IrValue]) -> None:
        """The maps at these points, where the reduction's `results` are."""
        states = dict(self.domain.states)
        with self.em.frame():
            # What the maps read is read here: ahead of the loops around it would take registers from the sum.
            self.domain.states.update({n: replace(states[n], level=self.em.depth) for n in self.names})
            for point, result in zip(points, results, strict=True):
                held = {sums: self._as_stored(sums, result)}
                self.evaluator.held = held
                for m in self.maps:
                    value = self.evaluator.vector(m.value, point)
                    self.em.here()
                    self.evaluator.memory.store_vector(m.target, point, value, self.domain.mask(point))
                    held[m.target] = self._as_stored(m.target, value)
            self.evaluator.held = {}
        self.domain.states.update(states)

    def _as_stored(self, place: Place, value: IrValue) -> IrValue:
        self.em.here()
        return self.evaluator.memory.round_to(value, place.buffer.dtype)
