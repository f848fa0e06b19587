"""The register tile of one equation: which axis is a vector, and how far each axis is unrolled.

Candidates for the vector axis are the loops the schedule marks `vec`. An equation takes the one along which
most of its accesses are contiguous (its target counts a little more); a reduction may be vectorised along a
reduced axis. Unroll factors hold for reductions, where they make the register tile (vectors along a reduced axis
have one too if it is a contraction's, each of whose operands then serves several points: `rows.py` of the code
generator). Others, and pointwise maps, take only their vector axis's factor, and none where they call exp, tanh and the
like (the code would only grow).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Reduction, Target, names_in, walk
from tcomp.instructions.vector_matching import vector_instruction
from tcomp.ir.tile import Spread
from tcomp.schedule.fold import reads
from tcomp.schedule.legality import check_registers
from tcomp.schedule.nest import Leaf, leaf_uses
from tcomp.schedule.normal import part_of
from tcomp.schedule.resolve import KernelPlan, LoopMap
from tcomp.schedule.staging import staged_accesses

HEAVY = {"exp", "log", "tanh", "sin", "cos", "random"}


@dataclass(frozen=True)
class RegisterTile:
    """Vector axis (or None), its lanes, and unroll factors by axis; on a GPU the threads' spreads by axis."""

    vector: str | None
    lanes: int
    unroll: dict[str, int]
    spreads: dict[str, Spread] = field(default_factory=dict)

    def accumulators(self) -> int:
        n = 1
        for u in self.unroll.values():
            n *= u
        return n


class Tiler(Protocol):
    """Chooses the register tile of an equation whose axes have at most `blocks[i]` values."""

    def tile(
        self,
        leaf: Leaf,
        target: Access,
        value: Expr,
        parallel: tuple[str, ...],
        reduced: tuple[str, ...],
        blocks: Mapping[str, int],
    ) -> RegisterTile: ...


class CpuTiler:
    """Vectors of `lanes` elements in `registers` registers."""

    def __init__(self, plan: KernelPlan, lanes: int, registers: int, text: str) -> None:
        self.plan, self.lanes, self.registers, self.text = plan, lanes, registers, text

    def tile(
        self,
        leaf: Leaf,
        target: Access,
        value: Expr,
        parallel: tuple[str, ...],
        reduced: tuple[str, ...],
        blocks: Mapping[str, int],
    ) -> RegisterTile:
        packed = {a for s in self.plan.stages for n in s.tensors for a in staged_accesses(n, leaf)}
        names = (target.tensor, part_of(Target(target.tensor, target.subscripts)), *leaf.sums_for)
        maps = {i: m for i in (*parallel, *reduced) if (m := self.plan.mapping(i, names)) is not None}
        use = leaf_uses(self.plan, leaf, target) if reduced else None
        if (
            use is not None
            and vector_instruction(use.instruction) is not None
            and any(maps[i].vec for i in parallel if i in maps)
        ):
            # Lanes are results of their own, also where the result's index has a single value.
            maps = {i: replace(m, vec=m.vec and i in parallel) for i, m in maps.items()}
        tile = choose(
            maps, target, reads(value), packed, parallel, reduced, dict(blocks), value, self.lanes,
            leaf.gathered,
        )  # fmt: skip
        if reduced:
            check_registers(tile.accumulators(), self.registers, leaf, self.plan, self.text)
        return tile


def last_value(leaf: Leaf) -> Expr:
    """The expression whose accesses decide an equation's register tile."""
    v = leaf.equation.value
    return v.values[-1] if isinstance(v, Reduction) else v


def _contiguity(index: str, access: Access) -> float:
    if not access.subscripts or all(index not in names_in(s) for s in access.subscripts):
        return 0.0
    return 1.0 if _unit(index, access.subscripts[-1]) else -1.0


def _unit(index: str, e: Expr) -> bool:
    """Whether a subscript moves by one element with the index: `k`, `128 * g + k`."""
    if isinstance(e, Binary) and e.op == "+":
        a, b = e.left, e.right
        return (_unit(index, b) and index not in names_in(a)) or (_unit(index, a) and index not in names_in(b))
    return e == Name(index)


def _unrolled(index: str, loops: Mapping[str, LoopMap]) -> bool:
    return index in loops and loops[index].unroll > 1


def _contracts(reads: Sequence[Access], unrolled: Sequence[str]) -> bool:
    """Whether each operand serves several points of a register tile along these indices."""
    return all(any(_contiguity(i, a) == 0.0 for i in unrolled) for a in reads)


def choose(
    loops: dict[str, LoopMap],
    target: Access,
    reads: list[Access],
    packed: set[Access],
    parallel: tuple[str, ...],
    reduced: tuple[str, ...],
    blocks: dict[str, int],
    value: Expr,
    lanes: int,
    scattered: frozenset[str] = frozenset(),
) -> RegisterTile:
    """Pick the register tile. `packed` accesses will be staged contiguous along the vector axis."""
    best: tuple[float, str] | None = None
    for index in (*parallel, *reduced):
        m = loops.get(index)
        if m is None or not m.vec or blocks[index] == 1 or index in scattered:
            continue
        score = 1.5 * _contiguity(index, target)
        for a in reads:
            c = _contiguity(index, a)
            score += abs(c) if a in packed and index in parallel else c
        if best is None or score > best[0]:
            best = (score, index)
    vector = best[1] if best is not None and best[0] > 0 else None
    width = 1
    if vector is not None:
        while width < lanes and width < blocks[vector]:
            width *= 2
    unroll: dict[str, int] = {}
    heavy = any(isinstance(n, Call) and n.function in HEAVY for n in walk(value))
    tiled = reduced and (vector not in reduced or _contracts(reads, [i for i in parallel if _unrolled(i, loops)]))
    for index in (*parallel, *reduced):
        factor = loops[index].unroll if index in loops else 1
        per = width if index == vector else 1
        factor = max(1, min(factor, -(-blocks[index] // per)))
        if tiled:
            unroll[index] = factor if index in parallel and not scattered else 1
        else:
            unroll[index] = 1 if index != vector or heavy else factor
    return RegisterTile(vector, width, unroll)
