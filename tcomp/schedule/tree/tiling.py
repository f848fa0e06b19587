"""The register tile of one equation: which axis is a vector, and how far each axis is unrolled.

Candidates for the vector axis are the loops the schedule marks `vec`. An equation takes the one along which
most of its accesses are contiguous (its target counts a little more); a reduction may be vectorised along a
reduced axis. Unroll factors hold for reductions, where they make the register tile (vectors along a reduced axis
have one too if it is a contraction's, each of whose operands then serves several points: `cpu/rows.py` of the code
generator). Others, and pointwise maps, take only their vector axis's factor, and none where they call exp, tanh and the
like (the code would only grow).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, accesses_in, names_in, walk
from tcomp.instructions.vector_matching import vector_instruction
from tcomp.ir.tile import Spread
from tcomp.schedule.kernel_plan import KernelPlan, LoopMap
from tcomp.schedule.normal import part_of
from tcomp.schedule.staging.packed import staged_accesses
from tcomp.schedule.tree.assignment import Assignment
from tcomp.schedule.tree.legality import check_registers
from tcomp.schedule.tree.nest import leaf_uses

HEAVY = {"exp", "log", "tanh", "sin", "cos", "random"}


@dataclass(frozen=True)
class RegisterTile:
    """Vector axis (or None), its lanes, and unroll factors by axis; on a GPU the threads' spreads by axis."""

    vector: str | None
    lanes: int
    unroll: dict[str, int]
    spreads: dict[str, Spread] = field(default_factory=dict)

    def accumulators(self) -> int:
        return math.prod(self.unroll.values())


class Tiler(Protocol):
    """Chooses the register tile of an equation whose axes have at most `blocks[i]` values."""

    def tile(self, a: Assignment, blocks: Mapping[str, int]) -> RegisterTile: ...


class CpuTiler:
    """Vectors of `lanes` elements in `registers` registers."""

    def __init__(self, plan: KernelPlan, lanes: int, registers: int) -> None:
        self.plan, self.lanes, self.registers = plan, lanes, registers

    def tile(self, a: Assignment, blocks: Mapping[str, int]) -> RegisterTile:
        names = (a.target.tensor, part_of(a.target), *a.leaf.sums_for)
        maps = {i: m for i in a.indices if (m := self.plan.mapping(i, names)) is not None}
        use = leaf_uses(self.plan, a.leaf, a.target) if a.reduced else None
        if (
            use is not None
            and vector_instruction(use.instruction) is not None
            and any(maps[i].vec for i in a.parallel if i in maps)
        ):
            # Lanes are results of their own, also where the result's index has a single value.
            maps = {i: replace(m, vec=m.vec and i in a.parallel) for i, m in maps.items()}
        vector = self._vector(a, maps, blocks)
        width = 1
        if vector is not None:
            while width < self.lanes and width < blocks[vector]:
                width *= 2
        tile = RegisterTile(vector, width, _unrolled(a, maps, blocks, vector, width))
        if a.reduced:
            check_registers(tile.accumulators(), self.registers, a.leaf, self.plan)
        return tile

    def _vector(self, a: Assignment, maps: Mapping[str, LoopMap], blocks: Mapping[str, int]) -> str | None:
        """The axis along which most accesses are contiguous. Staged ones will be along any parallel axis."""
        packed = {x for s in self.plan.stages for n in s.tensors for x in staged_accesses(n, a.leaf)}
        best: tuple[float, str | None] = (0.0, None)
        for index in a.indices:
            if index not in maps or not maps[index].vec or blocks[index] == 1 or index in a.leaf.gathered:
                continue
            score = 1.5 * _contiguity(index, a.target)
            for x in accesses_in(a.value):
                c = _contiguity(index, x)
                score += abs(c) if x in packed and index in a.parallel else c
            if score > best[0]:
                best = (score, index)
        return best[1]


def _unrolled(
    a: Assignment, maps: Mapping[str, LoopMap], blocks: Mapping[str, int], vector: str | None, width: int
) -> dict[str, int]:
    """Unroll factors by axis, where the vector axis has `width` lanes."""
    heavy = any(isinstance(n, Call) and n.function in HEAVY for n in walk(a.value))
    tiled = bool(a.reduced) and (vector not in a.reduced or _contracts(a, maps))  # (a register tile of sums)
    unroll: dict[str, int] = {}
    for index in a.indices:
        vectors = -(-blocks[index] // (width if index == vector else 1))
        grows = (index in a.parallel and not a.leaf.gathered) if tiled else (index == vector and not heavy)
        unroll[index] = max(1, min(maps[index].unroll, vectors)) if grows and index in maps else 1
    return unroll


def _contracts(a: Assignment, maps: Mapping[str, LoopMap]) -> bool:
    """Whether each operand serves several points of a register tile."""
    unrolled = [i for i in a.parallel if i in maps and maps[i].unroll > 1]
    return all(any(_contiguity(i, x) == 0.0 for i in unrolled) for x in accesses_in(a.value))


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
