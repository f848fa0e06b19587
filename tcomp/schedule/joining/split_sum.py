"""A long sum divided among blocks (split-K): parts summed by blocks of their own, and joined in order.

    dW[n, k] = sum m: dY[m, n] * X[m, k]     m -> grid.z(8192) / pipe(64, 4)     combine dW over m by partials
    -->
    dW.partial[m.part, n, k] = sum m in m.part * 8192 .. : dY[m, n] * X[m, k]    m.part -> grid.z(1)   m -> pipe(64, 4)
    dW[n', k'] = sum m.block: dW.partial[m.block, n', k']                        a phase with tiles of its own

The first equation is like any other: its sum stays in registers, its operands are staged, its part is written once, in
f32. The second reads it along rows, with as many blocks as there is work. A sum that fits one part is not divided.
`turn_sums.py` has the other way to join the parts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tcomp.dsl.ast import Combine, Equation, Name, Num, Reduction
from tcomp.ir.blocks import ThreadShape
from tcomp.schedule.joining.joining_loops import computed_alike, into, join_of, joining_loops, with_loops
from tcomp.schedule.kernel_plan import KernelPlan, TileLevel
from tcomp.schedule.symbols import Symbols
from tcomp.schedule.tree.nest import PART, PARTIAL, Leaf


@dataclass(frozen=True)
class DividedSum:
    """The sum `leaf` in parts of `outer`'s size, the level that divides it among blocks of `shape`; its `combine` line
    says how they are joined."""

    leaf: Leaf
    directive: Combine
    outer: TileLevel
    shape: ThreadShape

    @property
    def over(self) -> str:
        """The index whose values the parts share out."""
        return self.directive.over

    @property
    def part(self) -> str:
        """The index that counts the parts, in the blocks that sum them."""
        return self.over + PART

    @property
    def size(self) -> int:
        """Values of the index in one part."""
        assert self.outer.block is not None
        return self.outer.block

    def count(self, symbols: Symbols) -> int:
        """How many parts there are."""
        return -(-symbols.extents[self.over] // self.size)

    def level(self) -> TileLevel:
        """The level of the loop over parts: a block for each."""
        return TileLevel(self.part, 0, self.outer.kind, 1, self.outer.span, place="z")


def divides(plan: KernelPlan, over: str) -> bool:
    """Is the index tiled again inside the blocks that share it?"""
    m = plan.loops.get(over)
    return m is not None and len(m.tiles) > 1


def splittable(eq: Equation) -> bool:
    """Plain subscripts and a plain reducer."""
    plain = all(isinstance(s, Name | Num) for s in eq.target.subscripts)
    return plain and isinstance(eq.value, Reduction) and eq.value.reducer in ("sum", "max", "min")


def undivided(plan: KernelPlan, over: str, outer: TileLevel) -> KernelPlan:
    """The plan without the level that divides the sum (which an equation before may have taken out already)."""
    own = plan.loops[over]
    tiles = tuple(t for t in own.tiles if t != outer)
    rest = tuple(t for t in plan.sequence if t != outer)
    return replace(plan, loops={**plan.loops, over: replace(own, tiles=tiles)}, sequence=rest)


def split_sum(plan: KernelPlan, s: DividedSum, symbols: Symbols, group: str) -> tuple[Leaf, Leaf, KernelPlan]:
    """The equations of the parts and of their join, and the plan (which is `undivided`) with their loops. Sums of one
    `group` (a name) are joined by the same loops."""
    leaf, target = s.leaf, s.leaf.equation.target
    part, block, name = s.part, f"{s.over}.block", target.name + PARTIAL
    symbols.extents[part] = symbols.extents[block] = count = s.count(symbols)
    symbols.add(name, symbols.sum_type(target.name), leaf.parallel, (count,))
    first = into(leaf.equation, name, [Name(i) for i in (part, *leaf.parallel)])
    new = symbols.indices_like(leaf.parallel, group)
    level = s.level()
    inner = replace(plan, sequence=tuple(t for t in plan.sequence if t != level))
    inner = with_loops(inner, joining_loops(list(new.values()), s.shape, s.outer, (block, count)))
    plan = replace(
        computed_alike(inner, name, target.name),
        sequence=(level, *inner.sequence),
        parts={**plan.parts, s.over: (part, s.size)},
    )
    parts = Leaf(first, leaf.number, (part, *leaf.parallel), leaf.reduced)
    return parts, join_of(leaf, name, new, (block,), copies=False), plan


def in_part(plan: KernelPlan, leaf: Leaf) -> Leaf:
    """An equation of which each point belongs to one part of a divided sum's index, in that part's block:
    `dX[m, n] = ...` beside `db.partial[m.part, n] = sum m in the part: ...` shares its loops."""
    parts = tuple(part for over, (part, _) in plan.parts.items() if over in leaf.parallel and part not in leaf.domain)
    return replace(leaf, parallel=(*parts, *leaf.parallel)) if parts else leaf
