"""Staged operands: which accesses a `stage` line packs, into what panels, in which loop.

    stage W in packed at k   -->   in the loop over k: W.packed = pack W[n, k]; the contraction reads W.packed

    stage X in cache at v    -->   nothing is copied: `prefetch.py` fetches what the next turn of the loop over v reads

    stage X in packed at m by widening   -->   a pack where X is narrower than what is computed with; else X is read
                                               where it lies

The panel's width is the register tile along the packed index, so that the contraction reads it with unit stride; where
the copy transposes, whole register tiles that fill vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tcomp.dsl.ast import Access, DType, Expr, Name, Num, Reduction, Stage, names_in
from tcomp.dsl.errors import TcError
from tcomp.ir.tile import Axis, Buffer, Pack, Panels, Scope, Statement
from tcomp.schedule.bounds import Env
from tcomp.schedule.fold import reads
from tcomp.schedule.nest import JOINED, Leaf, LoopNode, loops_below
from tcomp.schedule.resolve import KernelPlan

if TYPE_CHECKING:
    from tcomp.schedule.emit import Emitter

TRANSPOSED = 4
"""lanes of the smallest registers that are transposed as blocks"""


def staged_accesses(name: str, leaf: Leaf, anywhere: bool = False) -> list[Access]:
    """The accesses in a reduction's values (or, `anywhere`, in its key and in any equation) that a `stage` line names;
    `QKV.1` means those with constant subscript 1."""
    value = leaf.equation.value
    if not isinstance(value, Reduction) and not anywhere:
        return []
    tensor, _, part = name.partition(".")
    found = []
    values = value.values if isinstance(value, Reduction) else (value,)
    if anywhere and isinstance(value, Reduction) and value.key is not None:
        values = (*values, value.key)
    for e in values:
        for a in reads(e):
            constants = [s.value for s in a.subscripts if isinstance(s, Num)]
            if a.tensor == tensor and (not part or (constants and constants[0] == int(part))):
                found.append(a)
    return found


def check_stages(leaves: list[Leaf], plan: KernelPlan, text: str) -> None:
    """Every `stage` line must have something to stage: a tiled loop, and a reduction that reads the tensor."""
    for s in plan.stages:
        if s.space == "cache" and s.by is not None:
            raise TcError("what is staged in cache is not copied", s.span, text, f"leave out `by {s.by}`")
        if all(t.index != s.at for t in plan.sequence):
            raise TcError(
                f"nothing can be staged at '{s.at}': it has no tile level",
                s.span,
                text,
                f"tile it, e.g. {s.at} -> seq(64), or stage at another loop",
            )
        for name in s.tensors:
            through = s.by == "tma" and any({name, name + JOINED} & set(leaf.written) for leaf in leaves)
            anywhere = s.space == "registers" or s.by == "tma"
            sums = [x for x in leaves if isinstance(x.equation.value, Reduction)] if s.space == "cache" else leaves
            if not through and not any(staged_accesses(name, leaf, anywhere or sums is not leaves) for leaf in sums):
                raise TcError(
                    f"'{name}' cannot be staged: no {'equation' if anywhere else 'reduction'} of this kernel reads it",
                    s.span,
                    text,
                    "leave it out of this line",
                )


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
        candidates: list[tuple[Leaf, Access, str, int]] = []
        for leaf in node.leaves():
            for a in staged_accesses(name, leaf):
                tile = self.emitter.register_tile(leaf, leaf.writes()[-1], env, leaf.parallel, leaf.reduced)
                along = [
                    i
                    for i in leaf.parallel
                    if Name(i) in a.subscripts and (i == tile.vector or tile.unroll.get(i, 1) > 1)
                ]
                if not along:
                    continue
                i = tile.vector if tile.vector in along else along[0]
                width = tile.unroll[i] * (tile.lanes if i == tile.vector else 1)
                if width < self.emitter.range(i, env).block and a.subscripts[-1] != Name(i):
                    width = math.lcm(width, TRANSPOSED)
                candidates.append((leaf, a, i, width))
        # Where only some accesses of the tensor run across rows, those are the ones that need packing.
        crossing = [c for c in candidates if c[1].subscripts[-1] != Name(c[2])]
        out: list[Statement] = []
        made: dict[tuple[Access, str, int], tuple[str, tuple[Expr | None, ...]]] = {}
        for leaf, a, i, width in crossing or candidates:
            if any(a.tensor in w.written for w in node.leaves()):
                raise TcError(
                    f"{a.tensor} cannot be staged at {stage.at}: an equation in that loop writes it",
                    stage.span,
                    self.emitter.text,
                    "stage a tensor that this loop only reads",
                )
            key = (a, i, width)
            if key not in made:
                made[key], pack = self._pack(stage, a, i, width, env)
                out.append(pack)
            self.staged[(id(leaf), a)] = made[key]
        return out

    def _pack(
        self, stage: Stage, a: Access, along: str, width: int, env: Env
    ) -> tuple[tuple[str, tuple[Expr | None, ...]], Pack]:
        axes: list[Axis] = []
        origins: list[Expr | None] = []
        dims: list[int] = []
        panel = 0
        for s in a.subscripts:
            if isinstance(s, Name) and s.id in self.emitter.extents:
                r = self.emitter.range(s.id, env)
                if r.block > 1 or s.id == along or s.id not in env:
                    if s.id == along:
                        panel = len(dims)
                    axes.append(Axis(s.id, r.start, r.stop, r.block))
                    dims.append(r.block)
                    origins.append(r.start)
                    continue
            elif names_in(s) & set(self.emitter.extents):
                raise TcError(
                    f"{a.tensor} cannot be staged: its subscript is not a plain index",
                    stage.span,
                    self.emitter.text,
                    "stage tensors whose subscripts are plain indices",
                )
            origins.append(None)
        name = f"{a.tensor}.packed{len(self.emitter.tiles)}"
        dtype = computed(self.emitter.dtypes[a.tensor])
        self.emitter.tiles[name] = Buffer(name, dtype, tuple(dims), Scope.SCRATCH, Panels(panel, width))
        source = self.emitter.point(a, env)
        assert isinstance(source, Access)
        return (name, tuple(origins)), Pack(name, tuple(axes), source, stage.by or "copy", stage.span)
