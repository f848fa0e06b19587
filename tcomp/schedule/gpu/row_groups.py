"""Products whose rows go through the same registers in turns, a group of 64 for each warpgroup at a time.

    pipe g.0:                              -->   pipe g.0:
      part = X W           m: 256 rows             part = X W           m: the first 128 rows
      acc += part u        m: 256 rows             acc += part u
                                                   part = X W           m: the other 128 rows
                                                   acc += part u

Where the statements right behind a product are all that reads its result, row by row, each group's can be read before
the next is made: two warpgroups so have tiles of 256 rows, with the registers of `acc` and of half of `part`. While
one of them does what follows its product the other multiplies. What is loaded into registers between the two
(`late_loads.py`) is loaded once for all groups, where it is the same for all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tcomp.dsl.ast import Access, Binary, Expr, Name, Num, bottom_up
from tcomp.ir.register_loads import loads_registers
from tcomp.ir.rewrite import Body, map_bodies, map_expressions
from tcomp.ir.tile import Axis, Buffer, Compute, Fragment, Scope, Statement
from tcomp.ir.walk import accesses_of, computes, reads_of
from tcomp.schedule.fold import end_of_part, fold, sub

Phases = list[Body]


def in_row_groups(tiles: Mapping[str, Buffer], phases: Phases) -> tuple[dict[str, Buffer], Phases]:
    """The tiles with those of such products cut to one group of rows, and the phases that use them so."""
    met: dict[str, int] = {}
    for phase in phases:
        for c in computes(phase):
            for name in {a.tensor for a in accesses_of(c)}:
                met[name] = met.get(name, 0) + 1
    cut: dict[str, Buffer] = {}
    grouped = [map_bodies(phase, lambda body, _: _grouped(body, tiles, met, cut)) for phase in phases]
    return {**tiles, **cut}, grouped


def _grouped(
    body: Body, tiles: Mapping[str, Buffer], met: Mapping[str, int], cut: dict[str, Buffer]
) -> list[Statement]:
    out: list[Statement] = []
    rest = list(body)
    while rest:
        s = rest.pop(0)
        rows = _rows(s, tiles) if isinstance(s, Compute) else None
        loads = _loads(rows, rest, tiles) if rows is not None else []
        readers = _readers(s, rows, rest[len(loads) :]) if isinstance(s, Compute) and rows is not None else []
        if not isinstance(s, Compute) or rows is None or len(readers) + 1 != met[s.target.tensor]:
            out.append(s)
            continue
        del rest[: len(loads) + len(readers)]
        size, tile = _group(rows), tiles[s.target.tensor]
        place = s.target.subscripts.index(_in_tile(rows, rows.start))
        cut[tile.name] = replace(tile, shape=tuple(size if d == place else n for d, n in enumerate(tile.shape)))
        for start in range(0, rows.block, size):
            out.append(_narrowed(s, rows, start, size, tile.name))
            out += loads if start == 0 else []
            out += [_narrowed(x, rows, start, size, tile.name) for x in readers]
    return out


def _loads(rows: Axis, behind: Sequence[Statement], tiles: Mapping[str, Buffer]) -> list[Compute]:
    """The loads right behind a product of what is the same for all its rows."""
    found: list[Compute] = []
    for s in behind:
        if not isinstance(s, Compute) or not loads_registers(s, tiles) or rows in s.axes:
            break
        found.append(s)
    return found


def _rows(c: Compute, tiles: Mapping[str, Buffer]) -> Axis | None:
    """The rows of a product that warpgroups take in several whole groups; None where it does not."""
    tile = tiles.get(c.target.tensor)
    if not c.instruction.startswith("wgmma") or c.accumulate or c.late or tile is None:
        return None
    if tile.scope is not Scope.REGISTERS or not isinstance(tile.layout, Fragment):
        return None
    if any(a.tensor in tiles and tiles[a.tensor].scope is Scope.REGISTERS for a in reads_of(c)):
        return None  # (its registers are those of all rows)
    rows = next((a for a in c.axes if a.spread is not None and a.spread.warp and a.name not in c.reduced), None)
    if rows is None or rows.block <= _group(rows) or rows.block % _group(rows):
        return None
    return rows if _in_tile(rows, rows.start) in c.target.subscripts else None


def _in_tile(rows: Axis, start: Expr) -> Expr:
    """A row as a tile that begins at row `start` counts it."""
    return sub(Name(rows.name), start)


def _group(rows: Axis) -> int:
    """Rows that all warps together take in one turn."""
    assert rows.spread is not None
    return rows.spread.warps * rows.spread.warp_tile


def _readers(product: Compute, rows: Axis, behind: Sequence[Statement]) -> list[Compute]:
    """The maps right behind a product that read its result, each row of it where they write that row themselves, and
    nothing that another row of them writes."""
    name, found = product.target.tensor, list[Compute]()
    for s in behind:
        if not isinstance(s, Compute) or s.reduced or s.instruction or s.only is not None or s.turns is not None:
            break
        if rows not in s.axes or {a.subscripts for a in reads_of(s) if a.tensor == name} != {product.target.subscripts}:
            break
        found.append(s)
    written = {s.target.tensor: s.target for s in found}
    elsewhere = [a for s in found for a in accesses_of(s) if a.tensor in written and a != written[a.tensor]]
    return found if not elsewhere and written.keys().isdisjoint(a.tensor for a in accesses_of(product)) else []


def _narrowed(s: Compute, rows: Axis, start: int, size: int, name: str) -> Compute:
    """The statement for `size` of the rows, from number `start` on, with the tile `name` of as many rows."""
    first = fold(Binary("+", rows.start, Num(start)))
    end = end_of_part(rows.start, rows.block, rows.stop, fold(Binary("+", rows.start, Num(start + size))))
    before, after = _in_tile(rows, rows.start), _in_tile(rows, first)

    def moved(e: Expr) -> Expr:
        if not isinstance(e, Access) or e.tensor != name:
            return e
        return replace(e, subscripts=tuple(after if x == before else x for x in e.subscripts))

    axes = tuple(replace(a, start=first, stop=end, block=size) if a.name == rows.name else a for a in s.axes)
    return replace(map_expressions(s, lambda e: bottom_up(e, moved)), axes=axes)
