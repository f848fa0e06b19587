"""The equation that joins what blocks have left of a sum, its loops, and what a schedule says of the sum itself.

A joining equation has indices of its own, `dW[n', k'] = sum m.block: dW.partial[m.block, n', k']`, so that blocks and
threads share it out in another way than the sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tcomp.dsl.ast import Access, Equation, Expr, Name, Reduction, Target, substitute
from tcomp.ir.blocks import ThreadShape
from tcomp.schedule.kernel_plan import KernelPlan, LaneLevel, LoopMap, TileLevel, WarpLevel
from tcomp.schedule.tree.nest import Leaf

GRAIN = 4
"""values of the last index that a thread joins: 128 bits of f32"""
ACROSS = 16
"""threads' places across a row of parts, which is then read by 256 bytes at a time: fewer lanes take them in turns"""
SECTOR = 8
"""lanes from which on a thread joins one value of a vector, where a block has ACROSS of them: few values and many parts
take many blocks"""


def into(eq: Equation, name: str, subscripts: Sequence[Expr], accumulate: bool = False) -> Equation:
    """The equation with its result in another tensor: a sum, or the parts of one."""
    return replace(eq, targets=(Target(name, tuple(subscripts)),), accumulate=accumulate)


def join_of(
    leaf: Leaf,
    name: str,
    new: Mapping[str, str],
    counted: tuple[str, ...] = (),
    copies: bool = True,
    beside: frozenset[str] = frozenset(),
) -> Leaf:
    """The equation that reads `name`, what blocks have left of the leaf's sum, over indices of its own (`new` in the
    place of the leaf's): whole, or in parts that the indices `counted` count, which it reduces."""
    eq, value = leaf.equation, leaf.equation.value
    read = Access(name, tuple(Name(i) for i in (*counted, *(new[i] for i in leaf.parallel))))
    target = Target(eq.target.name, renamed(eq.target.subscripts, new))
    if counted:
        assert isinstance(value, Reduction)
        joined: Expr | Reduction = Reduction(value.reducer, counted, None, None, (read,), value.span)
    else:
        joined = read
    join = replace(eq, targets=(target,), value=joined)
    return Leaf(join, leaf.number + 1, tuple(new.values()), counted, copies=copies, beside=beside)


def joining_loops(
    indices: Sequence[str], shape: ThreadShape, outer: TileLevel, over: tuple[str, int] | None = None
) -> list[LoopMap]:
    """The loops of the joining equation: lanes and warps along x take the last index, those along y the one before,
    or where there is none `over`, the index that counts parts and how many there are."""
    maps: list[LoopMap] = []
    if over is not None and len(indices) == 1 and shape.lanes_y * shape.warps_y > 1:
        index, count = over
        share = -(-count // shape.warps_y)
        warp = WarpLevel("y", share, shape.warps_y) if shape.warps_y > 1 else None
        lane = LaneLevel("y", -(-share // shape.lanes_y)) if shape.lanes_y > 1 else None
        maps.append(LoopMap(index, warp=warp, lane=lane, span=outer.span))
    for d, index in enumerate(reversed(indices)):
        warp, lane, size, grain = None, None, 1, 1
        if d == 0:
            narrow = over is not None and len(indices) == 1
            single = narrow and shape.lanes_x >= SECTOR and shape.lanes_x * shape.warps_x >= ACROSS
            grain = 1 if single else GRAIN
            share = grain * shape.lanes_x * (1 if narrow else max(1, ACROSS // shape.lanes_x))
            size = share * shape.warps_x
            lane = LaneLevel("x", 0)
            warp = WarpLevel("x", share, shape.warps_x) if shape.warps_x > 1 else None
        elif d == 1:
            size = shape.lanes_y * shape.warps_y
            lane = LaneLevel("y", 1) if shape.lanes_y > 1 else None
            warp = WarpLevel("y", shape.lanes_y, shape.warps_y) if shape.warps_y > 1 else None
        level = TileLevel(index, 0, outer.kind, size, outer.span, place=("x", "y", "z")[min(d, 2)])
        maps.append(LoopMap(index, (level,), warp=warp, lane=lane, grain=grain, span=outer.span))
    return maps


def joining_cores(indices: Sequence[str], extents: Mapping[str, int], outer: TileLevel) -> list[LoopMap]:
    """The loops of the joining equation on a CPU: cores share out the longest index, the last is a vector."""
    longest = max(indices[:-1] or indices, key=lambda i: extents[i])
    level = TileLevel(longest, 0, outer.kind, 1, outer.span)
    return [LoopMap(i, (level,) if i == longest else (), vec=i == indices[-1], span=outer.span) for i in indices]


def with_loops(plan: KernelPlan, maps: Sequence[LoopMap]) -> KernelPlan:
    """The plan with these loops around all that it has (which may have some of them already)."""
    new = tuple(t for m in maps for t in m.tiles if t not in plan.sequence)
    return replace(plan, loops={**plan.loops, **{m.index: m for m in maps}}, sequence=(*new, *plan.sequence))


def mapped_alike(plan: KernelPlan, name: str, target: str) -> KernelPlan:
    """The plan where an equation that gives `name` has the loops that the schedule gives to those of `target`."""
    own = {(i, name): m for (i, t), m in plan.special.items() if t == target}
    return replace(plan, special={**plan.special, **own})


def computed_alike(plan: KernelPlan, name: str, target: str) -> KernelPlan:
    """The plan where `name` takes the place of `target`: its loops, its instruction and how it is promoted."""
    uses = {name if n == target else n: u for n, u in plan.uses.items()}
    promote = {name if n == target else n: p for n, p in plan.promote.items()}
    return replace(mapped_alike(plan, name, target), uses=uses, promote=promote)


def renamed(subscripts: tuple[Expr, ...], names: Mapping[str, str]) -> tuple[Expr, ...]:
    """The subscripts with other indices."""
    return tuple(substitute(s, {old: Name(new) for old, new in names.items()}) for s in subscripts)
