"""Loads of tiles in registers from tiles in shared memory (`stage X in registers at k` of what is staged there too)."""

from __future__ import annotations

from collections.abc import Mapping

from tcomp.ir.tile import Buffer, Compute, Scope, Statement
from tcomp.ir.walk import reads_of


def loads_registers(s: Statement, tiles: Mapping[str, Buffer]) -> bool:
    """Does the statement fill a tile in registers from one tile in shared memory, point by point?"""
    if not isinstance(s, Compute) or s.reduced or s.instruction or s.accumulate or s.only is not None:
        return False
    target = tiles.get(s.target.tensor)
    sources = [tiles.get(a.tensor) for a in reads_of(s)]
    shared = len(sources) == 1 and sources[0] is not None and sources[0].scope is Scope.SHARED
    return shared and target is not None and target.scope is Scope.REGISTERS
