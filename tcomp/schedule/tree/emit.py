"""The tree of loops becomes tile IR: tiles get buffers, equations become `Compute`s, staged operands `Pack`s.

An equation whose reduction is split by a loop starts its target before that loop and accumulates inside it.
Reductions by a monoid are in `rescaled_sums.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field

from tcomp.dsl.ast import (
    Access,
    Binary,
    Call,
    DType,
    Expr,
    Monoid,
    Name,
    Num,
    Reduction,
    Span,
    conjunction,
    conjuncts,
    map_children,
    names_in,
)
from tcomp.instructions.vector_matching import vector_instruction
from tcomp.ir.reducers import IDENTITY, identity
from tcomp.ir.tile import Axis, Buffer, Compute, Loop, Scope, Statement
from tcomp.schedule.fold import add, behind, by_exp2, fold, minimum, sub
from tcomp.schedule.gpu.promotion import promoted
from tcomp.schedule.joining.block_condition import block_condition
from tcomp.schedule.kernel_plan import KernelPlan, TileLevel
from tcomp.schedule.rounding import cast_reads, ends_rounded
from tcomp.schedule.staging.stager import Stager
from tcomp.schedule.tree.assignment import Assignment
from tcomp.schedule.tree.bounds import Env, Range, guarding, limits, tile_stop, zero_outside
from tcomp.schedule.tree.nest import TURN, Leaf, LoopNode, Node, grouped_index, leaf_uses, leaves_of
from tcomp.schedule.tree.regions import Needs, zero_behind
from tcomp.schedule.tree.rescaled_sums import lowest, rescaled, rescaled_tile
from tcomp.schedule.tree.storage import Storage, reduction_loops
from tcomp.schedule.tree.tiling import RegisterTile, Tiler


@dataclass(eq=False)
class Emitter:
    """Emits one kernel."""

    plan: KernelPlan
    extents: dict[str, int]
    """of indices"""
    room: Mapping[str, int]
    """the extents that tiles of each index have room for"""
    chunk: dict[str, int]
    """the most that one core gets of a loop that is divided among all"""
    granule: dict[str, int]
    """what such shares begin at multiples of"""
    storage: dict[str, Storage]
    """where temporaries live"""
    dtypes: Mapping[str, DType]
    shapes: Mapping[str, tuple[int, ...]]
    monoids: Mapping[str, Monoid]
    definitions: Mapping[str, Expr]
    """temporaries that one plain equation defines, and what they are"""
    tiler: Tiler
    stager: InitVar[Callable[[Emitter], Stager]]
    scalars: frozenset[str]
    """integers that the kernel only reads"""
    needs: Needs | None
    """the points of each result that somebody reads; None: all of a tile is computed"""
    tiles: dict[str, Buffer] = field(init=False)
    """the buffers that it introduces"""
    staging: Stager = field(init=False)
    rank: dict[str, int] = field(init=False)
    """of an index, the place of its first serial loop from outside"""

    def __post_init__(self, stager: Callable[[Emitter], Stager]) -> None:
        self.tiles = {s.buffer.name: s.buffer for s in self.storage.values()}
        self.staging = stager(self)
        rank = [t.index for t in self.plan.sequence if not t.parallel]
        self.rank = {i: rank.index(i) for i in rank}

    # ------------------------------------------------------------------------------------------ loops

    def emit(self, node: Node, env: Env) -> list[Statement]:
        """The statements of a node, its reductions' starting values not included."""
        if isinstance(node, Leaf):
            return self.leaf(node, env)
        level = node.level
        outer = self.range(level.index, env)
        if node.trivial:
            inner = {**env, level.index: outer}
            return self.staging.stage(node, inner) + self.body(node.children, inner)
        bound, step = self.turn(level, outer)
        start, stop = outer.start, outer.stop
        if not level.parallel and start == Num(0):
            start, stop = self.narrowed(node, env, stop, step)
        inner = {**env, level.index: bound}
        body = tuple(self.staging.stage(node, inner) + self.body(node.children, inner))
        chunked = level.block is None
        return [Loop(level.variable, start, stop, step, level.kind, body, chunked, level.stages, level.span)]

    def turn(self, level: TileLevel, outer: Range) -> tuple[Range, int]:
        """What one turn of a loop covers of the range around it, and the loop's step."""
        variable = Name(level.variable)
        if level.block is None:
            stop: Expr = Name(level.variable + ".stop")
            return Range(variable, stop, self.chunk[level.index]), self.granule[level.index]
        end, extent = outer.stop, self.extents[level.index]
        stream = self.plan.streams.get(level.index)
        part = stream.unit if stream is not None else self.plan.parts.get(level.index, ("", 0))[1]
        if part and part % level.block == 0 and level == self.plan.loops[level.index].tiles[0]:
            end = Num(extent)  # parts are whole tiles: only the tensor ends within one
        stop = tile_stop(variable, level.block, end, extent)
        if stream is not None and extent % stream.unit:
            # Turns go on to the end of the ring's round, past the last tile of the sum.
            stop = minimum(add(variable, Num(level.block)), Num(extent))
        return Range(variable, stop, min(level.block, outer.block)), level.block

    def narrowed(self, node: LoopNode, env: Env, stop: Expr, step: int) -> tuple[Expr, Expr]:
        """Where a loop over 0 .. stop begins and ends, with the guards of all that is in it."""
        start: Expr = Num(0)
        ranges = {i: self.range(i, env) for i in self.extents}
        lower, stops = limits(node.level.index, guarding(node), ranges, self.scalars)
        for s in stops:
            if not (isinstance(s, Num) and isinstance(stop, Num) and s.value >= stop.value):
                stop = Call("min", (stop, s))
        for low in (x for x in lower if not isinstance(x, Num) or x.value > 0):
            aligned = fold(Binary("*", fold(Binary("//", low, Num(step))), Num(step)))
            start = Call("max", (start, aligned))
        return start, stop

    def body(self, nodes: list[Node], env: Env) -> list[Statement]:
        """The statements of sibling nodes, with the starting values of reductions that loop in them."""
        out: list[Statement] = []
        for n in nodes:
            out += self.starts(n, env)
            out += self.emit(n, env)
        return out

    def starts(self, node: Node, env: Env) -> list[Statement]:
        """Starting values of the reductions whose outermost accumulating loop is this node."""
        if not isinstance(node, LoopNode):
            return []
        out: list[Statement] = []
        for leaf in leaves_of(node):
            loops = reduction_loops(leaf)
            if not loops or loops[0] is not node or leaf.equation.accumulate:
                continue
            value = leaf.equation.value
            assert isinstance(value, Reduction)
            for i, w in enumerate(leaf.writes()):
                if value.reducer in IDENTITY:
                    start: Expr = Num(identity(value.reducer, self.dtypes[w.tensor] is DType.I32))
                else:
                    start = lowest(rescaled(self, value), self.dtypes[w.tensor]) if i == 0 else Num(0.0)
                tile = self.tiles.get(w.tensor)
                own = tile is not None and tile.scope is not Scope.TEAM  # (else other blocks would undo the sum)
                only = None if own else self.only(leaf, env)
                out.append(self.compute(Assignment(leaf, w, start, self.axes_of(w), only=only), env))
        return out

    def range(self, index: str, env: Env) -> Range:
        if index in env:
            return env[index]
        if (stream := self.plan.streams.get(index)) is not None:
            return Range(Name(stream.start), Name(stream.stop), self.room[index])
        part, size = self.plan.parts.get(index, ("", 0))
        if part in env:
            start = fold(Binary("*", env[part].start, Num(size)))
            end = fold(Binary("+", start, Num(size)))
            n = self.extents[index]
            return Range(start, end if n % size == 0 else Call("min", (end, Num(n))), min(size, n))
        return Range(Num(0), Num(self.extents[index]), self.room[index])

    def axes_of(self, target: Access) -> tuple[str, ...]:
        """Indices a target's subscripts use, in order."""
        seen: list[str] = []
        for s in target.subscripts:
            for n in sorted(names_in(s)):
                if n in self.extents and n not in seen:
                    seen.append(n)
        return tuple(seen)

    # ---------------------------------------------------------------------------------------- equations

    def leaf(self, leaf: Leaf, env: Env) -> list[Statement]:
        """The Computes of one equation on the current tile."""
        value = leaf.equation.value
        if not isinstance(value, Reduction):
            write = leaf.writes()[0]
            if self.needs is not None:
                value = zero_behind(value, self.needs.zeros.get(leaf.number, ()))
            plain = Assignment(
                leaf,
                write,
                by_exp2(value) if self.exponent_rounded(write.tensor, leaf) else value,
                leaf.parallel,
                reducer="sum" if leaf.equation.accumulate else None,
                accumulate=leaf.equation.accumulate,
                guard=leaf.guard,
                region=self.region(leaf),
                only=self.only(leaf, env),
            )
            return [self.compute(plain, env)]
        if value.reducer in IDENTITY:
            return self.reduction(leaf, value, env)
        return rescaled_tile(self, leaf, value, env)

    def guard(self, value: Reduction, contribution: Expr) -> Expr | None:
        """What remains of a reduction's guard after dropping what its value's zeros already say."""
        return conjunction([g for g in conjuncts(value.guard) if not zero_outside(contribution, g, self.definitions)])

    def region(self, leaf: Leaf, zero_behind: Sequence[Expr] = ()) -> Expr | None:
        """Where the leaf's result is needed, and its contributions to a sum are not zero. (What of `zero_behind` names
        no summed index holds for whole results, which are zero there and written so.)"""
        if self.needs is None:
            return None
        summed = [g for g in zero_behind if names_in(g) & set(leaf.reduced)]
        return conjunction([*self.needs.within.get(leaf.number, ()), *summed])

    def reduction(self, leaf: Leaf, value: Reduction, env: Env) -> list[Statement]:
        """The sum of a tile, into what is there or (promoted) into a result of its own that is added to it."""
        e = value.values[0]
        guard = self.guard(value, e) if value.reducer == "sum" else value.guard
        kept = conjuncts(guard)
        target = total = leaf.writes()[0]
        own_turn = promoted(self.plan, leaf)
        if own_turn:
            target = self.temporary(total.tensor + TURN, leaf.parallel, env)
        summed = Assignment(
            leaf,
            target,
            e,
            leaf.parallel,
            leaf.reduced,
            reducer=value.reducer,
            accumulate=not own_turn and (leaf.equation.accumulate or bool(reduction_loops(leaf))),
            guard=guard,
            region=self.region(leaf, [g for g in conjuncts(value.guard) if g not in kept]),
            only=self.only(leaf, env, summing=True),
        )
        found = [summed]
        if own_turn:
            found.append(Assignment(leaf, total, target, leaf.parallel, reducer=value.reducer, accumulate=True))
        return [self.compute(a, env) for a in found]

    def only(self, leaf: Leaf, env: Env, summing: bool = False) -> Expr | None:
        """The blocks, and turns of their loops, in which an equation beside others is computed."""
        return block_condition(leaf, {i: self.range(i, env).start for i in leaf.walked}, summing)

    def temporary(self, name: str, axes: tuple[str, ...], env: Env, dtype: DType = DType.F32) -> Access:
        """A scratch tile over these axes, private to one turn of the loops around."""
        origins: list[Expr | None] = []
        dims: list[int] = []
        for i in axes:
            r = self.range(i, env)
            origins.append(None if r.block == 1 else r.start)
            if r.block > 1:
                dims.append(r.block)
        buffer = Buffer(name, dtype, tuple(dims), Scope.SCRATCH)
        self.tiles[name] = buffer
        self.storage[name] = Storage(buffer, tuple(origins))
        return Access(name, tuple(Name(i) for i in axes))

    # ------------------------------------------------------------------------------------------ points

    def register_tile(self, a: Assignment, env: Env) -> RegisterTile:
        return self.tiler.tile(a, {i: self.range(i, env).block for i in a.indices})

    def compute(self, a: Assignment, env: Env) -> Compute:
        """A Compute over the current tile; indices with a single value become that value."""
        use = leaf_uses(self.plan, a.leaf, a.target) if a.reducer == "sum" and a.reduced and not a.leaf.copies else None
        in_groups = use is not None and vector_instruction(use.instruction) is not None
        grouped = grouped_index(self.plan, a.leaf) if in_groups else ""
        axes = self.axes(a, env, grouped)
        kept = frozenset(x.name for x in axes).intersection(a.reduced)
        # Zero contributions over an index that is not an axis any more are contributions all the same.
        names = [(g, names_in(g)) for g in conjuncts(a.region)]
        region = conjunction([g for g, n in names if n & kept or not n.intersection(a.reduced)])
        value = self.operands(a.leaf, cast_reads(self.plan, (a.target.tensor, *a.leaf.sums_for), a.value))
        return Compute(
            self.access(a.target, env),
            self.point(value, {i: r for i, r in env.items() if i != grouped}),
            axes,
            kept,
            a.reducer if kept or a.accumulate else None,
            a.accumulate,
            None if a.guard is None else self.point(a.guard, env),
            not a.leaf.gathered,
            a.leaf.atomic,
            use.instruction if use is not None else "",
            a.leaf.equation.span,
            late=use is not None and self.overlaps(a.leaf, a.target),
            region=None if region is None else self.point(region, env),
            only=a.only,
        )

    def axes(self, a: Assignment, env: Env, grouped: str) -> tuple[Axis, ...]:
        """The axes, outermost first, with their part of the register tile; not those of a single value. Values of the
        index `grouped` are multiplied in groups ("" for none)."""
        tile = self.register_tile(a, env)
        inner = -1 if not a.reduced else len(self.rank)

        def place(i: str) -> tuple[bool, int]:
            return not a.reduced and i == tile.vector, self.rank.get(i, inner)

        axes: list[Axis] = []
        for i in (*sorted(a.parallel, key=place), *a.reduced):
            r = self.range(i, env)
            if r.block == 1 and i in env and i != grouped and not (a.guard is not None and i in a.reduced):
                continue  # (a guarded reduction over one value still writes its identity; groups are read whole)
            lanes = tile.lanes if i == tile.vector else 1
            axes.append(Axis(i, r.start, r.stop, r.block, tile.unroll[i], lanes, tile.spreads.get(i)))
        return tuple(axes)

    def overlaps(self, leaf: Leaf, target: Access) -> bool:
        """Does an `overlap` line mean the product?"""
        lines = (self.plan.overlap.get(n) for n in (target.tensor.removesuffix(TURN), *leaf.sums_for))
        return any(line is not None and line.number != 0 for line in lines)

    def exponent_rounded(self, tensor: str, leaf: Leaf) -> bool:
        """May exp of the leaf's value lose bits to exp2, since the result is rounded anyway? (On a GPU; a CPU has no
        instruction for it.)"""
        return self.needs is None and ends_rounded(self.plan, tensor, leaf)

    def operands(self, leaf: Leaf, e: Expr) -> Expr:
        """Replace staged accesses by their packed tiles."""
        if isinstance(e, Access) and (id(leaf), e) in self.staging.staged:
            name, origins = self.staging.staged[(id(leaf), e)]
            subs = tuple(behind(s, o) for s, o in zip(e.subscripts, origins, strict=True) if o is not None)
            return Access(name, subs, e.span)
        return map_children(e, lambda x: self.operands(leaf, x))

    def access(self, a: Access, env: Env) -> Access:
        """An access with tile coordinates and single-valued indices filled in."""
        out = self.point(a, env)
        assert isinstance(out, Access)
        return out

    def point(self, e: Expr, env: Env) -> Expr:
        """Rewrite an expression for the current tile."""
        single = {i: r.start for i, r in env.items() if r.block == 1}
        return self._point(e, single)

    def _point(self, e: Expr, single: dict[str, Expr]) -> Expr:
        if isinstance(e, Access) and e.tensor in self.storage:
            origins = self.storage[e.tensor].origins
            subs = tuple(
                sub(self._point(s, single), o) for s, o in zip(e.subscripts, origins, strict=True) if o is not None
            )
            return Access(e.tensor, subs, e.span)
        if isinstance(e, Name):
            return single.get(e.id, e)
        return fold(map_children(e, lambda x: self._point(x, single)))


def once(statements: list[Statement], level: str, span: Span) -> Loop:
    """Statements outside all core (grid) loops run on one core (block): such a loop of one turn."""
    return Loop("once", Num(0), Num(1), 1, level, tuple(statements), span=span)
