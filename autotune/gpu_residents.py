"""Blocks whose warps multiply by mma.sync, replayed whole beside each other: what their starts and the ends of their
tiles cost beyond the turns of their loops.

While a block waits for its first tiles, or computes and stores its results, it multiplies nothing; only other blocks on
the SM can, so occupancy decides what is hidden. Each place of an SM takes block after block here, the first together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tcomp.autotune.gpu_epilogue import RESULTS, parts, step_at_end
from tcomp.autotune.gpu_model import BLOCK_START, COPY_LATENCY
from tcomp.autotune.gpu_replay import Step, Warp, head_of, pace, replay, run
from tcomp.autotune.sass import Function
from tcomp.machine.gpu import GpuMachine

GENERATIONS = 6
"""Blocks that each place takes, one after the other."""
INSTRUCTIONS = 60_000
"""that are replayed at most, or nearly: of longer loops fewer turns."""
FEWEST, MOST = 4, 32
"""turns of them"""
START, END = "start", "end"
"""Stand for a block's beginning, and for its warps' waiting for each other at its end, among the numbers of code."""


@dataclass(frozen=True)
class Residents:
    """`turns` of a block's loop, `cycles` of one while all blocks on the SM are in theirs; `beyond` those: cycles that
    a block takes besides, where others' turns do not hide them; `ends`: how many more they are of a launch's last
    blocks, when there are no others."""

    turns: int
    cycles: float
    beyond: float
    ends: float


@lru_cache(maxsize=8)  # (the blocks that stand for a launch mostly go the same ways)
def residents(
    function: Function, ways: tuple[tuple[int, ...], ...], blocks: int, machine: GpuMachine
) -> Residents | None:
    """So many blocks on an SM, with a warp on each partition for each of these ways. None where no loop has matrix
    instructions, or a block makes several tiles (then none takes its place)."""
    head = head_of(function, ways[0])
    if head is None or any(head not in way for way in ways) or len(parts(function, ways[0], RESULTS)) > 1:
        return None
    size = [len(b.instructions) for b in function.blocks]
    places = [[n for n, b in enumerate(way) if b == head] for way in ways]
    turns = len(places[0])
    a_turn = sum(size[b] for way, at in zip(ways, places, strict=True) for b in way[at[0] : at[-1]]) / max(1, turns - 1)
    generations = GENERATIONS if blocks > 1 else 2
    kept = int(min(MOST, turns, max(FEWEST, INSTRUCTIONS / (blocks * generations * max(1.0, a_turn)))))
    loop = replay(function, ways, blocks, machine, kept)
    if loop is None:
        return None
    traces = [_shortened(way, at, kept) for way, at in zip(ways, places, strict=True)]
    steps: dict[Hashable, list[Step]] = {
        b: [step_at_end(i, machine) for i in function.blocks[b].instructions] for b in set().union(*traces)
    }
    steps[START] = [Step("issue", 0.0, 0.0, (), (), pause=WAIT)]
    steps[END] = [Step("issue", 0.0, 0.0, (), (), meets=True)]
    warps = [Warp([START, *trace, END] * generations) for _ in range(blocks) for trace in traces]
    run(warps, steps, head if blocks > 1 else START, len(traces))
    found = pace([w.entered for w in warps])
    assert found is not None
    alone = residents(function, ways, 1, machine) if blocks > 1 else None
    if alone is None:
        return Residents(turns, loop.cycles, found - kept * loop.cycles, 0.0)
    each = max(found * kept, kept * alone.cycles + alone.beyond)  # (no block is faster beside others)
    beyond = each - kept * loop.cycles
    return Residents(turns, loop.cycles, beyond, max(0.0, alone.beyond - beyond))


WAIT = BLOCK_START + COPY_LATENCY
"""Cycles until a block's first tiles are there."""


def _shortened(way: Sequence[int], places: Sequence[int], turns: int) -> list[int]:
    """The way with so many turns of its loop: the first ones, and the last with all that follows."""
    if len(places) <= turns:
        return list(way)
    return [*way[: places[turns - 1]], *way[places[-1] :]]
