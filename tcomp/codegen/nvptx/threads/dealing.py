"""How many results of each thread are dealt out to be joined over all warps of a block: each by a few threads.

    every thread: its parts to shared memory                  [part][point], 128 bits at a time
    barrier
    H threads for each point: every H-th part joined, what they have joined by shuffles; the results' places are those
    of the first parts, which nobody else reads
    barrier
    every thread: its results from shared memory

Where each thread joins all it needs itself (`join.py`), a column's result is joined as often as the block has threads
for its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.codegen.nvptx.threads.plan import Sharing, exchange_lanes
from tcomp.ir.blocks import ThreadShape

MANY = 64
"""parts that a thread would read itself from which on results are dealt out"""
VECTOR = 4
"""results of 32 bits in one access"""
LANES = 32


@dataclass(frozen=True)
class Dealing:
    """`each` results of a thread, of which `own` lanes of a warp have different ones. So many `parts` of each of the
    block's `points` are joined by `helpers` threads, lanes of a warp that has `neighbours` points side by side."""

    each: int
    own: int
    parts: int
    helpers: int

    @property
    def points(self) -> int:
        return self.each * self.own

    @property
    def neighbours(self) -> int:
        return LANES // self.helpers

    @property
    def pitch(self) -> int:
        """From part to part, whole vectors, so that the lanes of a warp meet in no bank."""
        return self.points + (self.neighbours if self.helpers > 1 else 0)

    @property
    def bytes(self) -> int:
        return 4 * self.parts * self.pitch


def dealing(each: int, sharing: Sharing, shape: ThreadShape) -> Dealing | None:
    """How results of 32 bits are dealt out; None where threads join their own: they are few, warps differ in theirs, or
    threads have equal parts, of which one counts."""
    if each % VECTOR or each * shape.warps < MANY or any(d.startswith("warp") for d in sharing.parallel):
        return None
    if sharing.unused - sharing.reduced:
        return None
    own = exchange_lanes(sharing, shape)
    if own * VECTOR < LANES:  # (eight lanes write at a time: to one part, else they meet)
        return None
    parts, helpers = shape.warps * (LANES // own), 1
    while 2 * helpers * each * own <= shape.threads and 2 * helpers <= LANES // VECTOR and parts % (2 * helpers) == 0:
        helpers *= 2
    return Dealing(each, own, parts, helpers)
