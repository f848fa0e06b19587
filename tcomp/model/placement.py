"""Offsets for buffers with known live ranges, in as little memory as possible.

Takes blocks (bytes, first and last launch) and gives an aligned offset to each, so that blocks alive at the
same time never overlap. Some may have their places already: the others go around them. The problem is dynamic
storage allocation (NP-hard); the answer here is greedy placement in several orders, then rounds in which the blocks
that stick out go first. A try ends at the first block that would reach the best placement's height: it is the one that
sticks out. The search stops as soon as the lower bound, the most bytes alive at one launch, is reached. Every choice is
deterministic, so the same problem always has the same answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
ROUNDS = 48
"""rounds of moving the highest blocks to the front of the order"""

WALLED_SLACK = 256
"""Between fixed blocks the lower bound is hardly ever reached: a placement is good enough at this part above it"""

_HIGHEST = 1 << 62
"""above every offset"""
_UNPLACED = -_HIGHEST
"""the offset of a block that an attempt did not come to"""

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
    search = _Search(size, first, last, _walls(fixed))
    for order, tightest in product(orders, (False, True)):
        if search.top > enough:
            search.attempt(order, tightest)
    order, offsets = search.order, search.offsets
    for round_ in range(ROUNDS):
        if search.top <= enough:
            break
        order = _lift(order, offsets + size, round_)
        offsets = search.attempt(order, tightest=round_ % 2 == 0)
    return Placement(tuple(int(o) for o in search.offsets), max(floor, search.top), raw)


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


class _Search:
    """The best placement of all attempts: its height `top`, the `offsets`, and the `order` that gave them."""

    def __init__(self, size: Ints, first: Ints, last: Ints, walls: Ints) -> None:
        self.size = size
        self.start, self.end = (np.concatenate([column, np.zeros_like(size)]) for column in walls[:2])
        self.walls = walls.shape[1]
        # [block, wall or block]: do they live at the same time?
        self.meets = (np.concatenate([walls[2], first]) <= last[:, None]) & (
            np.concatenate([walls[3], last]) >= first[:, None]
        )
        self.top = _HIGHEST
        self.order = self.offsets = np.zeros(0, np.int64)

    def attempt(self, order: Ints, tightest: bool) -> Ints:
        """Place the blocks one by one, each in the lowest (or tightest) gap among the walls and the placed blocks that
        live at the same time, until one reaches the best height so far. Their offsets; `_UNPLACED` for the rest."""
        start, end, walls = self.start, self.end, self.walls
        offsets = np.full(len(order), _UNPLACED)
        placed = np.arange(walls + len(order))  # by offset, the first `count`; walls have the first numbers
        at_placed = self.start.copy()
        top = 0
        for count, i in enumerate(order.tolist(), walls):
            size = int(self.size[i])
            near = placed[:count]
            near = near[self.meets[i].take(near)]
            # the end of everything below each start, 0 before the first; a gap lies between end and next start
            low = np.zeros(len(near) + 1, np.int64)
            np.maximum.accumulate(end.take(near), out=low[1:])
            room = np.full(len(near) + 1, _HIGHEST)
            np.subtract(start.take(near), low[:-1], out=room[:-1])
            fits = room >= size
            at = int(low[np.where(fits, room, _HIGHEST + 1).argmin() if tightest else fits.argmax()])
            offsets[i] = at
            top = max(top, at + size)
            if top >= self.top:
                return offsets
            start[walls + i], end[walls + i] = at, at + size
            k = int(at_placed[:count].searchsorted(at, side="right"))
            for a, value in ((at_placed, at), (placed, walls + i)):
                a[k + 1 : count + 1] = a[k:count]
                a[k] = value
        self.top, self.order, self.offsets = top, order, offsets
        return offsets
