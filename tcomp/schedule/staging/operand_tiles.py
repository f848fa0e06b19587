"""Tiles that threads compute and matrix instructions read in place (wgmma, tcgen05): swizzled, in the order of writing.

    ds[q, k] in an accumulator whose columns are q    -->    ds[k, q] in shared memory, swizzled

A thread holds pairs of neighbouring columns of an accumulator; with those along the tile's rows it stores 32 bits at a
time, and a warp meets every bank once. The instruction reads a tile of 16-bit elements along either index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tcomp.dsl.ast import Access, Expr, bottom_up, names_in
from tcomp.instructions import IN_PLACE
from tcomp.ir.rewrite import Body, map_expressions, map_leaves
from tcomp.ir.tile import Buffer, Compute, Scope, Spread, Swizzled
from tcomp.ir.walk import accesses_of, computes

Phases = list[Body]


def laid_out(tiles: Mapping[str, Buffer], phases: Phases) -> tuple[dict[str, Buffer], Phases]:
    """The tiles with those laid out, and the phases that access them so."""
    every = [c for phase in phases for c in computes(phase)]
    written = {c.target.tensor for c in every if not c.instruction}
    read = {a.tensor for c in every if c.instruction in IN_PLACE for a in accesses_of(c) if a != c.target}
    out = dict(tiles)
    turned: set[str] = set()
    for name in sorted(written & read):
        tile = tiles[name]
        if tile.scope is not Scope.SHARED or len(tile.shape) != 2 or isinstance(tile.layout, Swizzled):
            continue
        if all(_across(c) for c in every if c.target.tensor == name):
            turned.add(name)
            tile = replace(tile, shape=tile.shape[::-1])
        row = tile.shape[-1] * tile.dtype.bytes
        out[name] = replace(tile, layout=Swizzled.of_row(row) or tile.layout)
    return out, [_turned(phase, turned) for phase in phases] if turned else phases


def _across(c: Compute) -> bool:
    """Does the Compute hold pairs along its target's first dimension?"""
    axes = {a.name: a.spread or Spread() for a in c.axes}
    spreads = [next((axes[n] for n in sorted(names_in(s)) if n in axes), Spread()) for s in c.target.subscripts]
    return [(s.lane, s.grain) for s in spreads] == [("x", 2), ("y", 1)]


def _turned(phase: Body, names: set[str]) -> Body:
    """The phase with the two subscripts of these tiles exchanged."""

    def turn(e: Expr) -> Expr:
        return replace(e, subscripts=e.subscripts[::-1]) if isinstance(e, Access) and e.tensor in names else e

    return map_leaves(phase, lambda s: [map_expressions(s, lambda e: bottom_up(e, turn))])
