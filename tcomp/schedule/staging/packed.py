"""Staged operands: which accesses a `stage` line packs, into what panels, in which loop.

    stage W in packed at k   -->   in the loop over k: W.packed = pack W[n, k]; the contraction reads W.packed

    stage X in cache at v    -->   nothing is copied: `prefetch.py` fetches what the next turn of the loop over v names

    stage X in packed at m by widening   -->   a pack where X is narrower than what is computed with; else X is read
                                               where it lies (by an instruction that takes it as it is stored, if its
                                               groups lie whole in memory)

The panel's width is the register tile along the packed index, so that the contraction reads it with unit stride; where
the copy transposes, whole register tiles that fill vectors. What a vector instruction reads (`use vdpbf16ps for acc`)
stays narrow, its summed index in groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tcomp.dsl.ast import Access, DType, Expr, Name, Reduction, Stage, accesses_in, names_in
from tcomp.dsl.errors import TcError
from tcomp.instructions.vector_matching import groups_lie_whole, vector_instruction
from tcomp.ir.tile import Axis, Buffer, Pack, Panels, Scope, Statement
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.normal import means, parts_of
from tcomp.schedule.tree.assignment import whole
from tcomp.schedule.tree.bounds import Env
from tcomp.schedule.tree.nest import JOINED, Leaf, LoopNode, grouped_index, leaf_uses, leaves_of, loops_below

if TYPE_CHECKING:
    from tcomp.schedule.tree.emit import Emitter

FAR = 4096
"""bytes between rows that meet in few sets of the first-level cache, and take a page each"""
TRANSPOSED = 4
"""lanes of the smallest registers that are transposed as blocks"""


def staged_accesses(name: str, leaf: Leaf, anywhere: bool = False, key: bool = False) -> list[Access]:
    """The accesses in a reduction's values (with `key` in its key too, and `anywhere` in any equation) that a `stage`
    line names; `QKV.1` means those with constant subscript 1."""
    value = leaf.equation.value
    if not isinstance(value, Reduction) and not anywhere:
        return []
    values = value.values if isinstance(value, Reduction) else (value,)
    if (anywhere or key) and isinstance(value, Reduction) and value.key is not None:
        values = (*values, value.key)
    return [a for e in values for a in accesses_in(e) if means(name, a)]


def check_stages(leaves: list[Leaf], plan: KernelPlan) -> None:
    """Every `stage` line must have something to stage: a tiled loop, and a reduction that reads the tensor, or, in
    cache, an equation that names it. A packed tensor must lie along a register tile, and a loop that fetches ahead must
    have turns. A tensor is staged once."""
    _check_once(plan)
    for stage in plan.stages:
        _check_loop(stage, plan)
        for name in stage.tensors:
            if stage.space == "cache":
                _check_named(stage, name, leaves)
                continue
            _check_read(stage, name, leaves)
            if stage.space == "packed":
                _check_along_tile(stage, name, leaves, plan)


def _check_once(plan: KernelPlan) -> None:
    """TcError for a tensor that two lines put in one place, or both in cache and in a packed tile."""
    seen: set[tuple[str, str]] = set()
    in_place = {n for s in plan.stages if s.by == "widening" for n in s.tensors}
    for s in plan.stages:
        for name in s.tensors:
            if (name, s.space) in seen:
                raise TcError(f"'{name}' is staged in {s.space} twice", s.span, "keep one line for it")
            if {(name, "cache"), (name, "packed")} <= seen | {(name, s.space)} and name not in in_place:
                message = f"'{name}' is packed, so nothing reads it where `in cache` would fetch it"
                raise TcError(message, s.span, "keep one of the two lines")
            seen.add((name, s.space))


def _check_loop(s: Stage, plan: KernelPlan) -> None:
    """TcError where the loop of a line has no tiles, or, in cache, none that is fetched while another is computed."""
    levels = [t for t in plan.sequence if t.index == s.at]
    if s.space == "cache" and s.by is not None:
        raise TcError("what is staged in cache is not copied", s.span, f"leave out `by {s.by}`")
    if not levels:
        raise TcError(
            f"nothing can be staged at '{s.at}': it has no tile level",
            s.span,
            f"tile it, e.g. {s.at} -> seq(64), or stage at another loop",
        )
    if s.space == "cache" and all(t.block is None for t in levels):
        raise TcError(
            f"nothing can be fetched ahead at '{s.at}': each thread has all its share in one turn",
            s.span,
            f"give the loop turns: {s.at} -> core(1), or {s.at} -> core / seq(16)",
        )


def _check_named(s: Stage, name: str, leaves: Sequence[Leaf]) -> None:
    """TcError for a tensor to be fetched into the cache that the loop neither reads nor writes."""
    inside = [leaf for leaf in leaves if s.at in leaf.domain]
    written = {t for leaf in inside for t in leaf.written}
    if name.partition(".")[0] not in written and not any(staged_accesses(name, leaf, True) for leaf in inside):
        message = f"'{name}' cannot be staged: no equation in the loop over {s.at} names it"
        raise TcError(message, s.span, "leave it out of this line")


def _check_read(s: Stage, name: str, leaves: Sequence[Leaf]) -> None:
    """TcError for a tensor to be copied into a tile from which nothing reads it. (Results leave through tiles, too.)"""
    leaving = {n for leaf in leaves for n in (*leaf.written, *parts_of(leaf.equation.targets))}
    if s.by == "tma" and {name, name + JOINED} & leaving:
        return
    anywhere = s.space in ("registers", "shared")
    if not any(staged_accesses(name, leaf, anywhere) for leaf in leaves):
        raise TcError(
            f"'{name}' cannot be staged: no {'equation' if anywhere else 'reduction'} of this kernel reads it",
            s.span,
            "leave it out of this line",
        )


def _check_along_tile(s: Stage, name: str, leaves: Sequence[Leaf], plan: KernelPlan) -> None:
    """TcError for a tensor to be packed along which there is no register tile that would read panels."""
    if any(_along_tile(name, leaf, plan) for leaf in leaves):
        return
    own = {i for leaf in leaves for i in _own(name, leaf)}
    raise TcError(
        f"'{name}' cannot be packed: no register tile runs along it",
        s.span,
        f"give {' or '.join(sorted(own))} an unroll or vec level, or leave '{name}' out of this line"
        if own
        else "leave it out of this line",
    )


def check_only_read(stage: Stage, tensor: str, leaves: Iterable[Leaf]) -> None:
    """TcError for a tensor that an equation of the loop it is to be staged in writes."""
    writers = [leaf for leaf in leaves if tensor in leaf.written]
    if not writers:
        return
    hint = "stage a tensor that this loop only reads"
    w = writers[0]
    if stage.by == "tma" and len(writers) == 1 and not (w.reduced or w.equation.accumulate or w.readers):
        hint = f"add: inline {tensor}, so that it leaves by way of a tile, and what reads it here computes it again"
    raise TcError(f"{tensor} cannot be staged at {stage.at}: an equation in that loop writes it", stage.span, hint)


def _own(name: str, leaf: Leaf) -> set[str]:
    """The parallel indices of a reduction, or of a monoid's fields, that are subscripts of a tensor it reads."""
    written = {s.id for w in leaf.writes() for s in w.subscripts if isinstance(s, Name)}
    accesses = staged_accesses(name, leaf)
    return {i for i in written | set(leaf.parallel) if any(Name(i) in a.subscripts for a in accesses)}


def _along_tile(name: str, leaf: Leaf, plan: KernelPlan) -> bool:
    """Whether the schedule gives one of these indices a register tile (by sizes it may still be a single value)."""
    if leaf_uses(plan, leaf, leaf.writes()[-1]) is not None:
        return True
    own = _own(name, leaf)
    maps = [m for i, m in plan.loops.items() if i in own] + [m for (i, _), m in plan.special.items() if i in own]
    return any(m.vec or m.unroll > 1 for m in maps)


def computed(dtype: DType) -> DType:
    """What a packed tile holds: narrow reals are widened once, when packed, and not at every use."""
    return DType.F32 if dtype.is_float and dtype.bytes < 4 else dtype


def needed_stages(stages: Sequence[Stage], dtypes: Mapping[str, DType]) -> tuple[Stage, ...]:
    """The `stage` lines without the tensors that are staged `by widening` and are wide."""
    out = []
    for s in stages:
        if s.by == "widening":
            s = replace(s, tensors=tuple(n for n in s.tensors if _narrow(dtypes.get(n.partition(".")[0]))))
        if s.tensors:
            out.append(s)
    return tuple(out)


def _narrow(dtype: DType | None) -> bool:
    return dtype is not None and computed(dtype) is not dtype


class Staging:
    """Emits the `Pack`s of one kernel and remembers what each access was replaced by."""

    def __init__(self, emitter: Emitter) -> None:
        self.emitter = emitter
        self.staged: dict[tuple[int, Access], tuple[str, tuple[Expr | None, ...]]] = {}

    def stage(self, node: LoopNode, env: Env) -> list[Statement]:
        """`Pack`s of the operands staged in this loop (its innermost tile level only)."""
        index = node.level.index
        if any(isinstance(c, LoopNode) and c.level.index == index for c in loops_below(node)):
            return []
        out: list[Statement] = []
        for s in self.emitter.plan.stages:
            if s.at == index and s.space == "packed":
                for name in s.tensors:
                    out += self._stage(s, name, node, env)
        return out

    def _stage(self, stage: Stage, name: str, node: LoopNode, env: Env) -> list[Statement]:
        candidates: list[tuple[Leaf, Access, str, int, tuple[str, int]]] = []
        for leaf in leaves_of(node):
            for a in staged_accesses(name, leaf):
                target, parallel = self._target(leaf, a)
                tile = self.emitter.register_tile(whole(leaf, target, parallel), env)
                grouped = self._groups(leaf, a)
                if stage.by == "widening" and self._stays(a, grouped, tile.vector):
                    continue
                own = [i for i in parallel if Name(i) in a.subscripts]
                along = [i for i in own if i == tile.vector or tile.unroll.get(i, 1) > 1] or (own if grouped[0] else [])
                if not along:
                    continue
                i = tile.vector if tile.vector in along else along[0]
                width = tile.unroll[i] * (tile.lanes if i == tile.vector else 1)
                if tile.vector in leaf.reduced and Name(tile.vector) in a.subscripts:
                    i, width = tile.vector, self._row(tile.vector, tile.lanes, env)
                if width < self.emitter.range(i, env).block and a.subscripts[-1] != Name(i):
                    width = math.lcm(width, TRANSPOSED)
                candidates.append((leaf, a, i, width, grouped))
        # Where only some accesses of the tensor run across rows, those are the ones that need packing, and the others
        # whose rows lie far apart.
        crossing = [c for c in candidates if c[1].subscripts[-1] != Name(c[2])]
        out: list[Statement] = []
        made: dict[tuple[Access, str, int, tuple[str, int]], tuple[str, tuple[Expr | None, ...]]] = {}
        chosen = [c for c in candidates if not crossing or c in crossing or c[4][0] or self._far(c[1], c[2], env)]
        for leaf, a, i, width, grouped in chosen:
            check_only_read(stage, a.tensor, leaves_of(node))
            key = (a, i, width, grouped)
            if key not in made:
                made[key], pack = self._pack(stage, a, i, width, grouped, env)
                out.append(pack)
            self.staged[(id(leaf), a)] = made[key]
        return out

    def _row(self, index: str, lanes: int, env: Env) -> int:
        """How much of a row that vectors run along lies together: what other products read at once, or all of it."""
        m = self.emitter.plan.loops.get(index)
        if m is not None and m.unroll > 1:
            return m.unroll * lanes
        return math.ceil(self.emitter.range(index, env).block / lanes) * lanes

    def _far(self, a: Access, along: str, env: Env) -> bool:
        """Do the rows along an index of which a tile has several lie far apart?"""
        shape, size = self.emitter.shapes[a.tensor], self.emitter.dtypes[a.tensor].bytes
        pitches = [
            math.prod(shape[d + 1 :]) * size
            for d, s in enumerate(a.subscripts)
            if isinstance(s, Name) and s.id in self.emitter.extents and s.id != along
            if self.emitter.range(s.id, env).block > 1
        ]
        return bool(pitches) and min(pitches) >= FAR

    def _target(self, leaf: Leaf, a: Access) -> tuple[Access, tuple[str, ...]]:
        """What the sum that reads an access writes, and its parallel indices: of a monoid each field is a sum of its
        own, over its own indices."""
        value, writes = leaf.equation.value, leaf.writes()
        if isinstance(value, Reduction) and value.key is not None:
            for write, v in zip(writes[1:], value.values, strict=True):
                if a in accesses_in(v):
                    return write, self.emitter.axes_of(write)
        return writes[-1], leaf.parallel

    def _groups(self, leaf: Leaf, a: Access) -> tuple[str, int]:
        """The summed index that an access is read in groups of, by the instruction that its equation uses, and how many
        of it; ("", 1) without one."""
        use = leaf_uses(self.emitter.plan, leaf, leaf.writes()[-1])
        found = vector_instruction(use.instruction) if use is not None else None
        if found is None or Name(grouped_index(self.emitter.plan, leaf)) not in a.subscripts:
            return "", 1
        return grouped_index(self.emitter.plan, leaf), found.group

    def _stays(self, a: Access, grouped: tuple[str, int], vector: str | None) -> bool:
        """Does an instruction that reads an operand as it is stored find its groups whole in memory?"""
        index, group = grouped
        if not index or any(vector in names_in(s) for s in a.subscripts):
            return False
        stored = Buffer(a.tensor, self.emitter.dtypes[a.tensor], self.emitter.shapes[a.tensor], Scope.OPERAND)
        even = self.emitter.extents[index] == stored.shape[-1]
        return even and groups_lie_whole(stored, a, index, group)

    def _pack(
        self, stage: Stage, a: Access, along: str, width: int, grouped: tuple[str, int], env: Env
    ) -> tuple[tuple[str, tuple[Expr | None, ...]], Pack]:
        axes: list[Axis] = []
        origins: list[Expr | None] = []
        dims: list[int] = []
        panel = 0
        index, group = grouped
        groups = -1
        for s in a.subscripts:
            if isinstance(s, Name) and s.id in self.emitter.extents:
                r = self.emitter.range(s.id, env)
                if r.block > 1 or s.id in (along, index) or s.id not in env:
                    if s.id == along:
                        panel = len(dims)
                    if s.id == index:
                        groups = len(dims)
                    axes.append(Axis(s.id, r.start, r.stop, r.block))
                    dims.append(r.block)
                    origins.append(r.start)
                    continue
            elif names_in(s) & set(self.emitter.extents):
                raise TcError(
                    f"{a.tensor} cannot be staged: its subscript is not a plain index",
                    stage.span,
                    "stage tensors whose subscripts are plain indices",
                )
            origins.append(None)
        name = f"{a.tensor}.packed{len(self.emitter.tiles)}"
        stored = self.emitter.dtypes[a.tensor]
        dtype = stored if index else computed(stored)
        layout = Panels(panel, width, group, groups)
        self.emitter.tiles[name] = Buffer(name, dtype, tuple(dims), Scope.SCRATCH, layout)
        source = self.emitter.point(a, env)
        assert isinstance(source, Access)
        return (name, tuple(origins)), Pack(name, tuple(axes), source, stage.by or "copy", stage.span)
