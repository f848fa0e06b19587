"""Results that leave panel by panel: a block's need little shared memory, and go while the next are made ready.

    Y.out[m, n] = acc[m, n]         -->   panel n.panel in n.0 .. n.0 + 256 step 64 stages 2:
    unpack Y.out to Y[m, n]                 Y.out[m, n] = acc[m, n]          n in n.panel .. n.panel + 64
                                            unpack Y.out to Y[m, n], by 2 groups

A panel of a swizzled tile is 128 bytes wide. Each warpgroup hands over its own rows, where it has whole ones: the
others go on multiplying. Results that follow each other take turns panel by panel: while one's panel leaves, the
other's is computed, and less memory is enough. What a turn of a loop adds to memory leaves whole, beside the next turn.
Blocks that add the parts of a sum in turns (`joining/turn_sums.py`) take them panel by panel. Panels that are computed
from an operand's tile may take its place (`operand_places.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tcomp.dsl.ast import Binary, Expr, Name, Num, accesses_in
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.panels import placed
from tcomp.ir.rewrite import Body, map_bodies
from tcomp.ir.tile import Axis, Buffer, Compute, Loop, Scope, Spread, Statement, Swizzled, Turns, Unpack
from tcomp.schedule.fold import end_of_part, fold, sub
from tcomp.schedule.gpu.operand_places import places

Phases = list[Body]

COPIES = 2
"""of a panel: one is written while the copy engine reads the other"""
WARPGROUP = 4
"""warps"""
RESERVED = 1024
"""bytes of shared memory left for mbarriers"""


def in_panels(
    tiles: Mapping[str, Buffer], phases: Phases, shape: ThreadShape | None, room: int, sides: int = 1
) -> tuple[dict[str, Buffer], Phases]:
    """The tiles with those of results cut to a panel, and the phases that fill and deliver them so. `room` is the
    shared memory of a block in bytes; each of its `sides` has panels of its own."""
    if shape is None:
        return dict(tiles), phases
    found: dict[str, Buffer] = {}
    cut = [map_bodies(phase, lambda b, around: _cut(b, around, tiles, shape, found)) for phase in phases]
    if not found:
        return dict(tiles), phases
    inside = places(cut, {**tiles, **found}, shape)
    others = sum(
        t.bytes * t.ring * (1 if t.ring > 1 else sides) for n, t in tiles.items() if n not in found and _shared(t)
    )
    own = sum(t.bytes for n, t in found.items() if _shared(t) and n not in inside)
    copies = COPIES if others + own * COPIES * sides + RESERVED <= room else 1
    panels = {n: replace(t, ring=copies) if _shared(t) else t for n, t in found.items()}
    panels |= {n: replace(found[n], ring=count, inside=operand) for n, (operand, count) in inside.items()}
    return {**tiles, **panels}, [map_bodies(phase, lambda b, _: _with_copies(b, panels)) for phase in cut]


def _cut(
    body: Body, around: tuple[Loop, ...], tiles: Mapping[str, Buffer], shape: ThreadShape, found: dict[str, Buffer]
) -> list[Statement]:
    """The statements of the innermost loop `around` with results cut to panels."""
    turns = any(loop.level != "grid" for loop in around)
    out: list[Statement] = []
    for s in body:
        before = out[-1] if out else None
        leaves = isinstance(s, Unpack) and not (s.add and (turns or not _counted(s, tiles)))
        if leaves and isinstance(s, Unpack) and isinstance(before, Compute) and _fits(before, s, tiles[s.buffer]):
            loop = _panelled(before, s, tiles, shape, found)
            both = _together(out[-2], loop) if len(out) > 1 else None
            out[len(out) - 1 - (both is not None) :] = [both or loop]
        else:
            out.append(s)
    return out


def _counted(s: Unpack, tiles: Mapping[str, Buffer]) -> bool:
    """Is there an order of blocks for each panel, if there is one at all: words of the kernel's own?"""
    return s.turns is None or s.turns.flag.tensor in tiles


def _together(first: Statement, second: Loop) -> Loop | None:
    """Two panel loops as one, where the later reads nothing that the earlier delivers and the same warps hand over."""
    if not isinstance(first, Loop) or first.level != "panel":
        return None
    if (first.start, first.stop, first.step) != (second.start, second.stop, second.step):
        return None
    delivered = [s for s in first.body if isinstance(s, Unpack)]
    read = {a.tensor for s in second.body if isinstance(s, Compute) for a in accesses_in(s.value)}
    groups = {s.groups for s in (*first.body, *second.body) if isinstance(s, Unpack)}
    if len(groups) > 1 or read & {s.target.tensor for s in delivered}:
        return None
    renamed = tuple(placed(s, second.variable, Name(first.variable)) for s in second.body)
    return replace(first, body=(*first.body, *renamed))


def _columns(tile: Buffer) -> int:
    """Of a panel."""
    assert isinstance(tile.layout, Swizzled)
    return tile.layout.width // tile.dtype.bytes


def _fits(c: Compute, u: Unpack, tile: Buffer) -> bool:
    """Is the tile written as a whole, several panels wide, and each thread's values of a panel are known?"""
    if c.target.tensor != u.buffer or c.reduced or c.guard is not None or not isinstance(tile.layout, Swizzled):
        return False
    last = c.axes[-1]
    spread, columns = last.spread or Spread(), _columns(tile)
    plain = last.name == u.axes[-1].name and c.target.subscripts[-1] == sub(Name(last.name), last.start)
    whole = columns % (spread.lanes * spread.grain) == 0 and not spread.warp and bool(spread.lane)
    return plain and whole and tile.shape[-1] > columns and tile.shape[-1] == last.block


def _panelled(c: Compute, u: Unpack, tiles: Mapping[str, Buffer], shape: ThreadShape, found: dict[str, Buffer]) -> Loop:
    tile = tiles[u.buffer]
    columns, last = _columns(tile), c.axes[-1]
    variable = f"{last.name}.{tile.name}"
    start = Name(variable)
    stop = end_of_part(last.start, last.block, last.stop, Binary("+", start, Num(columns)))

    # The copies of all panels go by one tensor map, which ends where the tensor does.
    end_of_copies = last.stop if isinstance(last.start, Num) else stop

    def narrowed(a: Axis, stop: Expr) -> Axis:
        return replace(a, start=start, stop=stop, block=columns) if a.name == last.name else a

    target = replace(c.target, subscripts=(*c.target.subscripts[:-1], Binary("-", Name(last.name), start)))
    found[tile.name] = replace(tile, shape=(*tile.shape[:-1], columns))
    groups = _groups(c, tile, shape)
    body = (
        replace(c, axes=tuple(narrowed(a, stop) for a in c.axes), target=target),
        replace(
            u,
            axes=tuple(narrowed(a, end_of_copies) for a in u.axes),
            groups=groups,
            turns=None if u.turns is None else _by_panel(u.turns, tiles, found, tile, variable, groups),
        ),
    )
    return Loop(variable, last.start, Binary("+", last.start, Num(last.block)), columns, "panel", body, span=u.span)


def _by_panel(
    turns: Turns, tiles: Mapping[str, Buffer], found: dict[str, Buffer], tile: Buffer, variable: str, groups: int
) -> Turns:
    """A word for each panel, and for each group of warps that delivers rows of its own: parts follow each other that
    closely."""
    words, columns = tiles[turns.flag.tensor], _columns(tile)
    across = words.shape[-1] * (tile.shape[-1] // columns) * groups
    found[words.name] = replace(words, shape=(*words.shape[:-1], across))
    place = fold(Binary("*", Binary("//", Name(variable), Num(columns)), Num(groups)))
    return replace(turns, flag=replace(turns.flag, subscripts=(*turns.flag.subscripts[:-1], place)))


def _groups(c: Compute, tile: Buffer, shape: ThreadShape) -> int:
    """Warpgroups, where each writes whole rows that lie together; else 1: all threads write as one."""
    rows = c.axes[0].spread or Spread()
    count = shape.warps // WARPGROUP
    together = rows.warp == "y" and rows.warps == shape.warps and rows.warps * rows.warp_tile == tile.shape[0]
    plane = len(tile.shape) == 2 and isinstance(tile.layout, Swizzled)
    even = shape.warps % WARPGROUP == 0 and count > 0 and (tile.shape[0] // max(1, count)) % 8 == 0
    return count if together and plane and even else 1


def _shared(t: Buffer) -> bool:
    return t.scope is Scope.SHARED


def _with_copies(body: Body, panels: Mapping[str, Buffer]) -> Body:
    """The body with panel loops that know how many copies of their tiles there are."""

    def stages(loop: Loop) -> int:
        own = [panels[u.buffer].ring for u in loop.body if isinstance(u, Unpack) and loop.level == "panel"]
        return own[0] if own else loop.stages

    return tuple(replace(s, stages=stages(s)) if isinstance(s, Loop) else s for s in body)
