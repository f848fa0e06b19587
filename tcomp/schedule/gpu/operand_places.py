"""Results that leave from the place of an operand: where a result's panels are computed point by point from a tile that
the copy engine has filled, they are written over it, and the room of one of the two is free for more stages.

    panel n.panel in n.0 .. n.0 + 192 step 64 stages 2:      -->   the same with stages 3, a copy for each panel:
      Y.out[m, n] = acc[m, n] + R.shared[m, n]                     Y.out is panel by panel inside R.shared
      unpack Y.out to Y[m, n]

Each thread reads an element of the operand before its warp writes that of the result there. The next tile of the
operand may come when the copies of the result have read the place (`copies/tensor_tile.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tcomp.dsl.ast import Binary, Name, Num, accesses_in
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import Buffer, Compute, Loop, Pack, Scope, Spread, Statement, Swizzled, Unpack
from tcomp.ir.walk import grid_nest
from tcomp.schedule.fold import sub
from tcomp.schedule.gpu.late_copies import read_by

Phases = Sequence[tuple[Statement, ...]]


def places(phases: Phases, tiles: Mapping[str, Buffer], shape: ThreadShape) -> dict[str, tuple[str, int]]:
    """Of the panels of results (by their tile) that can lie where an operand lies: its tile, and how many there are."""
    found: dict[str, tuple[str, int]] = {}
    for phase in phases:
        _, body = grid_nest(phase)
        for i, loop in enumerate(body):
            if not isinstance(loop, Loop) or loop.level != "panel" or len(loop.body) != 2:
                continue
            result, unpack = loop.body
            assert isinstance(result, Compute) and isinstance(unpack, Unpack)
            later = read_by(body[i + 1 :])
            for p in body[:i]:
                if not isinstance(p, Pack) or p.by != "tma" or p.buffer in later or unpack.turns is not None:
                    continue
                if _fits(p, loop, result, tiles, shape):
                    found[unpack.buffer] = p.buffer, _panels(loop)
                    break
    return found


def _panels(loop: Loop) -> int:
    assert isinstance(loop.stop, Binary) and isinstance(loop.stop.right, Num)
    return int(loop.stop.right.value) // loop.step


def _fits(p: Pack, loop: Loop, c: Compute, tiles: Mapping[str, Buffer], shape: ThreadShape) -> bool:
    """Are the result's panels those of the operand's tile, and does a warp write where it alone reads?"""
    operand, result = tiles[p.buffer], tiles[c.target.tensor]
    alike = (
        operand.scope is Scope.SHARED
        and isinstance(operand.layout, Swizzled)
        and (operand.dtype, operand.layout) == (result.dtype, result.layout)
        and operand.shape == (*result.shape[:-1], result.shape[-1] * _panels(loop))
        and operand.ring == 1
        and p.axes[-1].start == loop.start
    )
    last = c.axes[-1].name
    point = (*c.target.subscripts[:-1], sub(Name(last), loop.start))
    read = [a for a in accesses_in(c.value) if a.tensor == p.buffer]
    threads = 1
    for a in c.axes:
        s = a.spread or Spread()
        threads *= s.lanes * s.warps
    plain = not c.reduced and not c.accumulate and c.guard is None and c.only is None and c.distinct
    return alike and plain and bool(read) and all(a.subscripts == point for a in read) and threads == shape.threads
