"""What warpgroups do with their sums at the end of a tile: the code from its last matrix product to the next one.

All warpgroups of a block come to it together, so the matrix unit is idle meanwhile unless another block on the SM has
work for it. The ways are replayed like loops (`gpu_replay`): registers, units, and the rate at which results leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from tcomp.autotune.gpu_model import L2_LATENCY, MEMORY_LATENCY
from tcomp.autotune.gpu_replay import MATRIX, Step, Warp, run, step_of
from tcomp.autotune.sass import Function, Instruction

STORES = {"STG": 9.0, "RED": 9.0, "REDG": 9.0, "STS": 3.5, "STSM": 8.0}
"""Cycles of the SM for one warp's store (ladder): a profile has 4572 of the 512 stores of a 128 x 128 tile from
registers; the others bring the published kernels with stores through shared memory to their speed."""
RESULTS = ("STG", "UTMASTG")
"""Instructions by which results leave a block."""
WARPS = 4
"""of a warpgroup, one on each partition of the SM; one of them is replayed"""


@dataclass(frozen=True)
class Epilogue:
    """Of all tiles of a block: cycles that nothing is multiplied in; of the warp that has the most, the rounds of loads
    and the shuffles that are among them."""

    cycles: float = 0.0
    loads: int = 0
    shuffles: int = 0


def epilogue(function: Function, ways: Sequence[Sequence[int]], through_shared: bool) -> Epilogue:
    """That of a block whose warpgroups go these ways. `through_shared`: stores to shared memory are such work too, as
    where the loop itself has none."""
    stores = (*RESULTS, "STS", "STSM") if through_shared else RESULTS
    parts = [_parts(function, way, stores) for way in ways]
    known: dict[tuple[tuple[int, ...], ...], float] = {}
    total, loads, shuffles = 0.0, 0, 0
    for together in zip_longest(*parts, fillvalue=()):
        if together not in known:
            known[together] = _cycles(function, together)
        total += known[together]
        loads += max(_count(function, part, "LDG", rounds=True) for part in together)
        shuffles += max(_count(function, part, "SHFL") for part in together)
    return Epilogue(total, loads, shuffles)


def _parts(function: Function, way: Sequence[int], stores: Sequence[str]) -> list[tuple[int, ...]]:
    """The pieces of a way that lie between matrix instructions (or behind the last) and store."""
    has = [any(i.name in MATRIX for i in b.instructions) for b in function.blocks]
    places = [n for n, b in enumerate(way) if has[b]]
    pieces = [tuple(way[a + 1 : b]) for a, b in zip(places, [*places[1:], len(way)], strict=True) if b > a + 1]
    return [p for p in pieces if any(i.name in stores for b in p for i in function.blocks[b].instructions)]


def _cycles(function: Function, parts: Sequence[tuple[int, ...]]) -> float:
    """Until the last of the warpgroups, which start together, is through its part."""
    steps = {b: [_step(i) for i in function.blocks[b].instructions] for b in set().union(*parts)}
    warps = [Warp(part) for part in parts]
    run(warps, steps, None, len(warps))
    return max(w.at for w in warps)


def _step(i: Instruction) -> Step:
    step = step_of(i, 0.0)
    if i.name in STORES:
        return replace(step, unit="store", busy=WARPS * STORES[i.name])
    if i.name == "LDG":
        return replace(step, latency=(L2_LATENCY + MEMORY_LATENCY) / 2)
    return step


def _count(function: Function, part: Sequence[int], name: str, rounds: bool = False) -> int:
    """Instructions of that name; `rounds`: pieces of code that have some, whose accesses are under way together."""
    found = [sum(i.name == name for i in function.blocks[b].instructions) for b in part]
    return sum(map(bool, found)) if rounds else sum(found)
