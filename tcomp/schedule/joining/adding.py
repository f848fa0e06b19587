"""Sums that many blocks add to memory: a block's part is a tile of its own, computed like any other, and added whole.

    combine dQ over k by turns        dQ.joined[q, d] += sum k: ds[q, k] * K[k, d]
    -->
    dQ.joined.part[q, d] = sum k: ds[q, k] * K[k, d]                   an ordinary product, in registers
    dQ.joined.out[q, d] = dQ.joined.part[q, d]                         shared memory, for the copy engine
    unpack dQ.joined.out to dQ.joined, adding in turns                 in the background

`by turns` blocks add one after the other, in the order of their numbers, so results repeat bitwise; a block only waits
for blocks of lower numbers (`results/turn_taking.py` has what that assumes of a GPU). Who has its turn before
another follows from the loops' own bounds. `by atomic` there is no order, and without a `stage ... by tma` line the
addition is an atomic one by the threads themselves. The joined sums are f32 whatever the output is, and only as large
as the output. The block whose turn is the last one of all writes the output from them before it ends, if it comes to
every tile and has one of its own; else a phase of its own does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tcomp.dsl.ast import Access, Binary, Call, Combine, DType, Expr, Name, Num, Stage, names_in, substitute
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.ir.blocks import GridOrder
from tcomp.ir.rewrite import Body, map_bodies
from tcomp.ir.tile import Axis, Buffer, Compute, Layout, Loop, RowMajor, Scope, Statement, Swizzled, Turns, Unpack
from tcomp.schedule.fold import fold, sub
from tcomp.schedule.joining.last_turn import written_last
from tcomp.schedule.joining.tile_words import tile_words
from tcomp.schedule.kernel_plan import TileLevel
from tcomp.schedule.tree.legality import cannot_combine


@dataclass(frozen=True)
class AddedSum:
    """`name` collects what blocks along `level` add for `output` (dQKV or a part of it, dQKV.0), in turns kept by the
    words of `flags` ("" for none): the kernel's own (`Scope.WORDS`) where the last block can leave them zero."""

    name: str
    output: str
    directive: Combine
    level: TileLevel
    flags: str = ""


class Adding:
    """Rewrites the phases of one kernel, whose `tiles` gain the parts."""

    def __init__(
        self,
        sums: Iterable[AddedSum],
        stages: Iterable[Stage],
        tiles: dict[str, Buffer],
        shapes: Mapping[str, tuple[int, ...]],
        extents: Mapping[str, int],
        order: GridOrder,
    ) -> None:
        self.sums = {s.name: s for s in sums}
        self.stages = {n: s for s in stages if s.by == "tma" and s.space == "shared" for n in s.tensors}
        self.tiles, self.shapes, self.extents = tiles, shapes, extents
        self.order = order
        self.cleared = {s.name for s in self.sums.values() if not s.flags}
        """sums that must be zero before blocks add to them"""
        self.last: dict[str, Expr] = {}
        """of sums whose last block comes to every tile, what is 1 in that block and 0 in others"""

    def phases(self, phases: Iterable[tuple[Statement, ...]]) -> list[tuple[Statement, ...]]:
        found = [map_bodies(phase, self._body) for phase in phases] if self.sums else list(phases)
        # (Blocks that take tile after tile would meet the end of several: the deliverer tells of one.)
        for name, last in self.last.items() if not self.order.persistent else ():
            found = written_last(found, name, self.sums[name].output, last, self.extents)
        return found

    def _body(self, body: Body, around: tuple[Loop, ...]) -> Body:
        """The additions come last in their loop, so that what else the turn computes runs beside them."""
        out: list[Statement] = []
        last: list[Statement] = []
        for s in body:
            if isinstance(s, Compute) and s.target.tensor in self.sums and s.accumulate:
                s, more = self._added(s, self.sums[s.target.tensor], around)
                last += more
            out.append(s)
        return (*out, *last)

    def _added(self, s: Compute, a: AddedSum, around: tuple[Loop, ...]) -> tuple[Compute, list[Statement]]:
        stage = self.stages.get(a.output) or self.stages.get(a.output.partition(".")[0])
        axes = {x.name: x for x in s.axes if x.name not in s.reduced}
        walked = tuple(axes[x.id] for x in s.target.subscripts if isinstance(x, Name) and x.id in axes)
        if s.guard is not None or not s.distinct or len(walked) != len(axes):
            raise cannot_combine(a.output, a.directive, "its sum is guarded or scattered", "leave the line out")
        shape = tuple(x.block for x in walked)
        inside = tuple(sub(Name(x.name), x.start) for x in walked)
        part = self._tile(f"{a.name}.part", shape, Scope.SCRATCH, RowMajor())
        first = replace(s, target=Access(part, inside), accumulate=False, atomic=False)
        given = Access(part, inside)
        if stage is None:
            if a.directive.by == "turns":
                hint = f"add: stage {a.output} in shared at {_index(around[-1])} by tma"
                raise cannot_combine(
                    a.output, a.directive, "only the copy engine adds a tile as one, and so in turns", hint
                )
            adds = Compute(s.target, given, walked, frozenset(), "sum", True, atomic=True, span=s.span)
            return first, [adds]
        row = shape[-1] * DType.F32.bytes
        layout: Layout = Swizzled.of_row(row) or RowMajor()
        tile = self._tile(f"{a.name}.out", shape, Scope.SHARED, layout)
        copied = Compute(Access(tile, inside), given, walked, span=s.span)
        plain = tuple(replace(x, spread=None, unroll=1, lanes=1) for x in walked)
        turns = self._turns(s, a, walked, around) if a.flags else None
        return first, [copied, Unpack(tile, plain, s.target, stage.span, True, turns)]

    def _tile(self, name: str, shape: tuple[int, ...], scope: Scope, layout: Layout) -> str:
        self.tiles[name] = Buffer(name, DType.F32, shape, scope, layout)
        return name

    def _turns(self, s: Compute, a: AddedSum, walked: tuple[Axis, ...], around: tuple[Loop, ...]) -> Turns:
        """Whose turn comes before a block's: its neighbour's along the grid loop, if that comes to this tile at all."""
        written = {n for e in s.target.subscripts for n in names_in(e)} | {x.name for x in walked}
        for loop in around:
            name = _index(loop)
            if loop.level != "grid" and not {name, loop.variable} & written:
                why = f"a block comes to a tile once for each turn of its loop over '{name}'"
                raise cannot_combine(a.output, a.directive, why, f"give '{name}' no loop around the product")
        if a.level.cluster > 1:
            raise cannot_combine(
                a.output, a.directive, "blocks of a cluster would take turns with each other", "leave `cluster` out"
            )
        if sum(1 for other in self.sums.values() if other.flags) > 1:
            raise cannot_combine(
                a.output,
                a.directive,
                "a kernel's blocks take turns at one sum",
                "give the other sum a kernel of its own",
            )
        block = a.level.block or 1
        own, index = Name(a.level.variable), a.level.index
        step = block if index in self.order.reversed else -block
        other = fold(Binary("+", own, Num(step)))

        def of_other(e: Expr) -> Expr:
            return fold(substitute(e, {a.level.variable: other}))

        inner = [
            x for x in around
            if x.level != "grid" and (of_other(x.start) != fold(x.start) or of_other(x.stop) != fold(x.stop))
        ]  # fmt: skip
        end = (self.extents[index] - 1) // block * block
        stores = any(self._whole(inner, a, at) for at in (0, end))
        if self._whole(inner, a, 0 if index in self.order.reversed else end):
            past: Expr = sub(Num(1), own) if index in self.order.reversed else sub(own, Num(end - 1))
            self.last[a.name] = fold(Call("max", (Num(0), past)))
        if not stores:
            self.cleared.add(a.name)
        met: list[tuple[Expr, Expr, Expr]] = [(Num(0), other, Num(self.extents[index]))]
        met += [(of_other(x.start), Name(x.variable), of_other(x.stop)) for x in inner]
        if walked[-1].block < self.shapes[a.name][-1]:
            raise cannot_combine(
                a.output,
                a.directive,
                f"a tile has only a part of '{walked[-1].name}'",
                f"leave '{walked[-1].name}' whole",
            )
        flag = self._words(s, a, walked) if a.name in self.last else self._flag(s, a, walked)
        # (Words that are left zero by the last block need no launch that clears them.)
        first = Num(end) if index not in self.order.reversed and a.name in self.last else Num(0)
        more = Num(0 if a.name in self.last else 1)

        def number(e: Expr) -> Expr:
            away = sub(first, e) if first.value else e
            return fold(Binary("+", fold(Binary("//", away, Num(block))), more))

        return Turns(flag, number(own), number(other), tuple(met), stores)

    def _flag(self, s: Compute, a: AddedSum, walked: tuple[Axis, ...]) -> Access:
        """The word of a tile among those that a launch before clears: one for each row of the sum."""
        axes = {x.name: x for x in walked}
        at: Expr = Num(0)
        for x, size in list(zip(s.target.subscripts, self.shapes[a.name], strict=True))[:-1]:
            place: Expr = axes[x.id].start if isinstance(x, Name) and x.id in axes else x
            at = fold(Binary("+", fold(Binary("*", at, Num(size))), place))
        return Access(a.flags, (at,))

    def _words(self, s: Compute, a: AddedSum, walked: tuple[Axis, ...]) -> Access:
        """The word of a tile among those that every launch leaves zero: one for each tile."""
        words = tile_words(a.flags, s.target.subscripts[:-1], self.shapes[a.name][:-1], walked)
        self.tiles[a.flags] = words.buffer
        return words.place

    def _whole(self, loops: list[Loop], a: AddedSum, at: int) -> bool:
        """Does the block that begins there come to every tile?"""
        for x in loops:
            try:
                start, stop = (evaluate_dim(substitute(e, {a.level.variable: Num(at)}), {}) for e in (x.start, x.stop))
            except TcError:
                return False  # (they depend on other loops too)
            if start > 0 or stop < self.extents[_index(x)]:
                return False
        return True


def _index(loop: Loop) -> str:
    """The index that a loop walks, by its name in the text."""
    return loop.variable.rpartition(".")[0]
