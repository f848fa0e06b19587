"""Results written through shared memory: a tile that threads fill, and that the copy engine carries to the tensor.

    stage Y in shared at n by tma        Y[m, n] = acc[m, n]   -->   Y.out[m, n] = acc[m, n];  unpack Y.out to Y[m, n]

The write is in the background and in whole lines; what lies outside of the tensor is dropped. f32 results that are
added to what is there are added by the copy engine: an element has one block, which adds to it once, so runs repeat
bitwise. The engine would round narrower sums twice; those read the old value. Of a sum that blocks divide it is the
parts that leave so; they are joined along rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tcomp.dsl.ast import Access, Binary, DType, Name, Num, Stage
from tcomp.dsl.errors import TcError
from tcomp.ir.tile import Buffer, Compute, Layout, Loop, RowMajor, Scope, Statement, Swizzled, Unpack
from tcomp.schedule.fold import sub
from tcomp.schedule.split_sum import PARTIAL

WIDTHS = (128, 64, 32)


def unpacked(
    phases: Iterable[tuple[Statement, ...]],
    stages: Iterable[Stage],
    written: frozenset[str],
    tiles: dict[str, Buffer],
    tensors: dict[str, Buffer],
    parts: Mapping[str, tuple[str, int, Num]],
    text: str,
) -> list[tuple[Statement, ...]]:
    """The phases with results (or parts of one, dQKV.1) that `stage` lines name written through tiles, which `tiles`
    gains. `tensors` are those in device memory, `parts` the parts that are written (`normal.parts_of`)."""
    by_tma = [(n, s) for s in stages if s.by == "tma" and s.space == "shared" for n in s.tensors]
    whole = {n + PARTIAL if n + PARTIAL in written else n: s for n, s in by_tma if n in written}
    some = [(*parts[n], s) for n, s in by_tma if n in parts and n not in whole]
    if not whole and not some:
        return list(phases)

    def stage_of(a: Access) -> Stage | None:
        own = (s for tensor, at, value, s in some if tensor == a.tensor and a.subscripts[at] == value)
        return whole.get(a.tensor) or next(own, None)

    def rewrite(s: Statement) -> tuple[Statement, ...]:
        if isinstance(s, Loop):
            return (replace(s, body=tuple(x for inner in s.body for x in rewrite(inner))),)
        if not isinstance(s, Compute) or (stage := stage_of(s.target)) is None:
            return (s,)
        return _through(s, stage, tiles, tensors, text)

    return [tuple(x for s in phase for x in rewrite(s)) for phase in phases]


def _through(
    s: Compute, stage: Stage, tiles: dict[str, Buffer], tensors: dict[str, Buffer], text: str
) -> tuple[Statement, ...]:
    name = s.target.tensor
    axes = {a.name: a for a in s.axes if a.name not in s.reduced}
    walked = tuple(axes[x.id] for x in s.target.subscripts if isinstance(x, Name) and x.id in axes)
    plain = not s.atomic and s.distinct and s.guard is None and len(walked) == len(axes)
    if not plain or (s.accumulate and s.reducer != "sum"):
        raise TcError(
            f"{name} cannot be written through shared memory: it is scattered, guarded or a sum over tiles",
            stage.span,
            text,
            "stage a result that is written once, at plain indices",
        )
    dtype = tensors[name].dtype
    shape = tuple(a.block for a in walked)
    row = shape[-1] * dtype.bytes if shape else 0
    layout: Layout = next((Swizzled(w) for w in WIDTHS if row % w == 0), RowMajor())
    tile = f"{name}.out{len(tiles)}"
    tiles[tile] = Buffer(tile, dtype, shape, Scope.SHARED, layout)
    inside = Access(tile, tuple(sub(Name(a.name), a.start) for a in walked))
    whole = tuple(replace(a, spread=None, unroll=1, lanes=1) for a in walked)
    adds = s.accumulate and dtype is DType.F32
    value = Binary("+", s.target, s.value) if s.accumulate and not adds else s.value
    filled = replace(s, target=inside, value=value, accumulate=False)
    return filled, Unpack(tile, whole, s.target, stage.span, adds)
