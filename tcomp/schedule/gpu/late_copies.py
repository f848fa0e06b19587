"""Tensor copies that a tile's end needs, asked for behind the loop that its products need.

    pack b.shared from b[n]            acc = 0
    acc = 0                     -->    pipe k.0: ...
    pipe k.0: ...                      pack b.shared from b[n]
    Y = acc + b.shared                 Y = acc + b.shared

A producer asks for copies in the order of the text, and waits where their place is not free: that of b until the tile
before has ended, of a block with sides the one before of the same side. Standing first, b would hold up what the loop
copies, which has places free, and each tile would begin by waiting for memory. (On an H100 9% of the samples of a
product with GELU stood there, though most of them would have waited for the other side anyway: 148.5 us became 145.7.)
Threads wait for b where they read it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.ir.rewrite import Body, map_bodies
from tcomp.ir.tile import Loop, Pack, Statement
from tcomp.ir.walk import computes, reads_of


def late_copies(phases: Sequence[tuple[Statement, ...]]) -> list[tuple[Statement, ...]]:
    """The phases with the Packs by tma that no pipe loop needs behind the pipe loops of their body."""
    return [map_bodies(phase, _late) for phase in phases]


def _late(body: Body, around: tuple[Loop, ...]) -> list[Statement]:
    out = list(body)
    for p in [s for s in out if isinstance(s, Pack) and s.by == "tma"] if _of_blocks(around) else ():
        own = out.index(p)
        first = next((i for i, s in enumerate(out) if i > own and p.buffer in read_by((s,))), own)
        if any(isinstance(s, Loop) and s.level == "pipe" for s in out[own:first]):
            del out[own]
            out.insert(first - 1, p)
    return out


def _of_blocks(around: tuple[Loop, ...]) -> bool:
    """Is a body around which these loops are that of a block?"""
    return all(loop.level == "grid" for loop in around)


def read_by(body: Sequence[Statement]) -> set[str]:
    """What Computes read."""
    return {a.tensor for c in computes(body) for a in reads_of(c)}
