"""Operands staged in shared memory: a block's tile of a tensor, copied by all its threads.

    stage X, W in shared at k by cp.async   -->   in the loop over k: X.shared = pack X[m, k]; readers use X.shared
    stage X, W in shared at k by tma              the same, copied by the copy engine into swizzled tiles

In a pipe loop the copies run ahead, so the tile exists once per stage. Rows are padded to an odd number of 16-byte
groups: neighbouring rows then start in different banks, and 128-bit reads down a column meet no conflict. `swizzle`
reaches the same by exchanging a row's 16-byte granules, which tensor cores and the copy engine understand.

    stage L in registers at q           -->   as each turn starts: L.registers = L[q], each thread what it will read

The loads are then on their way while the turn's products are computed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tcomp.dsl.ast import Access, DType, Expr, Level, Name, Num, Stage, names_in
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.expressions import substitute
from tcomp.dsl.extents import polynomial
from tcomp.ir.tensor_map import ALIGNED
from tcomp.ir.tile import Axis, Buffer, Compute, Layout, Pack, Pitched, RowMajor, Scope, Shifted, Statement, Swizzled
from tcomp.schedule.fold import fold, minimum, sub
from tcomp.schedule.staging.packed import check_only_read, computed, staged_accesses
from tcomp.schedule.tree.assignment import whole
from tcomp.schedule.tree.bounds import Env, linear
from tcomp.schedule.tree.nest import Leaf, LoopNode, leaves_of, loops_below

if TYPE_CHECKING:
    from tcomp.schedule.tree.emit import Emitter

REGISTERS = "registers"
SWIZZLES = (128, 64, 32)
"""widths in bytes, the widest first"""
Staged = tuple[str, tuple[Expr | None, ...]]


def padded(columns: int, itemsize: int, pad: int | None = None) -> Layout:
    """The layout of a shared tile with rows of that many elements; `pad` elements between rows instead of ours."""
    if pad is not None:
        return Pitched(columns + pad) if pad else RowMajor()
    groups = -(-columns * itemsize // 16)
    pitch = (groups | 1) * 16 // itemsize
    return Pitched(pitch) if pitch != columns else RowMajor()


BOX = 256
"""elements that one tensor copy moves along a dimension"""


class SharedStaging:
    """Emits the `Pack`s of one kernel and remembers what each access was replaced by."""

    def __init__(self, emitter: Emitter) -> None:
        self.emitter = emitter
        self.staged: dict[tuple[int, Access], Staged] = {}

    def stage(self, node: LoopNode, env: Env) -> list[Statement]:
        """`Pack`s of the operands staged in this loop (its innermost tile level only)."""
        index = node.level.index
        if any(c.level.index == index for c in loops_below(node)):
            return []
        out: list[Statement] = []
        for s in sorted(self.emitter.plan.stages, key=lambda s: s.space == REGISTERS):  # (copies lead the loop's body)
            if s.at == index:
                if s.space == REGISTERS and (s.by or s.options):
                    raise TcError("a tile in registers is loaded as it is", s.span, "end the line behind the loop")
                inner = [c.level.index for c in loops_below(node) if c.level.parallel]
                if inner and node.level.parallel:
                    raise TcError(
                        f"{s.tensors[0]} cannot be staged at {index}: each block has a place of its own along "
                        f"'{inner[-1]}' too, and nothing can run before it is known",
                        s.span,
                        f"stage it at the innermost loop that is divided among blocks: at {inner[-1]}",
                    )
                for name in s.tensors:
                    out += self._stage(s, name, node, env)
        return out

    def _stage(self, stage: Stage, name: str, node: LoopNode, env: Env) -> list[Statement]:
        out: list[Statement] = []
        made: dict[Expr, Staged] = {}
        # A vector may come by the copy engine for pointwise equations too; a tensor that sums read is staged for them,
        # and what other equations read of the same part comes from the tile as well.
        summed = [(x, a) for x in leaves_of(node) for a in staged_accesses(name, x, key=True)]
        anywhere = [(x, a) for x in leaves_of(node) for a in staged_accesses(name, x, True)]
        wanted = anywhere if stage.space == REGISTERS or not summed else summed
        beside = [(x, a) for x, a in anywhere if (x, a) not in wanted and self._plain(a)]
        for leaf, a in (*wanted, *beside):
            check_only_read(stage, a.tensor, leaves_of(node))
            if (leaf, a) in wanted:
                whole = next((b for _, b in beside if self._covers(b, a, env)), a)
                region = self._region(whole, env)
                if region not in made:
                    if stage.space == REGISTERS:
                        made[region], statement = self._load(stage, whole, leaf, env)
                    else:
                        made[region], statement = self._pack(stage, whole, node, env)
                    out.append(statement)
                self.staged[(id(leaf), a)] = made[region]
            elif (found := made.get(self._region(a, env))) is not None:
                self.staged[(id(leaf), a)] = found
        return out

    def _plain(self, a: Access) -> bool:
        """Is every subscript an index, or free of them?"""
        indices = set(self.emitter.extents)
        return all(isinstance(s, Name) or not names_in(s) & indices for s in a.subscripts)

    def _covers(self, a: Access, b: Access, env: Env) -> bool:
        """Does the part that `a` reads begin where that of `b` does, and go further?"""

        def ranges(x: Access) -> list[tuple[Expr, int]]:
            found: list[tuple[Expr, int]] = []
            for s in x.subscripts:
                known = isinstance(s, Name) and s.id in self.emitter.extents
                r = self.emitter.range(s.id, env) if known and isinstance(s, Name) else None
                found.append((s, 0) if r is None else (r.start, r.block))
            return found

        pairs = list(zip(ranges(a), ranges(b), strict=True))
        return all(x == y and m >= n for (x, m), (y, n) in pairs) and any(m > n for (_, m), (_, n) in pairs)

    def _region(self, a: Access, env: Env) -> Expr:
        """The access with whole indices named by what they range over: equal regions are staged once."""
        names = {n for s in a.subscripts for n in names_in(s) if n in self.emitter.extents}
        ranges = {n: self.emitter.range(n, env) for n in names}
        subs = tuple(
            Access("range", (r.start, r.stop)) if isinstance(s, Name) and (r := ranges.get(s.id)) is not None else s
            for s in a.subscripts
        )
        return Access(a.tensor, subs)

    def _load(self, stage: Stage, a: Access, leaf: Leaf, env: Env) -> tuple[Staged, Statement]:
        """A register tile of what the leaf reads of the access, shared out among threads as the leaf's result is."""
        emitter = self.emitter
        axes, origins = self._axes(stage, a, env)
        shared = (id(leaf), a) in self.staged  # (what is near is widened once, not where it is used)
        dtype = computed(emitter.dtypes[a.tensor]) if shared else emitter.dtypes[a.tensor]
        name = f"{a.tensor}.registers{len(emitter.tiles)}"
        emitter.tiles[name] = Buffer(name, dtype, tuple(x.block for x in axes), Scope.SCRATCH)
        tile = emitter.register_tile(whole(leaf, leaf.writes()[0], leaf.parallel, a), env)
        spread = tuple(replace(x, spread=tile.spreads.get(x.name)) for x in axes)
        target = Access(name, tuple(sub(Name(x.name), x.start) for x in axes))
        value = emitter.point(emitter.operands(leaf, a), env)  # (of the shared tile, where there is one as well)
        return (name, origins), Compute(target, value, spread, span=stage.span)

    def _pack(self, stage: Stage, a: Access, node: LoopNode, env: Env) -> tuple[Staged, Pack]:
        emitter = self.emitter
        axes, origins = self._axes(stage, a, env)
        dtype = emitter.dtypes[a.tensor]
        dims = tuple(x.block for x in axes)
        step = self._step(axes[-1].name, dims[-1]) if dims else 1
        layout = self._layout(stage, a.tensor, dims, step, dtype) if dims else RowMajor()
        pipelined = node.level.kind == "pipe" and not node.trivial
        name = f"{a.tensor}.shared{len(emitter.tiles)}"
        ring = node.level.stages if pipelined else 1
        emitter.tiles[name] = Buffer(name, dtype, dims, Scope.SHARED, layout, ring)
        walked = iter(axes)
        source = Access(
            a.tensor,
            tuple(
                emitter.point(s, env) if o is None else Name(next(walked).name)
                for s, o in zip(a.subscripts, origins, strict=True)
            ),
            a.span,
        )
        return (name, origins), Pack(name, axes, source, stage.by or "cp.async", stage.span)

    def _axes(self, stage: Stage, a: Access, env: Env) -> tuple[tuple[Axis, ...], tuple[Expr | None, ...]]:
        """The axes along which the tile of an access extends, and where each subscript starts (None: no dimension)."""
        emitter = self.emitter
        axes: list[Axis] = []
        origins: list[Expr | None] = []
        for s in a.subscripts:
            if isinstance(s, Name) and s.id in emitter.extents:
                r = emitter.range(s.id, env)
                if r.block > 1 or s.id not in env:
                    axes.append(Axis(s.id, r.start, r.stop, self._whole_tiles(s.id, r.block)))
                    origins.append(r.start)
                    continue
            elif names_in(s) & set(emitter.extents):
                axis, origin = self._block(stage, a, s, emitter.shapes[a.tensor][len(origins)], env)
                axes.append(axis)
                origins.append(origin)
                continue
            origins.append(None)
        return tuple(axes), tuple(origins)

    def _block(self, stage: Stage, a: Access, s: Expr, extent: int, env: Env) -> tuple[Axis, Expr]:
        """The axis of a subscript that is one index behind a place that the tile's loops have fixed, and that place:
        `128 * g + k` is an index that runs from `128 * g` on, and ends with the tensor."""
        emitter = self.emitter
        names, constant = linear(polynomial(s)) or ({}, 0)
        inner = [n for n in names if n in emitter.extents and not (n in env and env[n].block == 1)]
        if len(inner) != 1 or names[inner[0]] != 1 or any(isinstance(n, Access) for n in names):
            raise TcError(
                f"{a.tensor} cannot be staged: its subscript is not a plain index",
                stage.span,
                "subscripts must be plain indices, or one index behind a place that the tile has fixed (`128 * t + r`)",
            )
        index = str(inner[0])
        r = emitter.range(index, env)
        origin = fold(substitute(s, {index: r.start}))
        start = emitter.point(origin, env)
        stop = emitter.point(substitute(s, {index: r.stop}), env)
        largest = constant + sum(c * (emitter.extents[str(n)] - 1) for n, c in names.items())
        if min(names.values()) < 0 or largest >= extent:
            stop = minimum(stop, Num(extent))
        return Axis(index, start, stop, self._whole_tiles(index, r.block)), origin

    def _whole_tiles(self, index: str, block: int) -> int:
        """The size of a tile that has room for whole tiles within it: matrix instructions read all of the last one."""
        step = self._step(index, block)
        return -(-block // step) * step

    def _step(self, index: str, block: int) -> int:
        """The values of a tile's dimension that matrix instructions read in one turn of the loops within it."""
        own = self.emitter.plan.loops.get(index)
        inner = [t.block for t in own.tiles if t.block is not None] if own is not None and own.mma else []
        return min(inner[-1], block) if inner else block

    def _layout(self, stage: Stage, tensor: str, dims: tuple[int, ...], step: int, dtype: DType) -> Layout:
        """The tile's layout by the options behind the `stage` line: at most one of pad(n), swizzle and swizzle(n).
        Reads begin at multiples of `step` values of a row, and where it is swizzled with a panel."""
        for o in stage.options[1:]:
            raise TcError("a staged tile has one layout", o.span, "keep one of pad(n) and swizzle(n)")
        for o in stage.options:
            args = [int(evaluate_dim(a, dict(self.emitter.plan.values))) for a in o.args]
            if o.kind == "pad" and len(args) == 1:
                return padded(dims[-1], dtype.bytes, args[0])
            if o.kind == "swizzle" and len(args) <= 1:
                return self._swizzled(o, tensor, dims[-1] * dtype.bytes, step * dtype.bytes, args)
            raise TcError(
                f"staging option '{o.kind}' cannot be lowered yet",
                o.span,
                "leave it out (rows are padded against bank conflicts), or write pad(4) or swizzle(128)",
            )
        if stage.by == "tma" and len(dims) == 1 and dims[0] <= BOX:
            return self._vector(tensor, dims[0], dtype)
        if stage.by == "tma":
            fitting = (w for w in SWIZZLES if dims[-1] * dtype.bytes % w == 0 and step * dtype.bytes % w == 0)
            return next((Swizzled(w) for w in fitting), RowMajor())
        return padded(dims[-1], dtype.bytes)

    def _vector(self, tensor: str, extent: int, dtype: DType) -> Layout:
        """Of a vector by tma, which is one copy instead of one for each panel: no matrix instruction reads it."""
        shape, room = self.emitter.shapes[tensor], ALIGNED // dtype.bytes
        anywhere = len(shape) > 1 and shape[-1] % room != 0 and extent + room <= BOX
        return Shifted(room) if anywhere else RowMajor()

    def _swizzled(self, option: Level, tensor: str, row: int, step: int, args: list[int]) -> Swizzled:
        """The swizzle of that width, or the widest that rows take: `row` bytes, of which `step` are read at a time."""
        if args and args[0] not in SWIZZLES:
            raise TcError(
                f"there is no swizzle of {args[0]} bytes", option.span, "write swizzle(128), swizzle(64) or swizzle(32)"
            )
        for width in args or SWIZZLES:
            if row % width == 0 and step % width == 0:
                return Swizzled(width)
        wanted = f"swizzle({args[0]})" if args else "swizzle"
        read = "" if row % min(args or SWIZZLES) else f", read {step} at a time"
        raise TcError(
            f"{wanted} does not fit {tensor}: a row of its tile has {row} bytes{read}",
            option.span,
            f"rows must be a multiple of {args[0] if args else SWIZZLES[-1]} bytes: take a larger tile along the last "
            "index, or a narrower swizzle",
        )
