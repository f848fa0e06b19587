"""Blocks of a launch that differ in length: turns of their loops, and how evenly they fill the machine in their order.

Of causal attention the last block of a head has as many turns as there are tiles of keys, the first has one. Blocks
start in the order of their numbers wherever an SM has room, so the launch ends with the slot that was given most.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import cast

from tcomp.autotune.gpu_traffic import NUMBERS
from tcomp.codegen.nvptx.grid import turns_of
from tcomp.codegen.nvptx.layout import last_turns
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.ir.multicast import cluster_of
from tcomp.ir.tile import Kernel, Loop, Statement
from tcomp.ir.walk import grid_nest

OVERHEAD = 1.0
"""what a block costs beside its turns (first loads, epilogue), in turns"""


WRITTEN = 0.3
"""what a turn of the loop costs that writes a sum out of the cache, in turns of products: 50 kB at about 50 GB/s a
multiprocessor, 1 us, beside 3 to 4 us of attention's gradient (an estimate, not measured)"""


def block_turns(kernel: Kernel, phase: tuple[Statement, ...]) -> list[float]:
    """Turns of the loops inside each block, in the order in which blocks start; empty where they are all alike (or not
    to be known)."""
    nest, body = grid_nest(phase)
    # (Loops that are as long in every block, such as over panels of results, are not what parts them. What the last
    # block of a sum does besides is a part of the whole, though.)
    last = {id(s) for s in last_turns(phase)}
    varying = [s for s in body if _varies(s, {g.variable for g in nest})]
    written = [s for s in body if id(s) in last]
    whole = [s for s in body if id(s) not in last and isinstance(s, Loop) and s.level != "panel"]
    body = whole if last else varying
    if not nest or kernel.gpu.order.persistent or not body:
        return []
    turns = turns_of(nest, cluster_of(kernel, phase))
    known: dict[tuple[int, ...], float] = {}
    found = []
    try:
        for number in range(turns.total):
            rank = number % turns.cluster
            place = tuple(cast(int, v) for v in turns.values(NUMBERS, number // turns.cluster, kernel.gpu.order, rank))
            if place not in known:
                at = {g.variable: v for g, v in zip(nest, place, strict=True)}
                known[place] = _turns(body, at) + WRITTEN * _turns(written, at)
            found.append(known[place])
    except TcError:
        return []
    return found


def unevenness(lengths: Sequence[float], slots: int) -> float:
    """How much longer than the mean slot's share the fullest of `slots` slots is busy."""
    if not lengths:
        return 1.0
    busy = [0.0] * min(slots, len(lengths))
    for length in lengths:
        heapq.heapreplace(busy, busy[0] + length + OVERHEAD)
    return max(busy) * slots / (sum(lengths) + OVERHEAD * len(lengths))


def middle_blocks(turns: Sequence[float]) -> dict[int, float]:
    """One or two blocks, and the share of each, that together have the mean number of turns."""
    mean = sum(turns) / len(turns)
    below = max((b for b, t in enumerate(turns) if t <= mean), key=lambda b: turns[b])
    above = min((b for b, t in enumerate(turns) if t >= mean), key=lambda b: turns[b])
    if turns[above] == turns[below]:
        return {below: 1.0}
    share = (mean - turns[below]) / (turns[above] - turns[below])
    return {below: 1.0 - share, above: share}


def _varies(s: Statement, grid: set[str]) -> bool:
    """Is there a loop whose bounds follow from a block's place?"""
    if not isinstance(s, Loop):
        return False
    text = f"{s.start} {s.stop}"
    return any(v in text for v in grid) or any(_varies(inner, grid) for inner in s.body)


def _turns(body: Sequence[Statement], place: Mapping[str, int]) -> float:
    total = 0.0
    for s in body:
        if isinstance(s, Loop):
            start, stop = (float(evaluate_dim(e, dict(place))) for e in (s.start, s.stop))
            n = max(0.0, -(-(stop - start) // s.step))
            total += n * max(1.0, _turns(s.body, {**place, s.variable: int(start)}))
    return total
