"""How results of several blocks, or of several tiles, are joined: the equations of a kernel become leaves.

combine s over i by partials   each block leaves a partial sum, a second phase adds them in a fixed order
combine E over t by sorted     each block owns some rows of a scatter's target and walks t in order
combine s over i by turns      blocks add to one f32 sum, one after the other; a second phase writes it (`adding.py`)
combine E over t by atomic     blocks add to the target at the same time; refused where runs must repeat
combine s over i by private    the sum over tiles of i is collected in a private f32 tile and written once
(nothing said, sum over tiles) the same on a GPU, and wherever the output is stored narrower than f32
"""

from __future__ import annotations

import math
from dataclasses import replace

from tcomp.dsl.ast import (
    Access,
    Binary,
    Combine,
    DType,
    Equation,
    Expr,
    Name,
    Num,
    Reduction,
    Target,
    names_in,
    substitute,
    walk,
)
from tcomp.dsl.errors import TcError
from tcomp.schedule.adding import AddedSum
from tcomp.schedule.beside import BesideSums, beside_others, check_lines, moved
from tcomp.schedule.emit import IDENTITY
from tcomp.schedule.family import Family
from tcomp.schedule.nest import JOINED, Leaf, scatter_indices, sink_copies
from tcomp.schedule.normal import called, part_of
from tcomp.schedule.resolve import KernelPlan, TileLevel
from tcomp.schedule.split_sum import (
    PARTIAL,
    TurnSum,
    divides,
    in_part,
    joining_cores,
    joining_loops,
    renamed,
    split_sum,
    splittable,
    sum_in_turns,
    undivided,
    unit_of,
)

BLOCKS_PER_SM = 8
"""of a sorted scatter: each owns rows, and waits for memory at every contribution to one of them"""


def _in_one(plan: KernelPlan, over: str) -> KernelPlan:
    """The plan where one core takes the whole sum: what would divide it is a loop of one turn."""

    def whole(tiles: tuple[TileLevel, ...]) -> tuple[TileLevel, ...]:
        return tuple(replace(t, kind="seq") if t.index == over and t.parallel else t for t in tiles)

    own = plan.loops[over]
    loops = {**plan.loops, over: replace(own, tiles=whole(own.tiles))}
    return replace(plan, loops=loops, sequence=whole(plan.sequence))


class Combining:
    """Makes the leaves of one kernel. `extents`, `dtypes` and `shapes` gain the entries of what joining adds."""

    def __init__(
        self,
        family: Family,
        extents: dict[str, int],
        dtypes: dict[str, DType],
        shapes: dict[str, tuple[int, ...]],
        deterministic: bool,
        text: str,
    ) -> None:
        self.family, self.extents, self.dtypes, self.shapes = family, extents, dtypes, shapes
        self.deterministic, self.text = deterministic, text
        self.temporaries: frozenset[str] = frozenset()
        self.sums: list[AddedSum] = []
        """what blocks add up in memory"""
        self.turns: list[TurnSum] = []
        """sums that the blocks of their parts add to in turns"""
        self.carried: list[str] = []
        """parts of sums that leave by the copy engine, which needs their address before the launch"""

    def leaves(
        self, plan: KernelPlan, equations: tuple[Equation, ...], temporaries: frozenset[str]
    ) -> tuple[list[Leaf], KernelPlan]:
        """The equations as leaves in order, and the plan with the loops that joining adds."""
        self.temporaries = temporaries
        leaves: list[Leaf] = []
        joins: list[Leaf] = []
        ends: list[Leaf] = []  # of sums in memory: they wait for all blocks, so other equations come first
        groups: dict[tuple[str, ...], str] = {}
        given = plan
        plain = [self._leaf(eq, i) for i, eq in enumerate(equations)]
        beside = beside_others(plan, plain, self.temporaries) if self.family.level == "grid" else {}
        check_lines(plan, plain, beside, self.text)
        for leaf in moved(plain, beside):
            inside, leaf = beside.get(leaf.number), replace(leaf, number=len(leaves))
            eq, parallel, reduced = leaf.equation, leaf.parallel, leaf.reduced
            if inside is not None:
                shape = self.family.shape(plan, self.extents, self.text)
                loops = groups.get((*inside.host.parallel, "over", *inside.host.reduced), "")
                sums = BesideSums(self.extents, self.dtypes, self.shapes, self.text)
                made, plan = sums.leaves(plan, given, replace(inside, leaf=leaf), shape, loops)
                leaves += made[:1]
                joins += made[1:]
                continue
            if (sunk := self._beside_join(leaf, joins)) is not None:
                joins.append(sunk)
                continue
            group = (*parallel, "over", *reduced)
            if joins and (group not in groups or self._reads(leaf, joins)):
                leaves, joins, groups = _numbered([*leaves, *joins]), [], {}
                leaf = replace(leaf, number=len(leaves))
            named = [c for c in plan.combine if c.over in leaf.domain and called(eq, c.names)]
            joined = [c for c in named if c.by != "private"]
            if self._reads(leaf, ends):
                leaves, ends = _numbered([*leaves, *ends]), []
                leaf = replace(leaf, number=len(leaves))
            if joined and joined[0].by == "turns" and self._divided(given, leaf, joined[0].over):
                directive = joined[0]
                outer = given.loops[directive.over].tiles[0]
                plan = undivided(plan, directive.over, outer)
                size = unit_of(plan, directive.over) if plan.flags.stream else outer.block or 0
                if self.extents[directive.over] <= size:
                    leaves.append(leaf)  # one part takes the whole sum
                    continue
                self._check_turns(leaf, directive)
                shape = self.family.shape(plan, self.extents, self.text)
                found, taken, plan = sum_in_turns(
                    plan, leaf, directive, outer, shape, self.extents, self.dtypes, self.shapes, len(leaves)
                )
                self.turns.append(taken)
                leaves.append(found[0])
                ends += found[1:]
                if taken.name != eq.target.name:
                    self.carried.append(taken.name)
            elif joined and (joined[0].by == "turns" or self._adds_up(leaf, joined[0])):
                (adds, end), plan = self._added(plan, leaf, joined[0], len(leaves))
                leaves.append(adds)
                ends.append(end)
            elif joined and joined[0].by == "atomic":
                leaves.append(self._atomic(leaf, joined[0]))
            elif joined and joined[0].by == "sorted":
                owned, plan = self._sorted(plan, leaf, joined[0])
                leaves.append(owned)
            elif joined and joined[0].by == "partials" and self._divided(given, leaf, joined[0].over):
                over = joined[0].over
                outer = given.loops[over].tiles[0]
                plan = undivided(plan, over, outer)
                if self.extents[over] <= (outer.block or 0):
                    leaves.append(leaf)  # one part takes the whole sum
                    continue
                shape = self.family.shape(plan, self.extents, self.text)
                (first, join), plan = split_sum(
                    plan, leaf, over, outer, shape, self.extents, self.dtypes, self.shapes, len(leaves),
                    groups.setdefault(group, eq.target.name),
                )  # fmt: skip
                leaves.append(first)
                joins.append(join)
                if any(s.by == "tma" and s.space == "shared" and eq.target.name in s.tensors for s in plan.stages):
                    self.carried.append(first.written[0])
            elif joined and self._single(given, joined[0]):
                plan = _in_one(plan, joined[0].over)
                leaves.append(leaf)
            elif joined:
                over, by = joined[0].over, joined[0].by
                own = groups.setdefault(group, eq.target.name)
                (first, join), plan = self._partials(plan, leaf, over, by, len(leaves), own)
                leaves.append(first)
                joins.append(join)
            else:
                leaves.append(leaf)
        leaves = _numbered([in_part(plan, x) for x in (*leaves, *joins, *ends)])
        private = [x for leaf in leaves for x in self._private(plan, leaf)]
        return sink_copies(private, {x.number: self._depth(plan, x) for x in private if not x.copies}), plan

    def _leaf(self, eq: Equation, number: int) -> Leaf:
        reduced = eq.value.indices if isinstance(eq.value, Reduction) else ()
        return Leaf(eq, number, self._parallel(eq), tuple(reduced), scatter_indices(eq, self.extents))

    def _depth(self, plan: KernelPlan, leaf: Leaf) -> int:
        """The place of the outermost tile loop that a sum runs over: those over inner loops are complete first."""
        return min((i for i, t in enumerate(plan.sequence) if t.index in leaf.reduced), default=len(plan.sequence))

    def _single(self, plan: KernelPlan, c: Combine) -> bool:
        """Is there one block of the index only, on a CPU?"""
        core = [t for t in plan.sequence if t.index == c.over and t.parallel]
        one = bool(core) and core[0].block is not None and self.extents[c.over] <= core[0].block
        return self.family.level == "core" and c.by == "partials" and one

    def _reads(self, leaf: Leaf, joins: list[Leaf]) -> bool:
        return any(a.tensor in j.written for a in leaf.reads() for j in joins)

    def _beside_join(self, leaf: Leaf, joins: list[Leaf]) -> Leaf | None:
        """`acc[n', k'] = sum block: ...; Y[n, k] = acc[n, k] * s` --> `Y[n', k'] = acc[n', k'] * s`: what computes one
        value from a joined sum takes the join's loops, so that the sum stays in registers. None for other leaves."""
        read = [a for a in leaf.reads() if any(a.tensor in j.written for j in joins)]
        makers = [j for j in joins if any(a.tensor in j.written for a in read)]
        if (
            not makers
            or leaf.reduced
            or leaf.gathered
            or not {t for j in makers for t in j.written} <= self.temporaries
        ):
            return None
        plain = tuple(Name(i) for i in leaf.parallel)
        loops = {j.parallel for j in makers}
        if len(loops) != 1 or any(a.subscripts != plain for a in read):
            return None
        new = dict(zip(leaf.parallel, next(iter(loops)), strict=True))
        value = leaf.equation.value
        assert not isinstance(value, Reduction)
        named: dict[str, Expr] = {old: Name(i) for old, i in new.items()}
        targets = tuple(replace(t, subscripts=renamed(t.subscripts, new)) for t in leaf.equation.targets)
        moved = replace(leaf.equation, targets=targets, value=substitute(value, named))
        return Leaf(moved, leaf.number, tuple(new.values()), (), copies=True)

    def _private(self, plan: KernelPlan, leaf: Leaf) -> list[Leaf]:
        """`Y[m, n] = sum k: ...` with k tiled inside m and n --> `Y.sum[m, n] = sum k: ...; Y[m, n] = Y.sum[m, n]`:
        the sum stays in registers, in f32, until it is complete. On a CPU k may also be tiled outside m or n: the
        private tile then spans their loops."""
        eq, value = leaf.equation, leaf.equation.value
        name = eq.target.name
        narrow = self.dtypes[name].bytes < 4
        asked = [c for c in plan.combine if c.by == "private" and c.over in leaf.reduced and called(eq, c.names)]
        if not narrow and not self.family.private_sums and not asked:
            return [leaf]
        passing = name in self.temporaries and name not in plan.outputs
        if passing or not isinstance(value, Reduction) or value.reducer not in IDENTITY:
            return [leaf]
        inside = [t.index in leaf.reduced for t in plan.sequence if t.index in leaf.domain and not t.parallel]
        tiled = [t.index in leaf.reduced for t in plan.sequence if t.index in leaf.domain]
        indices = set(self.extents)
        bare = all(isinstance(s, Name | Num) or not names_in(s) & indices for s in eq.target.subscripts)
        in_order = tiled == sorted(tiled) or not self.family.private_sums
        if not any(inside) or not in_order or not bare or leaf.gathered or leaf.partial_over is not None:
            if asked and not (any(inside) and bare):
                raise TcError(
                    f"{name} has no sum over tiles of {asked[0].over} to be collected",
                    asked[0].span,
                    self.text,
                    "tile the loop, as in seq(64)" if bare else "name an output whose subscripts are plain indices",
                )
            return [leaf]
        own = f"{name}.sum{leaf.number}"
        subs = tuple(Name(i) for i in leaf.parallel)
        self.dtypes[own] = DType.F64 if self.dtypes[name] is DType.F64 else DType.F32
        self.shapes[own] = tuple(self.extents[i] for i in leaf.parallel)
        first = replace(eq, targets=(Target(own, subs),), accumulate=False)
        second = replace(eq, value=Access(own, subs))
        known = tuple(dict.fromkeys((name, part_of(eq.target).rstrip("."))))
        blocks = leaf.beside, leaf.dealt
        collected = Leaf(first, leaf.number, leaf.parallel, leaf.reduced, sums_for=known)
        copy = Leaf(second, leaf.number, leaf.parallel, (), copies=True)
        return [replace(x, beside=blocks[0], dealt=blocks[1]) for x in (collected, copy)]

    def _parallel(self, eq: Equation) -> tuple[str, ...]:
        """Left-hand indices in order; of a monoid, those of its key field (the loops all fields share)."""
        seen: list[str] = []
        for s in eq.target.subscripts:
            for n in walk(s):
                if isinstance(n, Name) and n.id in self.extents and n.id not in seen:
                    seen.append(n.id)
        return tuple(seen)

    def _atomic(self, leaf: Leaf, c: Combine) -> Leaf:
        """The equation adding to its target from many blocks at once."""
        eq, value = leaf.equation, leaf.equation.value
        if self.family.level != "grid":
            raise TcError("atomic sums exist on GPUs only", c.span, self.text, f"combine {c.over} by partials")
        if self.deterministic:
            raise TcError(
                f"atomic sums into '{eq.target.name}' would depend on the order in which blocks run",
                c.span,
                self.text,
                "combine by partials, or give `tcomp build` or `tcomp train` --nondeterministic",
                (f"two runs may round {eq.target.name} differently",),
            )
        sums = eq.accumulate if not isinstance(value, Reduction) else value.reducer == "sum"
        bare = eq.target.name not in self.temporaries
        if not sums or not bare:
            raise TcError(
                f"only sums into an output can be atomic, not '{eq.target.name}'",
                c.span,
                self.text,
                "combine by partials",
            )
        over = c.over if c.over in leaf.reduced else None
        added = replace(eq, accumulate=True)
        return Leaf(added, leaf.number, leaf.parallel, leaf.reduced, leaf.gathered, over, atomic=True)

    def _adds_up(self, leaf: Leaf, c: Combine) -> bool:
        """Is it an atomic sum into an output that is narrower than f32, where adding up would lose bits?"""
        narrow = self.dtypes[leaf.equation.target.name].bytes < 4
        return c.by == "atomic" and narrow and c.over in leaf.reduced and not self.deterministic

    def _check_turns(self, leaf: Leaf, c: Combine) -> None:
        """TcError for a divided sum that blocks cannot add in turns."""
        eq, value = leaf.equation, leaf.equation.value
        assert isinstance(value, Reduction)
        fault, hint = "", "combine by partials"
        if value.reducer != "sum" or self.dtypes[eq.target.name] in (DType.F64, DType.I32):
            fault = "the copy engine adds up sums in f32 alone"
        elif eq.target.name in self.temporaries:
            fault = "it is no output"
        elif self.turns:
            fault, hint = "a kernel's blocks take turns at one sum", "give the other sum a kernel of its own"
        if fault:
            message = f"{eq.target.name} cannot be combined over {c.over} by turns: {fault}"
            raise TcError(message, c.span, self.text, hint)

    def _added(self, plan: KernelPlan, leaf: Leaf, c: Combine, at: int) -> tuple[list[Leaf], KernelPlan]:
        """`dQ[q, d] = sum k: ...` --> `dQ.joined[q, d] += sum k in block: ...` by all blocks of k, and in a phase of
        its own `dQ[q', d'] = dQ.joined[q', d']`."""
        eq, value = leaf.equation, leaf.equation.value
        output = part_of(eq.target).rstrip(".")
        grid = [t for t in plan.sequence if t.index == c.over and t.parallel]
        fault, hint = "", f"map '{c.over}' to grid, or combine by partials"
        if (
            not splittable(eq) or not isinstance(value, Reduction) or value.reducer != "sum"
            or c.over not in leaf.reduced or eq.target.name in self.temporaries or eq.accumulate
        ):  # fmt: skip
            fault, hint = f"it is no sum over {c.over} into plain indices of an output", "leave the line out"
        elif self.family.level != "grid":
            fault, hint = "it needs blocks of a GPU", "combine by partials"
        elif not grid:
            fault = f"'{c.over}' is not divided among blocks"
        if fault:
            message = f"{output} cannot be combined over {c.over} by {c.by}: {fault}"
            raise TcError(message, c.span, self.text, hint)
        name, flags = output + JOINED, f"{output}.turns" if c.by == "turns" else ""
        self.dtypes[name], self.shapes[name] = DType.F32, tuple(self.extents[i] for i in leaf.parallel)
        if flags:
            self.dtypes[flags], self.shapes[flags] = DType.I32, (math.prod(self.shapes[name][:-1]),)
        self.sums.append(AddedSum(name, output, c, grid[0], flags))
        first = replace(eq, targets=(Target(name, tuple(Name(i) for i in leaf.parallel)),), accumulate=True)
        new = {i: f"{i}.{output}" for i in leaf.parallel}
        self.extents.update({new[i]: self.extents[i] for i in leaf.parallel})
        order = sorted(list(new.values())[:-1], key=lambda i: self.extents[i]) + list(new.values())[-1:]
        maps = joining_loops(order, self.family.shape(plan, self.extents, self.text), grid[0])
        special = {(i, name): m for (i, t), m in plan.special.items() if t == output}
        plan = replace(
            plan,
            loops={**plan.loops, **{m.index: m for m in maps}},
            sequence=(*(t for m in maps for t in m.tiles), *plan.sequence),
            special={**plan.special, **special},
        )
        read = Access(name, tuple(Name(i) for i in new.values()))
        second = replace(eq, targets=(Target(eq.target.name, renamed(eq.target.subscripts, new)),), value=read)
        return [
            Leaf(
                first, at, leaf.parallel, leaf.reduced, leaf.gathered, c.over, sums_for=(eq.target.name,), atomic=True
            ),
            Leaf(second, at + 1, tuple(new.values()), (), copies=True),
        ], plan

    def _sorted(self, plan: KernelPlan, leaf: Leaf, c: Combine) -> tuple[Leaf, KernelPlan]:
        """`E[ids[t], n] += X[t, n]` --> each block owns a range of E's rows, walks t in order and takes what falls
        in its range: a fixed order for every element, and many blocks."""
        eq = leaf.equation
        gathers = [d for d, s in enumerate(eq.target.subscripts) if c.over in names_in(s)]
        if self.family.level != "grid" or c.over not in leaf.gathered or not gathers or not eq.accumulate:
            raise TcError(
                f"combine {eq.target.name} over {c.over} by sorted needs a scatter `{eq.target.name}[ids[...]] += ...` "
                "on a GPU",
                c.span,
                self.text,
                f"map '{c.over}' to seq, or combine by partials",
            )
        mapped = plan.loops.get(c.over)
        if mapped is not None and (any(t.parallel for t in mapped.tiles) or mapped.lane or mapped.warp):
            raise TcError(
                f"a sorted scatter walks '{c.over}' in order, so it cannot be divided",
                mapped.span,
                self.text,
                f"map '{c.over}' to seq: the rows of {eq.target.name} are what is divided",
            )
        rows = self.shapes[eq.target.name][gathers[0]]
        blocks = math.prod(-(-self.extents[t.index] // (t.block or 1)) for t in plan.sequence if t.parallel)
        count = max(1, min(rows, BLOCKS_PER_SM * int(self.family.rules.facts["sms"]) // blocks))
        size = -(-rows // count)
        index = f"{eq.target.name}.rows"
        self.extents[index] = -(-rows // size)
        level = TileLevel(index, 0, self.family.level, 1, c.span)
        owner = Binary("==", Binary("//", eq.target.subscripts[gathers[0]], Num(size)), Name(index))
        plan = replace(plan, sequence=(level, *plan.sequence))
        own = Leaf(eq, leaf.number, (*leaf.parallel, index), leaf.reduced, leaf.gathered, guard=owner)
        return own, plan

    def _divided(self, plan: KernelPlan, leaf: Leaf, over: str) -> bool:
        """Is it a sum in tiles inside of blocks, on a GPU: one that stays in registers until its part is done?"""
        grid = [t for t in plan.sequence if t.index == over and t.parallel]
        return self.family.level == "grid" and bool(grid) and divides(plan, over) and splittable(leaf.equation)

    def _partials(
        self, plan: KernelPlan, leaf: Leaf, over: str, by: str, at: int, group: str
    ) -> tuple[list[Leaf], KernelPlan]:
        """`s[n] = sum i: x[i, n]` by partials --> `s.partial[block, n] = sum i in block: x[i, n]`, and in a phase of
        its own `s[n'] = sum block: s.partial[block, n']`. On a GPU, and where n is divided among the cores too, that
        phase has loops of its own for n', which sums of one `group` share."""
        eq = leaf.equation
        directive = next(c for c in plan.combine if c.over == over and called(eq, c.names))
        core = [t for t in plan.sequence if t.index == over and t.parallel]
        value = eq.value
        if by != "partials" or not core or core[0].block is None or not isinstance(value, Reduction):
            raise TcError(
                f"combine over {over} by {by} needs partial sums of equal blocks",
                directive.span,
                self.text,
                f"write: {over} -> {self.family.level}(65536), and: combine {eq.target.name} over {over} by partials",
            )
        if value.reducer not in ("sum", "max", "min"):
            raise TcError(
                f"partial results of '{value.reducer}' cannot be combined yet",
                directive.span,
                self.text,
                f"map '{over}' to seq",
            )
        level: TileLevel = core[0]
        assert level.block is not None
        count = -(-self.extents[over] // level.block)
        name, index = eq.target.name + PARTIAL, f"{over}.block"
        self.extents[index] = count
        own = self.dtypes[eq.target.name]
        self.dtypes[name] = own if own.bytes >= 4 else DType.F32
        self.shapes[name] = (count, *(self.extents[i] for i in leaf.parallel))
        number = Binary("//", Name(level.variable), Num(level.block))
        rows = tuple(Name(i) for i in leaf.parallel)
        first = replace(eq, targets=(Target(name, (number, *rows)),), accumulate=False)
        joined = {i: i for i in leaf.parallel}
        apart = self.family.level == "grid" or any(t.parallel and t.index in leaf.parallel for t in plan.sequence)
        if apart and rows:
            joined = {i: f"{i}.{group}" for i in leaf.parallel}
            self.extents.update({new: self.extents[i] for i, new in joined.items()})
        if set(joined.values()) - set(joined) and set(joined.values()) <= set(plan.loops):
            pass  # another of the group has brought the loops
        elif apart and rows:
            indices = list(joined.values())
            if self.family.level == "grid":
                shape = self.family.shape(plan, self.extents, self.text)
                maps = joining_loops(indices, shape, level, (index, count))
            else:
                maps = joining_cores(indices, self.extents, level)
            levels = tuple(t for m in maps for t in m.tiles)
            plan = replace(plan, loops={**plan.loops, **{m.index: m for m in maps}}, sequence=(*levels, *plan.sequence))
        elif (mapped := self.family.partial_loop(index)) is not None:
            plan = replace(plan, loops={**plan.loops, index: mapped})
        read = Access(name, (Name(index), *(Name(joined[i]) for i in leaf.parallel)))
        second = replace(
            eq,
            targets=(Target(eq.target.name, renamed(eq.target.subscripts, joined)),),
            value=Reduction(value.reducer, (index,), None, None, (read,), value.span),
        )
        return [
            Leaf(first, at, leaf.parallel, leaf.reduced, frozenset(), over, sums_for=(eq.target.name,)),
            Leaf(second, at + 1, tuple(joined.values()), (index,), copies=True),
        ], plan


def _numbered(leaves: list[Leaf]) -> list[Leaf]:
    """Leaves with their places as numbers."""
    return [replace(leaf, number=i) for i, leaf in enumerate(leaves)]
