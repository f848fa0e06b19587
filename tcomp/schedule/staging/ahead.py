"""Tiles that are packed ahead, beside the sum that reads the turn before.

    for k.1:                                        for k.1:
      W.packed = pack W[n, k] by ahead      -->       W.packed = pack W[n, k] by ahead          in the first turn only
      acc[m, k] += sum n: Y[m, n] * W.packed          acc[m, k] += sum n: Y[m, n] * W.packed
                                                        pack ahead W.packed of the next k.1      in pieces, another copy

The tile has two copies, which change places in each turn. That is sound where the kernel writes nothing of the tensor:
what the next turn packs is the same a turn earlier.

On vectors of fewer than 16 lanes such a tile is packed "by prefetch": measured, loops of 256-bit vectors have nothing
to spare for pieces. Its memory is named as one to prefetch in any case (`staging/prefetch.py`), for copies in which
the code generator finds no pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tcomp.dsl.ast import Expr, Name, accesses_in, names_in
from tcomp.dsl.errors import TcError
from tcomp.ir.rewrite import Body, map_bodies, map_expressions
from tcomp.ir.tile import Ahead, Buffer, Compute, Loop, Pack, Statement
from tcomp.ir.walk import computes
from tcomp.schedule.staging.prefetch import next_turn, substituted, turns_around

WIDE = 16
"""f32 lanes of vectors whose loops have slots to spare"""


def packed_ahead(
    tiles: Mapping[str, Buffer], phases: Sequence[tuple[Statement, ...]], lanes: int
) -> tuple[dict[str, Buffer], list[tuple[Statement, ...]]]:
    """The kernel with an `Ahead` for each pack "by ahead", and two copies of its tile; TcError where it cannot be.
    `lanes` are the f32 lanes of a vector."""
    written = {c.target.tensor for p in phases for c in computes(p)}
    tiles = dict(tiles)

    def turning(body: Body, around: tuple[Loop, ...]) -> Body:
        return _turning(body, turns_around(around), written, lanes >= WIDE, tiles)

    return tiles, [map_bodies(p, turning) for p in phases]


def _turning(body: Body, loops: tuple[Loop, ...], written: set[str], wide: bool, tiles: dict[str, Buffer]) -> Body:
    """A loop's body with an `Ahead` for each pack "by ahead". One without turns, or of a single row, as small sizes
    leave them, is an ordinary copy."""
    out = list(body)
    for i, pack in enumerate(body):
        if not isinstance(pack, Pack) or pack.by != "ahead":
            continue
        if not loops or len(pack.axes) < 2:
            out[i] = replace(pack, by="copy")
            continue
        at = next((i for i, c in enumerate(out) if _reads(c, pack.buffer)), None)
        reader = out[at] if at is not None else None
        _check(pack, reader, written)
        if not wide or not _in_lines(pack):
            out[i] = replace(pack, by="prefetch")
            continue
        assert at is not None and isinstance(reader, Compute)
        out[at] = replace(reader, ahead=_ahead(pack, next_turn(loops)))
        tiles[pack.buffer] = replace(tiles[pack.buffer], ring=2)
    return tuple(out)


def _check(pack: Pack, reader: Statement | None, written: set[str]) -> None:
    """Refuse what could change meanwhile, and what no single sum reads."""
    tensor, problem = pack.source.tensor, ""
    if tensor in written:
        problem = "this kernel writes it"
    elif not isinstance(reader, Compute) or reader.ahead is not None:
        problem = "its reader is in an inner loop, or packs another tensor ahead"
    if problem:
        raise TcError(f"'{tensor}' cannot be packed ahead: {problem}", pack.span, "write `by prefetch`, or nothing")


def _in_lines(pack: Pack) -> bool:
    """Whether the copy is one of rows or columns of a matrix."""
    return len(pack.axes) == 2 and pack.source.subscripts[-1] in [Name(a.name) for a in pack.axes]


def _reads(s: Statement, buffer: str) -> bool:
    return isinstance(s, Compute) and bool(s.reduced) and any(a.tensor == buffer for a in accesses_in(s.value))


def _ahead(pack: Pack, following: Mapping[str, Expr]) -> Ahead:
    """The pack over names of the next turn's values."""
    used = {n for e in (pack.source, *(x for a in pack.axes for x in (a.start, a.stop))) for n in names_in(e)}
    names = {v: f"next {v}" for v in sorted(used & following.keys())}
    renamed: dict[str, Expr] = {v: Name(n) for v, n in names.items()}
    later = map_expressions(pack, lambda e: substituted(e, renamed))
    return Ahead(later, tuple((n, v, following[v]) for v, n in names.items()))
