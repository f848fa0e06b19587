"""The words in memory that say whose turn it is to add to a tile: one for each tile of a tensor, or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcomp.dsl.ast import Access, Binary, DType, Expr, Name, Num
from tcomp.ir.tile import Axis, Buffer, Scope
from tcomp.schedule.fold import fold


@dataclass(frozen=True)
class TileWords:
    """All words of a tensor, and the (first) one of the tile at hand."""

    buffer: Buffer
    place: Access


def tile_words(
    name: str, subscripts: Sequence[Expr], extents: Sequence[int], walked: Sequence[Axis], each: int = 0
) -> TileWords:
    """The words `name`, `each` so many (0: one) for a tile over the axes `walked` of a tensor with these subscripts and
    extents."""
    axes = {a.name: a for a in walked}
    place: list[Expr] = []
    count: list[int] = []
    for x, extent in zip(subscripts, extents, strict=True):
        a = axes.get(x.id) if isinstance(x, Name) else None
        place.append(x if a is None else fold(Binary("//", a.start, Num(a.block))))
        count.append(extent if a is None else -(-extent // a.block))
    if each:
        count[-1], place[-1] = count[-1] * each, fold(Binary("*", place[-1], Num(each)))
    return TileWords(Buffer(name, DType.I32, tuple(count), Scope.WORDS), Access(name, tuple(place)))
