"""Temporaries that a vector instruction multiplies (vdpbf16ps): each is rounded to a tile of its own before the sum.

    w[q, k] = ...                                      w[q, k] = ...
    o[q, e] += sum k: bf16(w[q, k]) * V[k, e]    -->   w.rounded = pack w[q, k]            bf16, pairs of k side by side
                                                       o[q, e] += sum k: w.rounded[q, k] * V[k, e]

A temporary stays f32 for those that read it as it is; where two sums take it in groups of different indices (ds of
attention's backward pass), each has its own tile. One whose rows run along the summed index stays row by row, so that a
group is one word where it lies; otherwise groups go side by side along its rows, whole rows at a time. Rows whose
groups are whole are rounded by the map that makes the temporary, from its registers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tcomp.dsl.ast import Access, Binary, Call, DType, Expr, Name, Num, names_in
from tcomp.instructions.matching import factors
from tcomp.instructions.vector import VectorInstruction
from tcomp.instructions.vector_matching import vector_instruction
from tcomp.ir.rewrite import Body, map_bodies
from tcomp.ir.tile import Axis, Buffer, Compute, Pack, Panels, RowMajor, Scope, Statement
from tcomp.ir.walk import computes
from tcomp.schedule.fold import fold, sub

ROUNDED = ".rounded"
"""behind the name of a temporary's tile as an instruction reads it, with the summed index"""
Phases = list[Body]


def with_rounded_operands(tiles: Mapping[str, Buffer], phases: Phases) -> tuple[dict[str, Buffer], Phases]:
    """The tiles with those that instructions read, and the phases that fill and read them."""
    out = dict(tiles)
    return out, [map_bodies(phase, lambda body, _: _packed(body, out)) for phase in phases]


def _packed(body: Body, tiles: dict[str, Buffer]) -> list[Statement]:
    found: list[Statement] = []
    for s in body:
        used = vector_instruction(s.instruction) if isinstance(s, Compute) else None
        if isinstance(s, Compute) and used is not None:
            packs, s = _operands(s, used, tiles)
            found += [p for p in packs if not _filled(p, found) and not _beside_its_map(p, found, tiles)]
        found.append(s)
    return found


def _filled(pack: Pack, before: list[Statement]) -> bool:
    """Has a statement before made the same pack, of what nobody has written since?"""
    made = [i for i, s in enumerate(before) if s == pack or (isinstance(s, Compute) and _rounds(s, pack))]
    return bool(made) and all(c.target.tensor != pack.source.tensor for c in computes(before[made[-1] + 1 :]))


def _rounds(c: Compute, pack: Pack) -> bool:
    return any(m.target.tensor == pack.buffer for m in c.epilogue)


def _beside_its_map(pack: Pack, before: list[Statement], tiles: Mapping[str, Buffer]) -> bool:
    """Have the map that writes a temporary, if it is the last statement that does, write its rounded rows as well;
    False where none can."""
    at = [i for i, s in enumerate(before) if any(c.target.tensor == pack.source.tensor for c in computes([s]))]
    made = before[at[-1]] if at else None
    if not isinstance(made, Compute) or made.reduced or made.accumulate or made.guard is not None:
        return False
    if made.region is not None or made.target != pack.source or not _whole_rows(pack, made, tiles[pack.buffer]):
        return False
    copy = Compute(replace(pack.source, tensor=pack.buffer), pack.source, made.axes, span=pack.span)
    before[at[-1]] = replace(made, epilogue=(*made.epilogue, copy))
    return True


def _whole_rows(pack: Pack, made: Compute, tile: Buffer) -> bool:
    """Are a pack's rows those of the map, vector by vector, and their groups whole?"""
    row = pack.axes[-1]
    walked = {a.name: (a.start, a.stop, a.block) for a in made.axes}
    whole = row.stop == fold(Binary("+", row.start, Num(row.block))) and row.block == tile.shape[-1]
    same = walked == {a.name: (a.start, a.stop, a.block) for a in pack.axes}
    vector = any(a.lanes > 1 and a.name == row.name for a in made.axes)
    return whole and same and vector and tile.layout == RowMajor()


def _operands(c: Compute, used: VectorInstruction, tiles: dict[str, Buffer]) -> tuple[list[Pack], Compute]:
    """The packs of a Compute's temporaries, and the Compute that reads their tiles."""
    pair = factors(c.value)
    summed = [a.name for a in c.axes if a.name in c.reduced]
    if pair is None or len(summed) != 1:
        return [], c
    packs: list[Pack] = []
    value: list[Expr] = []
    for f, dtype in zip(pair, (used.a, used.b), strict=True):
        made = _rounded(c, f.access, dtype, summed[0], used.group, tiles) if f.cast is dtype else None
        if made is None:
            value.append(f.access if f.cast is None else Call(f.cast.value, (f.access,), f.access.span))
            continue
        packs.append(made[0])
        value.append(made[1])
    return packs, replace(c, value=Binary("*", value[0], value[1])) if packs else c


def _rounded(
    c: Compute, access: Access, dtype: DType, k: str, group: int, tiles: dict[str, Buffer]
) -> tuple[Pack, Access] | None:
    """How a temporary gets into a tile in groups of k, and the access to that tile; None for what is no temporary, or
    is read elsewhere than at the points of the sum."""
    tile = tiles.get(access.tensor)
    if tile is None or tile.scope is not Scope.SCRATCH or tile.layout != RowMajor():
        return None
    axes: list[Axis] = []
    for s in access.subscripts:
        own = [a for a in c.axes if a.name in names_in(s)]
        if len(own) != 1 or s != sub(Name(own[0].name), own[0].start):
            return None
        axes.append(replace(own[0], unroll=1, lanes=1))
    extents = tile.shape
    if all(a.name != k for a in axes):  # one value of k, which the tile has no axis for
        axes += [replace(a, unroll=1, lanes=1) for a in c.axes if a.name == k]
        extents = (*extents, axes[-1].block)
    if len({a.name for a in axes}) != len(axes):
        return None
    at, last = [a.name for a in axes].index(k), len(axes) - 1
    shape = tuple(-(-n // group) * group if i == at == last else n for i, n in enumerate(extents))
    layout = RowMajor() if at == last else Panels(last, extents[last], group, at)
    name = f"{tile.name}{ROUNDED}.{k}"
    tiles[name] = Buffer(name, dtype, shape, tile.scope, layout)
    target = Access(name, tuple(sub(Name(a.name), a.start) for a in axes), access.span)
    return Pack(name, tuple(axes), access, span=c.span), target
