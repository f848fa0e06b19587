"""Sums in tensor memory come to registers panel by panel, so that a warpgroup may have more columns than registers.

    Y[m, n] = acc[m, n] * 0.5    -->    panel n.acc in n.0 .. n.0 + 256 step 64:
                                          Y[m, n] = acc[m, n] * 0.5           n in n.acc .. n.acc + 64

Panels of results that leave by the copy engine (`result_panels.py`) are panels of the sum, too. Others are made here,
where the whole sum would take too many registers. A sum that something reads otherwise (row sums of it, a statement in
an inner loop) comes whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from tcomp.dsl.ast import Binary, Name, Num, Span, accesses_in, names_in
from tcomp.dsl.errors import TcError
from tcomp.instructions import IN_TENSOR_MEMORY
from tcomp.ir.panels import placed
from tcomp.ir.rewrite import Body, map_bodies
from tcomp.ir.tile import Axis, Buffer, Compute, Loop, Scope, Statement
from tcomp.ir.walk import computes, reads_of
from tcomp.schedule.fold import end_of_part
from tcomp.schedule.gpu.scopes import MAX_ELEMENTS, elements_of

Phases = Sequence[Body]
COLUMNS = 64
"""of the panels that are made here, at most"""
AT_ONCE = 128
"""elements per thread of a sum that comes whole where no panels are written"""
STEP = 16
"""columns that a panel is a multiple of"""


def sums_in_panels(tiles: Mapping[str, Buffer], phases: Phases) -> tuple[dict[str, Buffer], list[Body]]:
    """The tiles, of which sums know how many of their columns are in registers at a time, and the phases that read them
    so. TcError where a sum has more values for each thread than there are registers."""
    sums = {  # (a sum that is itself a result is no tile: code generation says how to make it one)
        c.target.tensor: c.span
        for phase in phases
        for c in computes(phase)
        if c.instruction in IN_TENSOR_MEMORY and (t := tiles.get(c.target.tensor)) and t.scope is Scope.REGISTERS
    }
    if not sums:
        return dict(tiles), list(phases)
    wide = {n for n in sums if elements_of(tiles[n]) > AT_ONCE}
    cut = [map_bodies(phase, lambda b, _: _joined([_cut(s, _summed(b, wide), tiles) for s in b])) for phase in phases]
    return {**tiles, **{n: _checked(tiles[n], _columns(n, cut, tiles), at) for n, at in sums.items()}}, cut


def _checked(tile: Buffer, columns: int, at: Span) -> Buffer:
    found = replace(tile, columns=columns)
    if elements_of(found) <= MAX_ELEMENTS:
        return found
    name = tile.name.partition(".sum")[0]
    raise TcError(
        f"each thread would hold {elements_of(found)} values of '{name}'; {MAX_ELEMENTS} fit its registers",
        at,
        "divide its loops among more warps and lanes, or take smaller tiles"
        + (" (a sum that is only read element by element comes from tensor memory by columns)" if not columns else ""),
    )


def _cut(s: Statement, sums: set[str], tiles: Mapping[str, Buffer]) -> Statement:
    """The statement, in a panel loop where it reads one of these sums element by element."""
    read = [a for a in accesses_in(s.value) if a.tensor in sums] if isinstance(s, Compute) and not s.instruction else []
    if not isinstance(s, Compute) or not read or s.turns is not None:
        return s
    target = tiles.get(s.target.tensor)
    if target is not None and target.scope is Scope.REGISTERS:
        return s
    across = {n for a in read for n in names_in(a.subscripts[-1])} & {a.name for a in s.axes} - set(s.reduced)
    own = [a for a in s.axes if a.name in across]
    if len(own) != 1 or any(not names_in(a.subscripts[-1]) & across for a in read):
        return s
    (axis,) = own
    step = max((n for n in range(STEP, COLUMNS + 1, STEP) if axis.block % n == 0), default=0)
    if not step or not isinstance(axis.start, Name | Num):
        return s
    variable = f"{axis.name}.{read[0].tensor}"
    start = Name(variable)
    stop = end_of_part(axis.start, axis.block, axis.stop, Binary("+", start, Num(step)))
    axes = tuple(replace(a, start=start, stop=stop, block=step) if a is axis else a for a in s.axes)
    end = Binary("+", axis.start, Num(axis.block))
    return Loop(variable, axis.start, end, step, "panel", (replace(s, axes=axes),), span=s.span)


def _joined(body: Sequence[Statement]) -> list[Statement]:
    """Neighbouring panel loops over the same columns as one, where the later one reads nothing that the earlier
    writes."""
    out: list[Statement] = []
    for s in body:
        before = out[-1] if out else None
        if _made_here(s) and _made_here(before) and isinstance(s, Loop) and isinstance(before, Loop):
            read = {a.tensor for c in computes(s.body) for a in reads_of(c)}
            same = (s.start, s.stop, s.step) == (before.start, before.stop, before.step)
            if same and not read & {c.target.tensor for c in computes(before.body)}:
                renamed = tuple(placed(c, s.variable, Name(before.variable)) for c in s.body)
                out[-1] = replace(before, body=(*before.body, *renamed))
                continue
        out.append(s)
    return out


def _made_here(s: Statement | None) -> bool:
    return isinstance(s, Loop) and s.level == "panel" and all(isinstance(x, Compute) for x in s.body)


def _columns(name: str, phases: Phases, tiles: Mapping[str, Buffer]) -> int:
    """The columns of the widest panel that reads a sum; 0 where something else reads it."""
    widest: list[int] = []

    def look(body: Body, around: tuple[Loop, ...]) -> Sequence[Statement]:
        panel = bool(around) and around[-1].level == "panel"
        product = any(isinstance(s, Loop) and s.level == "pipe" and _sums(name, s) for s in around)
        for s in body:
            if isinstance(s, Compute) and not product and name in {a.tensor for a in reads_of(s)}:
                widest.append(_width(s, name) if panel else tiles[name].shape[-1])
        return body

    for phase in phases:
        map_bodies(phase, look)
    found = max(widest, default=0)
    return found if found < tiles[name].shape[-1] and _beside(name, phases) else 0


def _sums(name: str, loop: Loop) -> bool:
    return any(isinstance(s, Compute) and s.target.tensor == name and s.instruction for s in loop.body)


def _summed(body: Body, names: Collection[str]) -> set[str]:
    """Those of the sums whose pipe loop stands in a body."""
    return {n for n in names if any(isinstance(s, Loop) and s.level == "pipe" and _sums(n, s) for s in body)}


def _beside(name: str, phases: Phases) -> bool:
    """Do all panels that read a sum stand in the body of its pipe loop?"""
    found: list[bool] = []

    def look(body: Body, _: tuple[Loop, ...]) -> Sequence[Statement]:
        panels = (s for s in body if isinstance(s, Loop) and s.level == "panel")
        if any(name in {a.tensor for a in reads_of(c)} for s in panels for c in computes(s.body)):
            found.append(bool(_summed(body, {name})))
        return body

    for phase in phases:
        map_bodies(phase, look)
    return all(found)


def _width(c: Compute, name: str) -> int:
    """The columns of a sum that a Compute reads."""
    axes: dict[str, Axis] = {a.name: a for a in c.axes}
    names = {n for a in reads_of(c) if a.tensor == name for n in names_in(a.subscripts[-1])}
    return max(axes[n].block for n in names if n in axes)
