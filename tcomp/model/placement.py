"""Offsets for buffers with known live ranges, in as little memory as possible.

Takes blocks (bytes, first and last launch) and gives an aligned offset to each, so that blocks alive at the
same time never overlap. Some may have their places already: the others go around them. The problem is dynamic
storage allocation (NP-hard); the answer here is greedy placement in several orders, then a few rounds in which
the blocks that stick out of the best placement go first. It stops as soon as the lower bound, the most bytes
alive at one launch, is reached. Every choice is deterministic, so the same problem always has the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
ROUNDS = 48
"""rounds of moving the highest blocks to the front of the order"""

WALLED_SLACK = 256
"""Between fixed blocks the lower bound is hardly ever reached: a placement is good enough at this part above it"""

Ints = NDArray[np.int64]


def aligned(n: int) -> int:
    """`n` rounded up to the alignment of the arena."""
    return -(-n // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Block:
    """A buffer alive from launch `first` to launch `last`, both inclusive."""

    bytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Fixed:
    """A block that has its place, `offset` bytes from the start of the region."""

    offset: int
    block: Block


@dataclass(frozen=True, slots=True)
class Placement:
    """`offsets[i]` is that of block i; `bytes` the size of the region, fixed blocks included; `lower_bound` the most
    bytes (not rounded to the alignment) alive at one launch."""

    offsets: tuple[int, ...]
    bytes: int
    lower_bound: int


def live_bytes(blocks: Sequence[Block]) -> Ints:
    """Bytes alive at each launch."""
    if not blocks:
        return np.zeros(1, np.int64)
    change = np.zeros(max(b.last for b in blocks) + 2, np.int64)
    for b in blocks:
        change[b.first] += b.bytes
        change[b.last + 1] -= b.bytes
    return np.cumsum(change)[:-1]


def place(blocks: Sequence[Block], fixed: Sequence[Fixed] = ()) -> Placement:
    """Offsets for the blocks, none of them where something `fixed` is alive. The same problem is solved once per
    process."""
    return place_cached(tuple(blocks), tuple(fixed))


@lru_cache(maxsize=64)
def place_cached(blocks: tuple[Block, ...], fixed: tuple[Fixed, ...] = ()) -> Placement:
    """`place` of what can be hashed."""
    floor = max((aligned(f.offset + f.block.bytes) for f in fixed), default=0)
    there = [f.block for f in fixed]
    raw = int(live_bytes([*blocks, *there]).max())
    if not blocks:
        return Placement((), floor, raw)
    size = np.array([aligned(b.bytes) for b in blocks], np.int64)
    first = np.array([b.first for b in blocks], np.int64)
    last = np.array([b.last for b in blocks], np.int64)
    bound = max(floor, int(live_bytes([*(Block(aligned(b.bytes), b.first, b.last) for b in blocks), *there]).max()))
    walls = _walls(fixed)
    enough = bound + (bound // WALLED_SLACK if fixed else 0)
    life = last - first + 1
    orders = (
        np.lexsort((first, -size)),  # largest first
        np.lexsort((-size, -life)),  # longest first
        np.lexsort((-life, first)),  # as they are born, the longest-lived deepest
        np.lexsort((-size, first)),
        np.lexsort((first, -size * life)),  # most area first
        np.lexsort((-life, -last)),  # from the end backward
    )
    best: tuple[int, Ints, Ints] | None = None
    for order in orders:
        for tightest in (False, True):
            offsets = _greedy(order, size, first, last, tightest, walls)
            top = max(floor, int((offsets + size).max()))
            if best is None or top < best[0]:
                best = top, offsets, order
            if top <= enough:
                break
        if best is not None and best[0] <= enough:
            break
    assert best is not None
    top, offsets, order = best
    current, at = order, offsets
    for round_ in range(ROUNDS):
        if top <= enough:
            break
        current = _lift(current, at + size, round_)
        at = _greedy(current, size, first, last, round_ % 2 == 0, walls)
        if int((at + size).max()) < top:
            top, offsets = max(floor, int((at + size).max())), at
    return Placement(tuple(int(o) for o in offsets), top, raw)


def _lift(order: Ints, ends: Ints, round_: int) -> Ints:
    """The order with the blocks that reach highest moved to its front (more of them in later rounds)."""
    count = 1 + round_ % 6
    highest = np.argsort(-ends[order], kind="stable")[:count]
    chosen = order[np.sort(highest)]
    return np.concatenate([chosen, order[~np.isin(order, chosen)]])


def _walls(fixed: Sequence[Fixed]) -> Ints:
    """Fixed blocks as columns, sorted by the first: start and end (rounded outward to the alignment), first, last."""
    rows = sorted(
        (f.offset // ALIGNMENT * ALIGNMENT, aligned(f.offset + f.block.bytes), f.block.first, f.block.last)
        for f in fixed
    )
    return np.array(rows, np.int64).reshape(-1, 4).T


def _greedy(order: Ints, size: Ints, first: Ints, last: Ints, tightest: bool, walls: Ints) -> Ints:
    """Place the blocks one by one, each in the lowest (or tightest) gap among the walls and the placed blocks that live
    at the same time."""
    there = walls.shape[1]
    n = there + len(order)
    offsets = np.zeros(len(order), np.int64)
    # the placed blocks, sorted by offset
    placed = np.zeros((4, n), np.int64)
    placed[:, :there] = walls
    p_offset, p_end, p_first, p_last = placed
    for count, i in enumerate(order, there):
        meets = (p_first[:count] <= last[i]) & (p_last[:count] >= first[i])
        starts = p_offset[:count][meets]
        # the end of everything below each start, 0 before the first; a gap lies between end and next start
        ends = np.concatenate([[0], np.maximum.accumulate(p_end[:count][meets])])
        room = starts - ends[:-1]
        fitting = np.flatnonzero(room >= size[i])
        if len(fitting) == 0:
            at = ends[-1]
        else:
            at = ends[fitting[np.argmin(room[fitting])] if tightest else fitting[0]]
        offsets[i] = at
        k = int(np.searchsorted(p_offset[:count], at, side="right"))
        for a, value in ((p_offset, at), (p_end, at + size[i]), (p_first, first[i]), (p_last, last[i])):
            a[k + 1 : count + 1] = a[k:count]
            a[k] = value
    return offsets
