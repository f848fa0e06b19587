"""Where a GPU kernel's temporary tiles live: in registers where every thread only meets its own elements, else in
shared memory.

A tile can stay in registers when each access to it names one axis per dimension, bare, and all accesses share that
dimension's range out among the threads in the same way. `o[q, e]` of flash attention does; its weights `w[q, k]`,
written with k along the lanes and read by a sum over all k, do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tcomp.dsl.ast import Access, Name, Span, names_in
from tcomp.dsl.errors import TcError
from tcomp.instructions import IN_TENSOR_MEMORY
from tcomp.instructions.matching import ACROSS
from tcomp.ir.tile import Axis, Buffer, Compute, Fragment, Scope, Spread, Statement
from tcomp.ir.walk import accesses_of, computes
from tcomp.schedule.fold import sub
from tcomp.schedule.gpu.shared_layout import shared_layout

MAX_ELEMENTS = 224
"""elements per thread of one register tile; a thread has 255 registers"""


def assign_scopes(
    tiles: Mapping[str, Buffer], phases: Iterable[tuple[Statement, ...]], written: bool
) -> dict[str, Buffer]:
    """The tiles with SCRATCH replaced by REGISTERS or SHARED.

    A tile that fits registers in shape but not in size goes to shared memory where the schedule is the default
    one, and is a TcError where it was `written`. (Sums in tensor memory are looked at in `sum_panels.py`.)
    """
    uses: dict[str, list[tuple[Spread, ...] | None]] = {}
    spans: dict[str, Span] = {}
    operands: set[str] = set()
    collected: set[str] = set()
    for phase in phases:
        for c in computes(phase):
            axes = {a.name: a for a in c.axes}
            for access in accesses_of(c):
                tile = tiles.get(access.tensor)
                if tile is not None and tile.scope is Scope.SCRATCH:
                    uses.setdefault(tile.name, []).append(_spreads(access, _walked(c, access, axes), tile))
                    spans.setdefault(tile.name, c.span)
                    operands |= {tile.name} if c.instruction else set()
                    collected |= {tile.name} if c.instruction in IN_TENSOR_MEMORY and access is c.target else set()
    out: dict[str, Buffer] = {}
    for name, tile in tiles.items():
        if tile.scope is not Scope.SCRATCH:
            out[name] = tile
            continue
        found = uses.get(name, [])
        first = found[0] if found else ()
        private = first is not None and all(u == first for u in found)
        count = _elements(first, tile.shape) if first is not None else 0
        fits = count <= MAX_ELEMENTS or name in collected
        if private and not fits and written:
            result = name.partition(".sum")[0]
            raise TcError(
                f"each thread would hold {count} values of '{result}'; {MAX_ELEMENTS} fit its registers",
                spans[name],
                "divide its loops among more warps and lanes, or take smaller tiles",
            )
        if private and first is not None and fits:
            out[name] = replace(tile, scope=Scope.REGISTERS, layout=Fragment(first))
        else:
            out[name] = replace(
                tile, scope=Scope.SHARED, layout=shared_layout(tile, [None] if name in operands else found)
            )
    return out


def _walked(c: Compute, access: Access, axes: Mapping[str, Axis]) -> Mapping[str, Axis]:
    """The axes as an access walks them: a matrix instruction's left operand may be in registers, its k shared out as
    an accumulator's columns are; its right operand may not."""
    if not c.instruction or access is c.target:
        return axes
    names = {n for s in access.subscripts for n in names_in(s)}
    rows = {a.name for a in c.axes if a.spread is not None and a.spread.lane == "y" and a.name not in c.reduced}
    spread = ACROSS if names & rows else None
    return {n: replace(a, spread=spread) if n in c.reduced else a for n, a in axes.items()}


def _spreads(access: Access, axes: Mapping[str, Axis], tile: Buffer) -> tuple[Spread, ...] | None:
    """How each dimension of the access is shared out, or None when it is not a bare axis of the tile's range."""
    found: list[Spread] = []
    for s, size in zip(access.subscripts, tile.shape, strict=True):
        axis = next((a for n in sorted(names_in(s)) if (a := axes.get(n)) is not None), None)
        if axis is None or axis.block != size or s != sub(Name(axis.name), axis.start):
            return None
        if axis.spread is None:
            return None
        found.append(axis.spread)
    return tuple(found) if len(set(access.subscripts)) == len(found) else None


def elements_of(tile: Buffer) -> int:
    """Of a register tile, what each thread has at a time."""
    assert isinstance(tile.layout, Fragment)
    return _elements(tile.layout.spreads, (*tile.shape[:-1], tile.columns or tile.shape[-1]))


def _elements(spreads: tuple[Spread, ...], shape: tuple[int, ...]) -> int:
    n = 1
    for s, size in zip(spreads, shape, strict=True):
        n *= s.per_thread(size)
    return n
