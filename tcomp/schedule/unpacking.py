"""Results written through shared memory: a tile that threads fill, and that the copy engine carries to the tensor.

    stage Y in shared at n by tma        Y[m, n] = acc[m, n]   -->   Y.out[m, n] = acc[m, n];  unpack Y.out to Y[m, n]

The write is in the background and in whole lines; what lies outside of the tensor is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tcomp.dsl.ast import Access, Name, Stage
from tcomp.dsl.errors import TcError
from tcomp.ir.tile import Buffer, Compute, Layout, Loop, RowMajor, Scope, Statement, Swizzled, Unpack
from tcomp.schedule.fold import sub

WIDTHS = (128, 64, 32)


def unpacked(
    phases: Iterable[tuple[Statement, ...]],
    stages: Iterable[Stage],
    written: frozenset[str],
    tiles: dict[str, Buffer],
    operands: dict[str, Buffer],
    text: str,
) -> list[tuple[Statement, ...]]:
    """The phases with results that `stage` lines name written through tiles, which `tiles` gains."""
    chosen = {n: s for s in stages if s.by == "tma" and s.space == "shared" for n in s.tensors if n in written}
    if not chosen:
        return list(phases)

    def rewrite(s: Statement) -> tuple[Statement, ...]:
        if isinstance(s, Loop):
            return (replace(s, body=tuple(x for inner in s.body for x in rewrite(inner))),)
        if not isinstance(s, Compute) or s.target.tensor not in chosen:
            return (s,)
        return _through(s, chosen[s.target.tensor], tiles, operands, text)

    return [tuple(x for s in phase for x in rewrite(s)) for phase in phases]


def _through(
    s: Compute, stage: Stage, tiles: dict[str, Buffer], operands: dict[str, Buffer], text: str
) -> tuple[Statement, ...]:
    name = s.target.tensor
    axes = {a.name: a for a in s.axes if a.name not in s.reduced}
    walked = tuple(axes[x.id] for x in s.target.subscripts if isinstance(x, Name) and x.id in axes)
    if s.accumulate or s.atomic or not s.distinct or s.guard is not None or len(walked) != len(axes):
        raise TcError(
            f"{name} cannot be written through shared memory: it is added to, scattered or guarded",
            stage.span,
            text,
            "stage a result that is assigned once, at plain indices",
        )
    dtype = operands[name].dtype
    shape = tuple(a.block for a in walked)
    row = shape[-1] * dtype.bytes if shape else 0
    layout: Layout = next((Swizzled(w) for w in WIDTHS if row % w == 0), RowMajor())
    tile = f"{name}.out{len(tiles)}"
    tiles[tile] = Buffer(tile, dtype, shape, Scope.SHARED, layout)
    inside = Access(tile, tuple(sub(Name(a.name), a.start) for a in walked))
    plain = tuple(replace(a, spread=None, unroll=1, lanes=1) for a in walked)
    return replace(s, target=inside), Unpack(tile, plain, s.target, stage.span)
