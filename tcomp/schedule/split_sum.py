"""A long sum divided among blocks (split-K): parts summed by blocks of their own, and joined in order.

    dW[n, k] = sum m: dY[m, n] * X[m, k]     m -> grid.z(8192) / pipe(64, 4)     combine dW over m by partials
    -->
    dW.partial[m.part, n, k] = sum m in m.part * 8192 .. : dY[m, n] * X[m, k]    m.part -> grid.z(1)   m -> pipe(64, 4)
    dW[n', k'] = sum m.block: dW.partial[m.block, n', k']                        a phase with tiles of its own

The first equation is like any other: its sum stays in registers, its operands are staged, its part is written once, in
f32. The second reads it along rows, with as many blocks as there is work. A sum that fits one part is not divided.

    combine dW over m by turns
    -->
    dW[n, k] = sum m in m.part * 8192 .. : dY[m, n] * X[m, k]                    blocks add one after the other

Then the parts leave by the copy engine, which adds them in memory (`unpacking.py`): the first stores, and each of the
others waits for the one before. Words in memory say whose turn it is, and the last puts them back to zero, so a launch
needs no other. What is narrower than f32 is summed in a workspace, which a second equation reads.

    stream                                                                       (stream-K)
    -->
    dW[n, k] = sum m in m.from .. m.to: dY[m, n] * X[m, k]

Then a part is what a block's equal share of all tiles' sums has of this tile's (`ir.tile.Stream`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tcomp.dsl.ast import Access, Binary, Combine, DType, Equation, Expr, Name, Num, Reduction, Target, substitute
from tcomp.ir.tile import Stream, ThreadShape, Turns
from tcomp.schedule.nest import JOINED, PART, Leaf
from tcomp.schedule.resolve import KernelPlan, LaneLevel, LoopMap, TileLevel, WarpLevel

PARTIAL = ".partial"
"""ends the name of the tensor of a sum's parts"""
GRAIN = 4
"""values of the last index that a thread joins: 128 bits of f32"""
ACROSS = 16
"""threads' places across a row of parts, which is then read by 256 bytes at a time: fewer lanes take them in turns"""
SECTOR = 8
"""lanes from which on a thread joins one value of a vector, where a block has ACROSS of them: few values and many parts
take many blocks"""


def divides(plan: KernelPlan, over: str) -> bool:
    """Is the index tiled again inside the blocks that share it?"""
    m = plan.loops.get(over)
    return m is not None and len(m.tiles) > 1


def undivided(plan: KernelPlan, over: str, outer: TileLevel) -> KernelPlan:
    """The plan without the level that divides the sum (which an equation before may have taken out already)."""
    own = plan.loops[over]
    tiles = tuple(t for t in own.tiles if t != outer)
    rest = tuple(t for t in plan.sequence if t != outer)
    return replace(plan, loops={**plan.loops, over: replace(own, tiles=tiles)}, sequence=rest)


def split_sum(
    plan: KernelPlan,
    leaf: Leaf,
    over: str,
    outer: TileLevel,
    shape: ThreadShape,
    extents: dict[str, int],
    dtypes: dict[str, DType],
    shapes: dict[str, tuple[int, ...]],
    at: int,
    group: str = "",
) -> tuple[list[Leaf], KernelPlan]:
    """The two equations as leaves, and the plan (which is `undivided`) with their loops. `outer` divides the sum;
    `extents`, `dtypes` and `shapes` gain entries. Sums of one `group` (a name) are joined by the same loops."""
    eq = leaf.equation
    value, target = eq.value, eq.target
    assert isinstance(value, Reduction)
    assert outer.block is not None
    part, block = over + PART, f"{over}.block"
    extents[part] = extents[block] = count = -(-extents[over] // outer.block)
    name = target.name + PARTIAL
    dtypes[name] = dtypes[target.name] if dtypes[target.name] in (DType.F64, DType.I32) else DType.F32
    shapes[name] = (count, *(extents[i] for i in leaf.parallel))
    rows = tuple(Name(i) for i in leaf.parallel)
    first = replace(eq, targets=(Target(name, (Name(part), *rows)),), accumulate=False)
    new = {i: f"{i}.{group or target.name}" for i in leaf.parallel}
    extents.update({new[i]: extents[i] for i in leaf.parallel})
    summed = Access(name, (Name(block), *(Name(new[i]) for i in leaf.parallel)))
    second = replace(
        eq,
        targets=(Target(target.name, renamed(target.subscripts, new)),),
        value=Reduction(value.reducer, (block,), None, None, (summed,), value.span),
    )
    maps = joining_loops([new[i] for i in leaf.parallel], shape, outer, (block, count))
    level = TileLevel(part, 0, outer.kind, 1, outer.span, place="z")
    rest = tuple(t for t in plan.sequence if t != level)
    uses = {name if n == target.name else n: u for n, u in plan.uses.items()}
    promote = {name if n == target.name else n: p for n, p in plan.promote.items()}
    special = {(i, name): m for (i, t), m in plan.special.items() if t == target.name}
    plan = replace(
        plan,
        loops={**plan.loops, **{m.index: m for m in maps}},
        sequence=(level, *(t for m in maps for t in m.tiles[:1] if t not in rest), *rest),
        uses=uses,
        promote=promote,
        special={**plan.special, **special},
        parts={**plan.parts, over: (part, outer.block)},
    )
    return [
        Leaf(first, at, (part, *leaf.parallel), leaf.reduced),
        Leaf(second, at + 1, tuple(new.values()), (block,)),
    ], plan


def unit_of(plan: KernelPlan, over: str) -> int:
    """Terms that a stream's shares are whole multiples of: the ring of the `undivided` loop once round, so that each
    part of a sum begins at the ring's first place."""
    tile = plan.loops[over].tiles[0]
    return (tile.block or 1) * tile.stages


@dataclass(frozen=True)
class TurnSum:
    """A sum that blocks add to `name` in turns: those of the parts that `part`, a grid loop's variable, counts from 0
    to `count`, or those that a `stream` makes. `words` names the tile that says whose turn it is, `index` is the sum's
    last one."""

    name: str
    part: str
    count: int
    words: str
    directive: Combine
    index: str
    stream: Stream | None = None

    def turns(self, place: Access, stores: bool) -> Turns:
        """A part's turns at the word `place`. Words count the parts that have had theirs; of a stream, whose parts come
        from the sum's end to its beginning, they say where the last one began. The last part leaves zero."""
        if self.stream is not None:
            start, stop = Name(self.stream.start), Name(self.stream.stop)
            end = Num(self.stream.units * self.stream.unit)
            return Turns(place, start, stop, ((Num(0), stop, end),), stores)
        part = Name(self.part)
        following = Binary("%", Binary("+", part, Num(1)), Num(self.count))
        return Turns(place, following, part, ((Num(1), part, Num(self.count)),), stores)


def sum_in_turns(
    plan: KernelPlan,
    leaf: Leaf,
    directive: Combine,
    outer: TileLevel,
    shape: ThreadShape,
    extents: dict[str, int],
    dtypes: dict[str, DType],
    shapes: dict[str, tuple[int, ...]],
    at: int,
) -> tuple[list[Leaf], TurnSum, KernelPlan]:
    """The equation whose parts are added in turns, behind it the one that reads a sum too wide for its output, and the
    plan (which is `undivided`) with their loops. `outer` divides the sum; `extents`, `dtypes` and `shapes` gain
    entries."""
    eq, over = leaf.equation, directive.over
    target = eq.target
    assert outer.block is not None
    name = target.name if dtypes[target.name] is DType.F32 else target.name + JOINED
    words = f"{target.name}.turns"
    parts: tuple[str, ...] = ()
    levels: tuple[TileLevel, ...] = ()
    if plan.flags.stream:
        stream = Stream(f"{over}.from", f"{over}.to", extents[over], unit_of(plan, over))
        plan = replace(plan, streams={**plan.streams, over: stream})
        taken = TurnSum(name, "", 0, words, directive, leaf.parallel[-1], stream)
    else:
        part = over + PART
        extents[part] = count = -(-extents[over] // outer.block)
        levels, parts = (TileLevel(part, 0, outer.kind, 1, outer.span, place="z"),), (part,)
        plan = replace(plan, sequence=(*levels, *plan.sequence), parts={**plan.parts, over: (part, outer.block)})
        taken = TurnSum(name, levels[0].variable, count, words, directive, leaf.parallel[-1])
    first = Leaf(eq, at, (*parts, *leaf.parallel), leaf.reduced)
    if name == target.name:
        return [first], taken, plan
    dtypes[name], shapes[name] = DType.F32, tuple(extents[i] for i in leaf.parallel)
    new = {i: f"{i}.{target.name}" for i in leaf.parallel}
    extents.update({new[i]: extents[i] for i in leaf.parallel})
    maps = joining_loops(list(new.values()), shape, outer)
    plan = replace(
        plan,
        loops={**plan.loops, **{m.index: m for m in maps}},
        sequence=(*levels, *(t for m in maps for t in m.tiles), *(t for t in plan.sequence if t not in levels)),
        uses={name if n == target.name else n: u for n, u in plan.uses.items()},
        promote={name if n == target.name else n: p for n, p in plan.promote.items()},
        special={**plan.special, **{(i, name): m for (i, t), m in plan.special.items() if t == target.name}},
    )
    whole = replace(eq, targets=(Target(name, tuple(Name(i) for i in leaf.parallel)),), accumulate=False)
    read = Access(name, tuple(Name(i) for i in new.values()))
    second = replace(eq, targets=(Target(target.name, renamed(target.subscripts, new)),), value=read)
    return [replace(first, equation=whole), Leaf(second, at + 1, tuple(new.values()), (), copies=True)], taken, plan


def in_part(plan: KernelPlan, leaf: Leaf) -> Leaf:
    """An equation of which each point belongs to one part of a divided sum's index, in that part's block:
    `dX[m, n] = ...` beside `db.partial[m.part, n] = sum m in the part: ...` shares its loops."""
    parts = tuple(part for over, (part, _) in plan.parts.items() if over in leaf.parallel and part not in leaf.domain)
    return replace(leaf, parallel=(*parts, *leaf.parallel)) if parts else leaf


def splittable(eq: Equation) -> bool:
    """Plain subscripts and a plain reducer."""
    plain = all(isinstance(s, Name | Num) for s in eq.target.subscripts)
    return plain and isinstance(eq.value, Reduction) and eq.value.reducer in ("sum", "max", "min")


def joining_loops(
    indices: list[str], shape: ThreadShape, outer: TileLevel, over: tuple[str, int] | None = None
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


def joining_cores(indices: list[str], extents: Mapping[str, int], outer: TileLevel) -> list[LoopMap]:
    """The loops of the joining equation on a CPU: cores share out the longest index, the last is a vector."""
    longest = max(indices[:-1] or indices, key=lambda i: extents[i])
    level = TileLevel(longest, 0, outer.kind, 1, outer.span)
    return [LoopMap(i, (level,) if i == longest else (), vec=i == indices[-1], span=outer.span) for i in indices]


def renamed(subscripts: tuple[Expr, ...], names: Mapping[str, str]) -> tuple[Expr, ...]:
    return tuple(substitute(s, {old: Name(new) for old, new in names.items()}) for s in subscripts)
