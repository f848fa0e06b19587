"""Equations and tile levels become one tree of loops: fused where that is legal, split where it is not.

    levels m, n, k over   acc[m, n] = sum k: ...        m: n: k: acc
                          Y[m, n] = acc[m, n] + b[n]  -->       Y

Two equations share a loop when neither needs, inside one turn of it, what the other makes in another turn.
Equations keep their order, except that one with no use for a loop may move in front of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tcomp.dsl.ast import Access, Equation, Expr, Name, Num, Use, accesses_in, names_in
from tcomp.dsl.extents import affine, injective
from tcomp.schedule.kernel_plan import KernelPlan, TileLevel
from tcomp.schedule.normal import expressions

JOINED = ".joined"
"""behind the name of what blocks add up in memory (`joining/adding.py`)"""
PART = ".part"
"""behind the name of an index: the index that counts its parts (`joining/split_sum.py`)"""
PARTIAL = ".partial"
"""behind the name of a sum: the tensor of its parts"""
TURN = ".turn"
"""behind the name of a promoted sum: a turn's part of it (`gpu/promotion.py`)"""


@dataclass(frozen=True)
class Dealt:
    """Turns of the loop `turns` go to the blocks along `blocks` one after the other, as cards are dealt to `count`."""

    turns: TileLevel
    blocks: TileLevel
    count: int


@dataclass(eq=False)
class Leaf:
    """One equation. `parallel` are its left-hand indices, `reduced` those it reduces over."""

    equation: Equation
    number: int
    parallel: tuple[str, ...]
    reduced: tuple[str, ...]
    gathered: frozenset[str] = frozenset()
    """parallel indices that stand only inside a gather on the left (a scatter's)"""
    partial_over: str | None = None
    """the reduced index whose core loop makes partial results, one per block"""
    readers: list[Leaf] = field(default_factory=list)
    """the equations that read what this one defines, when it defines a temporary"""
    parent: LoopNode | None = None
    sums_for: tuple[str, ...] = ()
    """the outputs whose sums this equation collects in a private tile"""
    copies: bool = False
    """writes such a tile, or what blocks left of a sum, to its output"""
    atomic: bool = False
    """blocks add to its target at the same time"""
    guard: Expr | None = None
    """points of the equation at which it counts, beside a reduction's own guard"""
    beside: frozenset[str] = frozenset()
    """indices that it does not have, in whose blocks it is computed nevertheless (`joining/beside.py`)"""
    again: bool = False
    """computed in all of these blocks, each of which reads it"""
    dealt: Dealt | None = None
    """how those blocks share out its sum; without it the first of them has it all"""

    @property
    def domain(self) -> frozenset[str]:
        return frozenset(self.parallel) | frozenset(self.reduced)

    @property
    def walked(self) -> frozenset[str]:
        """The indices whose loops are around it."""
        return self.domain | self.beside

    def walks(self, level: TileLevel) -> bool:
        """Is the loop around it? What is computed again in each block is so once in a block."""
        return level.index in self.domain or (level.index in self.beside and (level.parallel or not self.again))

    @property
    def written(self) -> tuple[str, ...]:
        return tuple(t.name for t in self.equation.targets)

    @property
    def known_as(self) -> tuple[str, ...]:
        """The names by which a schedule's `fuse` line means this equation."""
        return () if self.copies else self.sums_for or self.written

    def expressions(self) -> list[Expr]:
        """Every expression the equation evaluates, target subscripts included."""
        return expressions(self.equation)

    def reads(self) -> list[Access]:
        """All accesses read (an accumulating target is read as well)."""
        found = [a for e in self.expressions() for a in accesses_in(e)]
        if self.equation.accumulate:
            found += [Access(t.name, t.subscripts) for t in self.equation.targets]
        return found

    def writes(self) -> list[Access]:
        return [Access(t.name, t.subscripts, t.span) for t in self.equation.targets]


@dataclass(eq=False)
class LoopNode:
    """A loop over tiles of one index. `trivial` when one turn covers everything: it only binds the range."""

    level: TileLevel
    children: list[Node] = field(default_factory=list)
    parent: LoopNode | None = None
    trivial: bool = False


Node = LoopNode | Leaf


def ancestors(node: Node) -> list[LoopNode]:
    """The loops around a node, outermost first."""
    out: list[LoopNode] = []
    p = node.parent
    while p is not None:
        out.append(p)
        p = p.parent
    return out[::-1]


def leaves_of(node: Node) -> Iterator[Leaf]:
    """The equations of a node, in order."""
    if isinstance(node, Leaf):
        yield node
    else:
        for c in node.children:
            yield from leaves_of(c)


def loops_below(node: LoopNode) -> list[LoopNode]:
    """All loops inside a loop, outer ones first."""
    below: list[LoopNode] = []
    for c in node.children:
        if isinstance(c, LoopNode):
            below += [c, *loops_below(c)]
    return below


def disjoint(a: Access, b: Access) -> bool:
    """Two accesses that differ in a constant subscript never meet (`QKV[b, k, 1, ..]`, `QKV[b, q, 0, ..]`)."""
    return any(
        isinstance(x, Num) and isinstance(y, Num) and x.value != y.value
        for x, y in zip(a.subscripts, b.subscripts, strict=False)
    )


def _same_turn(index: str, a: Access, b: Access) -> bool:
    """Both accesses touch only the current turn's part: the bare index (or that of which it counts the parts) stands
    at the same position."""
    own = {Name(index), Name(index.removesuffix(PART))}
    return any(x == y and x in own for x, y in zip(a.subscripts, b.subscripts, strict=False))


def conflict(index: str, first: Leaf, second: Leaf) -> tuple[Access, Access] | None:
    """Why `first` and `second` (in this order) cannot share a loop over `index`: the two accesses that would
    meet in different turns, or None when sharing is legal."""
    if index in first.beside and (index in second.beside or first.again):
        return None  # each block has results of its own
    for w in first.writes():
        if index in first.reduced:
            # complete only after the loop
            for r in second.reads() + second.writes():
                if r.tensor == w.tensor and not disjoint(w, r):
                    return w, r
        for r in second.reads() + second.writes():
            if r.tensor == w.tensor and not disjoint(w, r) and not _same_turn(index, w, r):
                return w, r
    for w in second.writes():
        for r in first.reads():
            if r.tensor == w.tensor and not disjoint(w, r) and not _same_turn(index, w, r):
                return r, w
    return None


def depends(second: Leaf, first: Leaf) -> bool:
    """Whether the order of the two equations matters at all."""
    for w in first.writes():
        if any(r.tensor == w.tensor and not disjoint(w, r) for r in second.reads() + second.writes()):
            return True
    return any(r.tensor == w.tensor and not disjoint(w, r) for w in second.writes() for r in first.reads())


def sink_copies(leaves: list[Leaf], depths: Mapping[int, int]) -> list[Leaf]:
    """Equations that write a private sum, or join partial ones, into their output move behind all that do not depend on
    them, so that they do not stand between equations which share the loop around the sum. Those of the same loops go
    together, and at the end those of sums over inner loops first: `depths` has the outermost loop of each sum. None
    moves in front of another one that it depends on (`Y[m] = ...`, then `Y[m] += ...`)."""
    out: list[Leaf] = []
    waiting: list[Leaf] = []
    for leaf in leaves:
        if leaf.copies:
            waiting.append(leaf)
            continue
        first = [w for w in waiting if depends(leaf, w)]
        due = [w for w in waiting if w in first or any(_together(w, f) for f in first)]
        for w in reversed(waiting):  # and what those depend on
            if w not in due and any(depends(d, w) for d in due if waiting.index(d) > waiting.index(w)):
                due.append(w)
        due.sort(key=waiting.index)
        out += due
        waiting = [w for w in waiting if w not in due]
        out.append(leaf)
    while waiting:
        free = [w for n, w in enumerate(waiting) if not any(depends(w, before) for before in waiting[:n])]
        out.append(max(free, key=lambda w: depths.get(w.number, 0)))
        waiting.remove(out[-1])
    return out


def _together(a: Leaf, b: Leaf) -> bool:
    return a.parallel == b.parallel or (bool(a.beside | b.beside) and a.walked == b.walked)


def build(leaves: list[Leaf], levels: tuple[TileLevel, ...], extents: dict[str, int]) -> list[Node]:
    """The tree of loops for these equations, `levels` outermost first."""
    roots = _build(leaves, levels, extents)
    for r in roots:
        _adopt(r, None)
    return roots


def _adopt(node: Node, parent: LoopNode | None) -> None:
    node.parent = parent
    if isinstance(node, LoopNode):
        for c in node.children:
            _adopt(c, node)


def _build(leaves: list[Leaf], levels: tuple[TileLevel, ...], extents: dict[str, int]) -> list[Node]:
    if not levels:
        return list(leaves)
    level, rest = levels[0], levels[1:]
    out: list[Node] = []
    group: list[Leaf] = []
    outside: list[Leaf] = []

    def flush_outside() -> None:
        if outside:
            out.extend(_build(list(outside), rest, extents))
            outside.clear()

    def flush_group() -> None:
        if group:
            node = LoopNode(level)
            extent = extents[level.index]
            one = level.block is not None and level.block >= extent
            node.trivial = one and not level.parallel and not level.kept
            node.children = _build(list(group), rest, extents)
            out.append(node)
            group.clear()

    for leaf in leaves:
        if leaf.walks(level):
            if any(conflict(level.index, g, leaf) for g in group):
                flush_outside()
                flush_group()
            elif any(depends(leaf, o) for o in outside) and not group:
                flush_outside()
            group.append(leaf)
        elif any(depends(leaf, g) for g in group):
            flush_outside()
            flush_group()
            outside.append(leaf)
        else:
            outside.append(leaf)  # runs in front of the open group
    flush_outside()
    flush_group()
    return out


def scatter_indices(equation: Equation, extents: Mapping[str, int]) -> frozenset[str]:
    """Left-hand indices of which two values may name one element: those that stand in no subscript that tells
    them apart. `Y[i]` and `Y[3 * i + 1]` do, `Y[ids[i]]` and `Y[i + j]` do not."""
    ranges: dict[str, Expr] = {i: Num(n) for i, n in extents.items()}
    told: set[str] = set()
    inside: set[str] = set()
    for s in {s for t in equation.targets for s in t.subscripts}:
        names = names_in(s) & extents.keys()
        inside |= names
        form = affine(s, names)
        if form is not None and injective(form, ranges):
            told |= names
    return frozenset(inside - told)


def leaf_uses(plan: KernelPlan, leaf: Leaf, target: Access) -> Use | None:
    """The `use` line that holds for this equation's reduction into `target`."""
    names = (target.tensor.removesuffix(TURN), *leaf.sums_for)
    return next((plan.uses[n] for n in names if n in plan.uses), None)


def grouped_index(plan: KernelPlan, leaf: Leaf) -> str:
    """The summed index that a vector instruction takes in groups: the innermost not walked value by value."""
    tiled = [i for i in leaf.reduced if i not in plan.loops or [t.block for t in plan.loops[i].tiles][-1:] != [1]]
    return (tiled or leaf.reduced)[-1]
