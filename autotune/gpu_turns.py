"""Blocks that add in turns (`combine ... by turns`): how much longer a launch takes because they wait for each other.

Time is counted in turns of the blocks' loops. Blocks start in the order of their numbers wherever there is room; a
block's copy of a tile comes at least one turn after that of the block before it, since the word is passed on a turn
after the copy was issued. Assumed: all turns take as long, and a block that waits leaves its SM idle.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from tcomp.autotune.gpu_blocks import OVERHEAD
from tcomp.autotune.gpu_traffic import NUMBERS
from tcomp.codegen.nvptx.grid import turns_of
from tcomp.dsl.ast import names_in
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.ir.multicast import cluster_of
from tcomp.ir.tile import Kernel, Loop, Statement, Unpack
from tcomp.ir.walk import grid_nest

PASSED = 1.0
"""turns between a block's copy and that of the block which waits for it"""


@dataclass(frozen=True)
class Visits:
    """The tiles that one block adds to, in its order; blocks of another `sum` never meet it."""

    sum: tuple[int, ...]
    tiles: np.ndarray


def waiting(kernel: Kernel, phase: tuple[Statement, ...], slots: int) -> float:
    """How many times as long the launch takes as without waiting; 1 where no block waits (or it is not to be known)."""
    nest, body = grid_nest(phase)
    around = _loops(body)
    if not nest or around is None or kernel.gpu.order.persistent:
        return 1.0
    turns = turns_of(nest, cluster_of(kernel, phase))
    loops, unpack = around
    assert unpack.turns is not None
    shared = {n for s in unpack.turns.flag.subscripts for n in names_in(s)}
    blocks = []
    try:
        for number in range(turns.total):
            values = [cast(int, v) for v in turns.values(NUMBERS, number, kernel.gpu.order, 0)]
            place = {g.variable: v for g, v in zip(nest, values, strict=True)}
            own = tuple(v for n, v in place.items() if n in shared)
            blocks.append(Visits(own, np.concatenate([np.zeros(0, np.int64), *_tiles(loops, place, 0)])))
    except TcError:
        return 1.0
    alone = length(blocks, slots, None)
    return length(blocks, slots, PASSED) / alone if alone else 1.0


def length(blocks: Sequence[Visits], slots: int, passed: float | None) -> float:
    """Turns until the last block has ended; `passed` None: nobody waits."""
    free = [0.0] * min(slots, len(blocks))
    added: dict[tuple[int, ...], dict[int, float]] = {}
    for b in blocks:
        start = free[0] + OVERHEAD
        n = np.arange(1, len(b.tiles) + 1)
        late = np.full(len(n), start)
        if passed is not None:
            before = added.setdefault(b.sum, {})
            tiles = b.tiles.tolist()
            late = np.maximum(late, np.array([before.get(t, -np.inf) for t in tiles]) + passed - n)
            at = n + np.maximum.accumulate(late)
            before.update(zip(tiles, at.tolist(), strict=True))
        end = start if not len(n) else float(n[-1] + np.maximum.accumulate(late)[-1])
        heapq.heapreplace(free, end)
    return max(free)


def _loops(body: Sequence[Statement]) -> tuple[list[Loop], Unpack] | None:
    """What a block adds in turns, and its loops around that."""
    for s in body:
        if isinstance(s, Unpack) and s.turns is not None:
            return [], s
        if isinstance(s, Loop) and (inner := _loops(s.body)) is not None:
            return [s, *inner[0]], inner[1]
    return None


def _tiles(loops: Sequence[Loop], place: Mapping[str, int], outer: int) -> Iterator[np.ndarray]:
    """Numbers of the tiles that the loops come to, in order."""
    if not loops:
        yield np.array([outer], np.int64)
        return
    loop, rest = loops[0], loops[1:]
    start, stop = (int(evaluate_dim(e, dict(place))) for e in (loop.start, loop.stop))
    values = np.arange(start, stop, loop.step, dtype=np.int64)
    if not rest:
        yield outer + values
        return
    for v in values.tolist():
        yield from _tiles(rest, {**place, loop.variable: v}, (outer + v + 1) << 24)
