"""Tiles that are packed ahead, beside the sum that reads the turn before.

    for k.1:                                        for k.1:
      W.packed = pack W[n, k] by ahead      -->       W.packed = pack W[n, k] by ahead          in the first turn only
      acc[m, k] += sum n: Y[m, n] * W.packed          acc[m, k] += sum n: Y[m, n] * W.packed
                                                        pack ahead W.packed of the next k.1      in pieces, another copy

The tile has two copies, which change places in each turn. That is sound where the kernel writes nothing of the tensor:
what the next turn packs is the same a turn earlier.

On vectors of fewer than 16 lanes such a tile is packed "by prefetch": measured, loops of 256-bit vectors have nothing
to spare for pieces. Its memory is named as one to prefetch in any case (`schedule/prefetch.py`), for copies in which
the code generator finds no pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tcomp.dsl.ast import Name, accesses_in, names_in
from tcomp.dsl.errors import TcError
from tcomp.ir.tile import Ahead, Axis, Buffer, Compute, Loop, Pack, Statement
from tcomp.ir.walk import computes
from tcomp.schedule.prefetch import next_turn, substituted

WIDE = 16
"""f32 lanes of vectors whose loops have slots to spare"""


def packed_ahead(
    tiles: Mapping[str, Buffer], phases: Sequence[tuple[Statement, ...]], lanes: int
) -> tuple[dict[str, Buffer], list[tuple[Statement, ...]]]:
    """The kernel with an `Ahead` for each pack "by ahead", and two copies of its tile; TcError where it cannot be.
    `lanes` are the f32 lanes of a vector."""
    written = {c.target.tensor for p in phases for c in computes(p)}
    pass_ = _Pass(dict(tiles), written, lanes >= WIDE)
    done = [tuple(pass_.turning([pass_.statement(s, ()) for s in p], ())) for p in phases]
    return pass_.tiles, done


class _Pass:
    def __init__(self, tiles: dict[str, Buffer], written: set[str], wide: bool) -> None:
        self.tiles, self.written, self.wide = tiles, written, wide

    def statement(self, s: Statement, around: tuple[Loop, ...]) -> Statement:
        if not isinstance(s, Loop):
            return s
        loops = () if s.chunked else (*around, s)
        body = [self.statement(inner, loops) for inner in s.body]
        return replace(s, body=tuple(self.turning(body, loops)))

    def turning(self, body: list[Statement], loops: tuple[Loop, ...]) -> list[Statement]:
        """A loop's body with an `Ahead` for each pack "by ahead". One without turns, or of a single row, as small
        sizes leave them, is an ordinary copy."""
        for i, pack in enumerate(body):
            if not isinstance(pack, Pack) or pack.by != "ahead":
                continue
            if not loops or len(pack.axes) < 2:
                body[i] = replace(pack, by="copy")
                continue
            at = next((i for i, c in enumerate(body) if _reads(c, pack.buffer)), None)
            reader = body[at] if at is not None else None
            self._check(pack, reader)
            if not self.wide or not _in_lines(pack):
                body[i] = replace(pack, by="prefetch")
                continue
            assert at is not None and isinstance(reader, Compute)
            body[at] = replace(reader, ahead=_ahead(pack, next_turn(loops)))
            self.tiles[pack.buffer] = replace(self.tiles[pack.buffer], ring=2)
        return body

    def _check(self, pack: Pack, reader: Statement | None) -> None:
        """Refuse what could change meanwhile, and what no single sum reads."""
        tensor = pack.source.tensor
        problem = ""
        if tensor in self.written:
            problem = "this kernel writes it"
        elif not isinstance(reader, Compute) or reader.ahead is not None:
            problem = "its reader is in an inner loop, or packs another tensor ahead"
        if problem:
            message = f"'{tensor}' cannot be packed ahead: {problem}"
            raise TcError(message, pack.span, "write `by prefetch`, or nothing")


def _in_lines(pack: Pack) -> bool:
    """Whether the copy is one of rows or columns of a matrix."""
    return len(pack.axes) == 2 and pack.source.subscripts[-1] in [Name(a.name) for a in pack.axes]


def _reads(s: Statement, buffer: str) -> bool:
    return isinstance(s, Compute) and bool(s.reduced) and any(a.tensor == buffer for a in accesses_in(s.value))


def _ahead(pack: Pack, following: Mapping[str, object]) -> Ahead:
    """The pack over names of the next turn's values."""
    used: set[str] = set()
    for e in (*pack.source.subscripts, *(x for a in pack.axes for x in (a.start, a.stop))):
        used |= names_in(e) & set(following)
    names = {v: f"next {v}" for v in sorted(used)}
    renamed = {v: Name(n) for v, n in names.items()}
    axes: tuple[Axis, ...] = tuple(
        replace(a, start=substituted(a.start, renamed), stop=substituted(a.stop, renamed)) for a in pack.axes
    )
    source = substituted(pack.source, renamed)
    later = replace(pack, axes=axes, source=source)  # type: ignore[arg-type]
    return Ahead(later, tuple((n, v, following[v]) for v, n in names.items()))  # type: ignore[misc]
